"""The methods by name. A method is a tableau; how a tableau makes a step is in the modules beside this one."""

from neural_ode.errors import UnknownNameError
from neural_ode.methods.runge_kutta import ExplicitRungeKutta
from neural_ode.tableaus import DOPRI5, EULER, MIDPOINT, RK4

__all__ = ["METHODS", "ExplicitRungeKutta", "get_method"]

METHODS: dict[str, ExplicitRungeKutta] = {
    tableau.name: ExplicitRungeKutta(tableau) for tableau in (EULER, MIDPOINT, RK4, DOPRI5)
}


def get_method(method: str | ExplicitRungeKutta) -> ExplicitRungeKutta:
    """Look a method up by name; a method object passes through.

    Raises:
        UnknownNameError: no method has that name; the nearest one is suggested.
    """
    if isinstance(method, ExplicitRungeKutta):
        return method
    if method not in METHODS:
        raise UnknownNameError("method", method, METHODS)
    return METHODS[method]
