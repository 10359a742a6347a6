"""The methods by name. A method is a tableau; how a tableau makes a step is in the modules beside this one."""

from neural_ode.errors import InvalidArgumentError, UnknownNameError
from neural_ode.methods.adams import VariableOrderAdams
from neural_ode.methods.base import Method, Next, Step
from neural_ode.methods.external import BlackBox, FunctionSolver, Solver
from neural_ode.methods.fixed_adams import AdamsBashforth, AdamsBashforthMoulton
from neural_ode.methods.implicit_runge_kutta import ImplicitRungeKutta
from neural_ode.methods.reversible import ReversibleRungeKutta
from neural_ode.methods.runge_kutta import ExplicitRungeKutta
from neural_ode.methods.scipy import ScipySolver
from neural_ode.methods.tableaus.dopri8 import DOPRI8
from neural_ode.methods.tableaus.explicit import (
    ADAPTIVE_HEUN,
    BOSH3,
    DOPRI5,
    EULER,
    FEHLBERG2,
    HEUN2,
    HEUN3,
    MIDPOINT,
    RK4,
    TSIT5,
)
from neural_ode.methods.tableaus.implicit import (
    GL4,
    GL6,
    IMPLICIT_EULER,
    IMPLICIT_MIDPOINT,
    KVAERNO3,
    KVAERNO5,
    RADAU_IIA3,
    RADAU_IIA5,
    SDIRK2,
    TRAPEZOID,
    TRBDF2,
)

__all__ = [
    "METHODS",
    "AdamsBashforth",
    "AdamsBashforthMoulton",
    "BlackBox",
    "ExplicitRungeKutta",
    "FunctionSolver",
    "ImplicitRungeKutta",
    "Method",
    "Next",
    "ReversibleRungeKutta",
    "ScipySolver",
    "Solver",
    "Step",
    "VariableOrderAdams",
    "get_method",
]

_EXPLICIT = (EULER, MIDPOINT, HEUN2, HEUN3, RK4, ADAPTIVE_HEUN, FEHLBERG2, BOSH3, DOPRI5, TSIT5, DOPRI8)
_IMPLICIT = (
    *(IMPLICIT_EULER, IMPLICIT_MIDPOINT, TRAPEZOID, GL4, GL6, RADAU_IIA3, RADAU_IIA5, SDIRK2, TRBDF2),
    *(KVAERNO3, KVAERNO5),
)

METHODS: dict[str, Method | BlackBox | Solver] = {
    **{tableau.name: ExplicitRungeKutta(tableau) for tableau in _EXPLICIT},
    **{tableau.name: ImplicitRungeKutta(tableau) for tableau in _IMPLICIT},
    **{method.name: method for method in (VariableOrderAdams(), AdamsBashforth(), AdamsBashforthMoulton())},
    "scipy_solver": ScipySolver(),
}
"""Open to more: `METHODS["mine"] = my_solver`, a method object or a function, see `FunctionSolver`."""


def get_method(method: str | Method | BlackBox | Solver) -> Method | BlackBox:
    """Look a method up by name; a method object passes through, a function becomes a `FunctionSolver`.

    Raises:
        UnknownNameError: no method has that name; the nearest one is suggested.
        InvalidArgumentError: neither a name nor a method.
    """
    if isinstance(method, Method | BlackBox):
        return method
    if callable(method) and not isinstance(method, type):
        return FunctionSolver(method)
    if not isinstance(method, str):
        raise InvalidArgumentError(f"method must be a name, a method object or a solver, got {method!r}")
    if method not in METHODS:
        raise UnknownNameError("method", method, METHODS)
    return get_method(METHODS[method])
