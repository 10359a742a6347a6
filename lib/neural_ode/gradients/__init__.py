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
    "check_gradient",
    "get_gradient",
]


class Gradient(Protocol):
    """A way to differentiate a solve.

    More of it is known where it has these attributes:

    * `name`: the usual name.
    * `needs_params`: whether it has to know which tensors besides `y0` and `t` get gradients (true), or autograd
      records what `f` depends on (false). Without it, nothing is looked for.
    * `supports_rows`, `supports_dense`: whether it can do `batched=True` and `dense=True`. Without them it cannot.
    * `check(problem, settings)`: raises `InvalidArgumentError` where it cannot differentiate that. Called first.
    """

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


def check_gradient(gradient: Gradient, problem: InitialValueProblem, settings: SolverSettings) -> None:
    """Whether a problem can be differentiated so, solved with these settings.

    Raises:
        InvalidArgumentError: it cannot; the message names what to use instead.
    """
    if problem.batched and not getattr(gradient, "supports_rows", False):
        raise InvalidArgumentError(
            "batched=True needs gradient='direct' or 'recursive_checkpoint', which go back through the steps of "
            f"each row, or 'backsolve', which gives each row new ones; got {gradient!r}"
        )
    if problem.dense and not getattr(gradient, "supports_dense", False):
        raise InvalidArgumentError("dense=True needs gradient='direct': it keeps the steps")
    check = getattr(gradient, "check", None)
    if check is not None:
        check(problem, settings)
