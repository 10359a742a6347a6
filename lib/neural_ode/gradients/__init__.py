"""How a solve is differentiated: the choices of `solve(..., gradient=...)` by their usual names."""

from collections.abc import Callable
from typing import Protocol

from neural_ode.errors import InvalidArgumentError, UnknownNameError
from neural_ode.gradients.adjoint import Adjoint
from neural_ode.gradients.augmented import AugmentedSystem
from neural_ode.gradients.backsolve import Backsolve
from neural_ode.gradients.direct import Direct
from neural_ode.gradients.interpolating import Interpolating
from neural_ode.gradients.recursive_checkpoint import RecursiveCheckpoint
from neural_ode.gradients.reversible import Reversible
from neural_ode.problem.initial_value import InitialValueProblem
from neural_ode.solution import Statistics
from neural_ode.stepping.settings import SolverSettings, Trajectory

__all__ = [
    "GRADIENTS",
    "Adjoint",
    "AugmentedSystem",
    "Backsolve",
    "Direct",
    "Gradient",
    "InitialValueProblem",
    "Interpolating",
    "RecursiveCheckpoint",
    "Reversible",
    "get_gradient",
]


class Gradient(Protocol):
    """A way to differentiate a solve."""

    def __call__(self, problem: InitialValueProblem, settings: SolverSettings, stats: Statistics) -> Trajectory:
        """Solve, and return the trajectory with its states attached to the graph of autograd."""
        ...


GRADIENTS: dict[str, Callable[[], Gradient]] = {
    choice.name: choice for choice in (Direct, RecursiveCheckpoint, Backsolve, Interpolating, Reversible)
}


def get_gradient(gradient: str | Gradient) -> Gradient:
    """Look a choice up by name, with its defaults; an object such as `Backsolve(rtol=1e-4)` passes through.

    Raises:
        UnknownNameError: no choice has that name; the nearest one is suggested.
        InvalidArgumentError: neither a name nor an object that can differentiate a solve.
    """
    if isinstance(gradient, str):
        if gradient not in GRADIENTS:
            raise UnknownNameError("gradient", gradient, GRADIENTS)
        return GRADIENTS[gradient]()
    if isinstance(gradient, type) or not callable(gradient):
        raise InvalidArgumentError(f"gradient must be a name or an object such as Backsolve(), got {gradient!r}")
    return gradient
