"""What an explicit Runge-Kutta method is: its coefficients, as data.

A method with `s` stages advances `dy/dt = f(t, y)` by one step `h`:

    k_i = f(t + c_i h, y + h Σ_j a_ij k_j),    y_1 = y + h Σ_i b_i k_i.

An embedded pair has a second set of weights `b̂`; `h Σ_i (b_i - b̂_i) k_i` estimates the local error.
A continuous extension replaces `b_i` by polynomials `b_i(θ)`, `0 ≤ θ ≤ 1`, with `b_i(1) = b_i`.
(Hairer, Nørsett & Wanner, *Solving Ordinary Differential Equations I*, 2nd ed., sections II.1, II.4 and II.6.)
"""

from dataclasses import dataclass
from fractions import Fraction as F
from functools import cached_property

__all__ = ["ButcherTableau", "Row", "smooth_dense"]

Row = tuple[F, ...]


@dataclass(frozen=True)
class ButcherTableau:
    """An explicit Runge-Kutta method.

    Attributes:
        name: the usual name.
        order: order of the solution that is propagated.
        c: nodes, `s` numbers.
        a: strictly lower triangular matrix, row `i` with `i` entries.
        b: weights, `s` numbers.
        b_error: `b - b̂`, or `None` without an embedded method.
        dense: row `i` holds the coefficients of θ, θ², … in `b_i(θ)`, or `None` without a continuous extension.
        source: where the coefficients come from.
    """

    name: str
    order: int
    c: Row
    a: tuple[Row, ...]
    b: Row
    source: str
    b_error: Row | None = None
    dense: tuple[Row, ...] | None = None

    @property
    def stages(self) -> int:
        """How many slopes a step has, `s`."""
        return len(self.c)

    @cached_property
    def fsal(self) -> bool:
        """First same as last: the last stage is `f(t + h, y_1)`, the first stage of the next step."""
        return self.c[-1] == 1 and (*self.a[-1], F(0)) == self.b


def smooth_dense(b: Row, bends: tuple[Row, ...]) -> tuple[Row, ...]:
    """A continuous extension with continuous slopes, for methods that are first same as last.

    The cubic Hermite interpolant of `y_0`, `y_1` and their slopes `k_1`, `k_s`, plus a term that vanishes at both
    ends together with its slope (Hairer, Nørsett & Wanner I, section II.6):

        b_i(θ) = θ² (3 - 2θ) b_i + θ (1-θ)² δ_i1 - θ² (1-θ) δ_is + θ² (1-θ)² p_i(θ).

    Args:
        b: weights.
        bends: row `i` holds the coefficients of 1, θ, … in `p_i(θ)`.
    """
    rows = []
    for i, (b_i, bend) in enumerate(zip(b, bends, strict=True)):
        start, end = F(int(i == 0)), F(int(i == len(b) - 1))
        row = [start, 3 * b_i - 2 * start - end, start + end - 2 * b_i, *(F(0) for _ in bend)]
        for power, p in enumerate(bend, start=1):
            row[power] += p
            row[power + 1] -= 2 * p
            row[power + 2] += p
        rows.append(tuple(row))
    return tuple(rows)
