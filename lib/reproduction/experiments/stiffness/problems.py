"""Four families of problems, each from easy to stiff, with states that the solves are compared with."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from neural_ode import solve
from neural_ode.errors import UnknownNameError
from neural_ode.methods import ScipySolver
from reproduction.experiments.tolerance.stiffness import attracted

__all__ = ["FAMILIES", "Problem", "network_problem", "problem", "reference", "relative_error", "stiffness"]

Dynamics = Callable[[Tensor, Tensor], Tensor]

FINEST = 1e-12
"""Tolerance of the solves that others are compared with."""


class Problem(NamedTuple):
    """An initial value problem in float64.

    Attributes:
        f: dynamics.
        y0: shape (n,).
        times: first where it starts, then where errors are looked at.
        scale: sizes of the components, shape (n,): absolute tolerances and errors are multiples of them.
        exact: states at `times[1:]`, shape (len(times) - 1, n), where there is a closed form.
    """

    f: Dynamics
    y0: Tensor
    times: list[float]
    scale: Tensor
    exact: Tensor | None = None


def _relaxation(k: float) -> Problem:
    """`y' = -k (y - cos t)` (after Prothero & Robinson 1974): every solution is drawn to one that is smooth."""
    times = [0.0, 0.5, 1.0, 1.5, 2.0]
    exact = torch.tensor([[attracted(k, t)] for t in times[1:]], dtype=torch.float64)
    return Problem(lambda t, y: -k * (y - torch.cos(t)), _double(1.0), times, _double(1.0), exact)


def _van_der_pol(mu: float) -> Problem:
    """Van der Pol's oscillator in the time of its slow phases (HW IV.1): `ε y'' = (1 - y²) y' - y`, ε = μ⁻².

    From (2, -0.66) to t = 2 it makes two jumps.
    """
    epsilon = mu**-2

    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[1], ((1 - y[0] ** 2) * y[1] - y[0]) / epsilon])

    return Problem(f, _double(2.0, -0.66), [0.0, 0.5, 1.0, 1.5, 2.0], _double(1.0, 1.0))


def _robertson(until: float) -> Problem:
    """Robertson's three reactions (1966; HW, equation IV.1.4), whose rates lie nine powers of ten apart."""

    def f(t: Tensor, y: Tensor) -> Tensor:
        slow, fast, both = 0.04 * y[0], 3e7 * y[1] ** 2, 1e4 * y[1] * y[2]
        return torch.stack([both - slow, slow - both - fast, fast])

    return Problem(f, _double(1.0, 0.0, 0.0), [0.0, until / 4, until], _double(1.0, 1e-5, 1.0))


FAMILIES: dict[str, Callable[[float], Problem]] = {
    "relaxation": _relaxation,
    "Van der Pol": _van_der_pol,
    "Robertson": _robertson,
}
"""By name: what makes a problem of its parameter: the rate k, the damping μ, and the end of the interval."""


def problem(family: str, parameter: float) -> Problem:
    """A problem of a family.

    Raises:
        UnknownNameError: there is no such family.
    """
    if family not in FAMILIES:
        raise UnknownNameError("family of problems", family, FAMILIES)
    return FAMILIES[family](parameter)


def network_problem(f: Dynamics, y0: Tensor, until: float) -> Problem:
    """The problem whose dynamics are a network, with outputs in quarters of the interval."""
    return Problem(f, y0, [until * i / 4 for i in range(5)], torch.ones_like(y0))


@torch.no_grad()
def reference(given: Problem) -> Tensor:
    """The states at `times[1:]`: the closed form, or what SciPy's Radau finds at 1e-12."""
    if given.exact is not None:
        return given.exact
    how = {"method": ScipySolver("Radau"), "rtol": FINEST, "atol": FINEST * given.scale}
    found = solve(given.f, given.y0, given.times, **how).y  # type: ignore[arg-type]
    assert isinstance(found, Tensor)
    return found[1:]


def relative_error(found: Tensor, expected: Tensor, given: Problem) -> float:
    """The largest difference in any component at any time, over the component's size; infinite if not a number.

    Args:
        found, expected: states at `times[1:]`.
        given: the problem.
    """
    error = float(((found - expected).abs() / given.scale).max())
    return error if math.isfinite(error) else math.inf


def stiffness(given: Problem, states: Tensor) -> float:
    """The fastest rate of decay on the way, times the interval: how often a stiff solution forgets what it was.

    The largest `-Re λ` over the eigenvalues λ of the Jacobian at the start and at `states`. At least 0.

    Args:
        given: the problem.
        states: those at `times[1:]`.
    """
    fastest = 0.0
    for t, y in zip(given.times, [given.y0, *states], strict=True):
        time = torch.tensor(t, dtype=y.dtype)
        jacobian = torch.func.jacrev(partial(given.f, time))(y)
        rates = -torch.linalg.eigvals(jacobian).real
        fastest = max(fastest, rates.max().item())
    return fastest * (given.times[-1] - given.times[0])


def _double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
