"""Backpropagation through the steps of the solver, which are made again one by one.

Exact for the discrete solve, as `direct` is, but keeps states only: one for each step, or as many as there is
memory for. Those in between are then found again from the kept ones (Griewank & Walther 2000).
"""

from dataclasses import dataclass
from typing import ClassVar

from neural_ode.compiled import CannotCompile, compiled_integrate, with_compiled_steps
from neural_ode.errors import InvalidArgumentError
from neural_ode.gradients.checkpoints import Budget, Checkpoints
from neural_ode.gradients.differentiable import refuse_transforms
from neural_ode.gradients.step_replay import solve_stepwise
from neural_ode.problem.initial_value import InitialValueProblem
from neural_ode.solution import Statistics
from neural_ode.stepping.settings import SolverSettings, Trajectory

__all__ = ["RecursiveCheckpoint"]


@dataclass(frozen=True)
class RecursiveCheckpoint:
    """`gradient="recursive_checkpoint"`: keep states, and make each step again to differentiate it.

    Differentiated twice, the first gradient is recorded by autograd with all its steps, as with `direct`.

    Attributes:
        checkpoints: how many states are kept at most. `None`: one for each step, which is then made again once.
            An integer `k`: `k` states, however many steps there are; with `n` steps each is made again up to `r`
            times, where `C(k + r, k)` is about `n`. `"log"`: about `log2(n)` states.
    """

    name: ClassVar[str] = "recursive_checkpoint"
    needs_params: ClassVar[bool] = True
    supports_rows: ClassVar[bool] = True

    checkpoints: Budget = None

    def __post_init__(self) -> None:
        k = self.checkpoints
        if not (k is None or k == "log" or (isinstance(k, int) and not isinstance(k, bool) and k >= 1)):
            raise InvalidArgumentError(
                f"checkpoints must be a whole number of at least 1, 'log', or None for all states, got {k!r}"
            )

    def check(self, problem: InitialValueProblem, settings: SolverSettings) -> None:
        """The method shows its steps.

        Raises:
            InvalidArgumentError: that is not so; the message names what to use instead.
        """
        if not settings.method.shows_steps:
            raise InvalidArgumentError(
                "gradient='recursive_checkpoint' goes back through the steps of the solver, and "
                f"{settings.method.name} does not show them: use gradient='backsolve'"
            )

    def __call__(self, problem: InitialValueProblem, settings: SolverSettings, stats: Statistics) -> Trajectory:
        if problem.compile:
            refuse_transforms(self.name)
            reason = "the solve ends at an event"
            if self.checkpoints is not None:
                reason = f"checkpoints={self.checkpoints!r} of {self.name} keeps some of the states only"
            elif problem.event is None:
                try:
                    return compiled_integrate(
                        *(problem.f, problem.y0, problem.t, settings, stats), problem.params, problem.batched
                    )
                except CannotCompile as error:
                    reason = str(error)
            settings = with_compiled_steps(settings, stats, reason)
        return solve_stepwise(self.name, problem, settings, stats, Checkpoints(self.checkpoints))
