"""The adjoint method: solve the adjoint equation backwards, together with the state.

Chen et al. (2018), section 2 and appendices B and C, Algorithms 1 and 2. Keeps the states at the output times, some
more if asked to, and nothing else, so memory does not grow with the number of steps. The gradient is that of the
continuous problem, as accurate as the backward solve, which may lose the trajectory where going back is unstable.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from neural_ode.compiled import CannotCompile, compiled_adjoint, with_compiled_steps
from neural_ode.errors import InvalidArgumentError
from neural_ode.gradients.adjoint import Adjoint, BackwardSolve, Memory
from neural_ode.gradients.augmented import AugmentedSystem
from neural_ode.gradients.checkpoints import Checkpoints, Snapshot
from neural_ode.methods import BlackBox, Method, get_method
from neural_ode.problem.initial_value import InitialValueProblem
from neural_ode.solution import Segment
from neural_ode.stepping.settings import SolverSettings

__all__ = ["AugmentedSystem", "Backsolve"]


@dataclass(frozen=True)
class Backsolve(Adjoint):
    """`gradient="backsolve"`: the paper's adjoint method.

    The backward solve is a solve like any other: second and higher derivatives differentiate it by the same method.

    Attributes:
        checkpoints: at how many states of the forward solve, at most, the backward solve of `z` is restarted. They
            are equally many steps apart (section 6 of the paper).
        method, rtol, atol, step_size, norm, options, quadrature: see `AdjointOptions`.
    """

    name: ClassVar[str] = "backsolve"
    supports_rows: ClassVar[bool] = True
    states: ClassVar[int] = AugmentedSystem.states

    checkpoints: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.checkpoints, int) or isinstance(self.checkpoints, bool) or self.checkpoints < 0:
            raise InvalidArgumentError(
                f"checkpoints must be a whole number of at least 0, got {self.checkpoints!r}"
            )

    def check(self, problem: InitialValueProblem, settings: SolverSettings) -> None:
        """The method shows its steps if some are kept; with rows, the backward solve can have them too.

        Raises:
            InvalidArgumentError: that is not so; the message names what to use instead.
        """
        if problem.batched:
            self._check_rows(settings.method if self.method is None else get_method(self.method))
        super().check(problem, settings)
        if self.checkpoints and not settings.method.shows_steps:
            raise InvalidArgumentError(
                f"checkpoints={self.checkpoints} cannot be kept: {settings.method.name} does not show its steps; "
                "add output times instead, or use another method"
            )

    def _check_rows(self, method: Method | BlackBox) -> None:
        """Whether the backward solve can give every row of a batch steps of its own."""
        if not (method.supports_rows and method.adaptive):
            raise InvalidArgumentError(
                "with batched=True the backward solve needs an explicit method with error control, such as "
                f"dopri5; got {method.name}"
            )
        for name in ("checkpoints", "step_size"):
            if getattr(self, name):
                raise InvalidArgumentError(
                    f"{name}={getattr(self, name)} of backsolve is for joint steps: leave it out with batched=True"
                )

    def memory(self, settings: SolverSettings) -> Memory:
        """As many states as `checkpoints`, to restart from."""
        return _Restarts(self.checkpoints) if self.checkpoints else Memory()

    def solve_back(self, solve: BackwardSolve) -> tuple[Tensor, Sequence[Tensor]]:
        """Algorithm 1 of the paper, from observation to observation; as one graph where it compiles."""
        batched = solve.problem.batched
        system = AugmentedSystem(solve.problem.f, solve.y[0], solve.params, solve.quadrature(), batched)
        settings = solve.settings(system)
        if not solve.problem.compile:
            return solve.by_intervals(system, settings)
        if system.quadrature is not None:
            solve.stats.not_compiled = "the gradients of parameters are found by quadrature"
            return solve.by_intervals(system, settings)
        try:
            return compiled_adjoint(
                solve.problem.f, solve.params, solve.y, solve.t, solve.grad_y, settings, solve.norm, solve.stats
            )
        except CannotCompile as error:
            steps = with_compiled_steps(settings, solve.stats, str(error))
            return solve.by_intervals(system, steps)


class _Restarts(Memory):
    """Some states of the forward solve, from inside of it."""

    def __init__(self, count: int):
        # The first state is an output.
        self.checkpoints = Checkpoints(count + 1)
        self.times: list[float] = []

    def record(self, step: Segment) -> None:
        self.times.append(step.t)
        self.checkpoints.offer(step.made.number, Snapshot(step.y, None))

    def rows(self, known: Sequence[float]) -> tuple[list[float], list[Tensor]]:
        found = [(self.times[number], snapshot.y) for number, snapshot in self.checkpoints.kept]
        found = [(t, y) for t, y in found if t not in known]
        self.checkpoints.kept = []
        return [t for t, _ in found], [y for _, y in found]
