"""Linear stability of Runge-Kutta methods, from their tableaus alone.

On `y' = λ y` a step multiplies the state by R(z), `z = h λ`, with the *stability function*

    R(z) = 1 + z bᵀ (I − z A)⁻¹ 1

(Hairer & Wanner, *Solving Ordinary Differential Equations II*, 2nd ed., equation IV.3.2). A decaying solution
decays in the numbers too where |R(z)| ≤ 1.
"""

import math
from typing import Any, Protocol

import numpy as np

__all__ = ["real_stability_limit", "stability_function"]

FARTHEST = 1e8
"""A method that is stable so far out counts as stable without a limit."""

PER_DECADE = 500

ROUNDING = 1e-9


class Tableau(Protocol):
    """What is needed of a tableau: its matrix and its weights, numbers of any kind."""

    @property
    def a(self) -> Any:
        """A row for each stage; the rows of an explicit method may be short."""

    @property
    def b(self) -> Any:
        """A weight for each stage."""


def stability_function(tableau: Tableau, z: complex) -> complex:
    """R(z): what a step makes of `y' = λ y`, `z = h λ`, from 1."""
    weights = np.array([float(x) for x in tableau.b])
    stages = len(weights)
    matrix = np.zeros((stages, stages), dtype=complex)
    for row, given in zip(matrix, tableau.a, strict=True):
        row[: len(given)] = [float(x) for x in given]
    return complex(1 + z * weights @ np.linalg.solve(np.eye(stages) - z * matrix, np.ones(stages)))


def real_stability_limit(tableau: Tableau) -> float:
    """The longest `h |λ|`, for real λ < 0, up to which all steps are stable; infinite for an A-stable method.

    An explicit method needs so many steps as `|λ|` times the interval goes into it, however smooth the solution.
    """

    def unstable(length: float) -> bool:
        return abs(stability_function(tableau, -length)) > 1 + ROUNDING

    decades = math.log10(FARTHEST) + 2
    lengths = np.logspace(-2, math.log10(FARTHEST), round(decades * PER_DECADE))
    first = next((i for i, length in enumerate(lengths) if unstable(length)), None)
    if first is None:
        return math.inf
    if first == 0:
        return 0.0
    low, high = lengths[first - 1], lengths[first]
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if unstable(middle) else (middle, high)
    return float(low)
