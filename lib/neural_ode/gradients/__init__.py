"""How a solve is differentiated: the choices of `solve(..., gradient=...)` by their usual names."""

from typing import Protocol

from torch import Tensor

from neural_ode.errors import InvalidArgumentError, UnknownNameError
from neural_ode.gradients.backsolve import Backsolve
from neural_ode.gradients.direct import Direct
from neural_ode.integrate import Scheme
from neural_ode.solution import Statistics
from neural_ode.state import Dynamics

__all__ = ["GRADIENTS", "Backsolve", "Direct", "Gradient", "get_gradient"]


class Gradient(Protocol):
    """A way to differentiate a solve."""

    def __call__(
        self,
        f: Dynamics,
        y0: Tensor,
        t: Tensor,
        scheme: Scheme,
        stats: Statistics,
        params: tuple[Tensor, ...],
    ) -> Tensor:
        """Solve, and return the states, shape (len(t), *y0.shape), attached to the graph of autograd.

        `params` are the tensors besides `y0` and `t` that get gradients, for choices that have to know them.
        """
        ...


GRADIENTS: dict[str, type[Direct] | type[Backsolve]] = {"direct": Direct, "backsolve": Backsolve}


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
