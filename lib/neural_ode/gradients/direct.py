"""Backpropagation through the steps of the solver.

Exact for the discrete solve, and keeps what every evaluation of the dynamics saves: memory O(NFE). This is the
gradient of the paper's RK-Net (Chen et al. 2018, section 3).
"""

from dataclasses import dataclass
from typing import ClassVar

from neural_ode.compiled import integrate_compiled, per_sample_compiled
from neural_ode.errors import InvalidArgumentError
from neural_ode.problem.initial_value import InitialValueProblem
from neural_ode.solution import Statistics
from neural_ode.stepping.integrate import integrate
from neural_ode.stepping.per_sample import per_sample
from neural_ode.stepping.settings import SolverSettings, Trajectory

__all__ = ["Direct"]


@dataclass(frozen=True)
class Direct:
    """`gradient="direct"`: autograd records the solver's operations."""

    name: ClassVar[str] = "direct"
    needs_params: ClassVar[bool] = False
    supports_rows: ClassVar[bool] = True
    supports_dense: ClassVar[bool] = True

    def check(self, problem: InitialValueProblem, settings: SolverSettings) -> None:
        """The method shows its steps.

        Raises:
            InvalidArgumentError: that is not so; the message names what to use instead.
        """
        if not settings.method.shows_steps:
            raise InvalidArgumentError(
                f"gradient='direct' goes back through the steps of the solver, and {settings.method.name} does not "
                "show them: use gradient='backsolve', or leave it out"
            )

    def __call__(self, problem: InitialValueProblem, settings: SolverSettings, stats: Statistics) -> Trajectory:
        if problem.batched:
            run = per_sample_compiled if problem.compile else per_sample
            return run(problem.f, problem.y0, problem.t, settings, stats)
        if problem.compile:
            return integrate_compiled(problem.f, problem.y0, problem.t, settings, stats, problem.event)
        return integrate(problem.f, problem.y0, problem.t, settings, stats, event=problem.event)
