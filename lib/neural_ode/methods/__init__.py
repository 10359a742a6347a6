"""The methods by name. A method is a tableau; how a tableau makes a step is in the modules beside this one."""

from neural_ode.errors import InvalidArgumentError, UnknownNameError
from neural_ode.methods.base import Method, Next, Step
from neural_ode.methods.black_box import BlackBox, ScipySolver
from neural_ode.methods.runge_kutta import ExplicitRungeKutta
from neural_ode.tableaus import (
    ADAPTIVE_HEUN,
    BOSH3,
    DOPRI5,
    DOPRI8,
    EULER,
    FEHLBERG2,
    HEUN2,
    HEUN3,
    MIDPOINT,
    RK4,
    TSIT5,
)

__all__ = ["METHODS", "BlackBox", "ExplicitRungeKutta", "Method", "Next", "ScipySolver", "Step", "get_method"]

_EXPLICIT = (EULER, MIDPOINT, HEUN2, HEUN3, RK4, ADAPTIVE_HEUN, FEHLBERG2, BOSH3, DOPRI5, TSIT5, DOPRI8)

METHODS: dict[str, Method | BlackBox] = {
    **{tableau.name: ExplicitRungeKutta(tableau) for tableau in _EXPLICIT},
    "scipy_solver": ScipySolver(),
}


def get_method(method: str | Method | BlackBox) -> Method | BlackBox:
    """Look a method up by name; a method object passes through.

    Raises:
        UnknownNameError: no method has that name; the nearest one is suggested.
        InvalidArgumentError: neither a name nor a method.
    """
    if isinstance(method, Method | BlackBox):
        return method
    if not isinstance(method, str):
        raise InvalidArgumentError(f"method must be a name or a method object, got {method!r}")
    if method not in METHODS:
        raise UnknownNameError("method", method, METHODS)
    return METHODS[method]
