"""The adjoint equation along the stored forward solution.

The forward solve keeps its dense output: the slopes of each step, but no activations. Backwards only the adjoint is
solved, so the trajectory cannot be lost. Memory is O(steps), the gradient is that of the continuous problem, as
accurate as the backward solve and the dense output.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from neural_ode.errors import InvalidArgumentError
from neural_ode.gradients.adjoint import Adjoint, BackwardSolve, Memory
from neural_ode.gradients.augmented import AdjointSystem
from neural_ode.methods import Method
from neural_ode.problem.initial_value import InitialValueProblem
from neural_ode.solution import DenseOutput, Segment
from neural_ode.stepping.settings import SolverSettings
from neural_ode.stepping.step_records import take_tensors

__all__ = ["Interpolating"]


@dataclass(frozen=True)
class Interpolating(Adjoint):
    """`gradient="interpolating"`: solve the adjoint equation along the dense output of the forward solve.

    For methods with dense output. Differentiated twice, the first backward solve has `z` in its system, as that of
    `backsolve` has: the stored trajectory does not depend on anything.

    Attributes:
        method, rtol, atol, step_size, norm, options, quadrature: see `AdjointOptions`.
    """

    name: ClassVar[str] = "interpolating"
    states: ClassVar[int] = AdjointSystem.states

    def check(self, problem: InitialValueProblem, settings: SolverSettings) -> None:
        """The method has dense output.

        Raises:
            InvalidArgumentError: that is not so; the message names what to use instead.
        """
        super().check(problem, settings)
        if not settings.method.has_dense_output:
            raise InvalidArgumentError(
                f"gradient='interpolating' needs the dense output of the solve, and {settings.method.name} has "
                "none: use dopri5, or gradient='recursive_checkpoint' or 'backsolve'"
            )

    def memory(self, settings: SolverSettings) -> Memory:
        """All steps, as dense output."""
        assert isinstance(settings.method, Method)
        return _Dense(settings.method)

    def solve_back(self, solve: BackwardSolve) -> tuple[Tensor, Sequence[Tensor]]:
        """The adjoint equation along the stored trajectory, from observation to observation."""
        assert isinstance(solve.memory, _Dense)
        if solve.problem.compile:
            solve.stats.not_compiled = "the adjoint equation follows a stored trajectory"
        if len(solve.t) == 1:
            return solve.grad_y[0], [torch.zeros_like(p) for p in solve.params]
        trajectory = solve.memory.dense(solve.kept)
        system = AdjointSystem(solve.problem.f, solve.y[0], solve.params, solve.quadrature(), trajectory.packed)
        return solve.by_intervals(system, solve.settings(system))


class _Dense(Memory):
    """The dense output of the forward solve."""

    def __init__(self, method: Method):
        self.method = method
        self.segments: list[Segment] = []

    def record(self, step: Segment) -> None:
        self.segments.append(step._replace(carry=None))

    def tensors(self) -> list[Tensor]:
        tensors, self._put_back = take_tensors(self.segments)
        self.segments = []
        return tensors

    def dense(self, tensors: Sequence[Tensor]) -> DenseOutput:
        """The dense output from its tensors, which autograd has kept."""
        segments = self._put_back(tensors)
        return DenseOutput(self.method, segments, segments[0].y, segments[-1].made.end, lambda x: x)
