"""Coefficients of Runge-Kutta methods: data only, each with its source.

A method with `s` stages advances `dy/dt = f(t, y)` by one step `h`:

    k_i = f(t + c_i h, y + h Σ_j a_ij k_j),    y_1 = y + h Σ_i b_i k_i.

An embedded pair has a second set of weights `b̂`; `h Σ_i (b_i - b̂_i) k_i` estimates the local error.
A continuous extension replaces `b_i` by polynomials `b_i(θ)`, `0 ≤ θ ≤ 1`, with `b_i(1) = b_i`.
(Hairer, Nørsett & Wanner, *Solving Ordinary Differential Equations I*, 2nd ed., sections II.1, II.4 and II.6.)
"""

from dataclasses import dataclass
from fractions import Fraction as F

__all__ = ["DOPRI5", "EULER", "MIDPOINT", "RK4", "ButcherTableau"]

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
        return len(self.c)

    @property
    def fsal(self) -> bool:
        """First same as last: the last stage is `f(t + h, y_1)`, the first stage of the next step."""
        return self.c[-1] == 1 and (*self.a[-1], F(0)) == self.b


EULER = ButcherTableau(
    name="euler",
    order=1,
    c=(F(0),),
    a=((),),
    b=(F(1),),
    source="Euler (1768); Hairer, Nørsett & Wanner I, section I.7",
)

MIDPOINT = ButcherTableau(
    name="midpoint",
    order=2,
    c=(F(0), F(1, 2)),
    a=((), (F(1, 2),)),
    b=(F(0), F(1)),
    source="Runge (1895); Hairer, Nørsett & Wanner I, section II.1",
)

# torchdiffeq's `rk4` is this method too, not the classical one.
RK4 = ButcherTableau(
    name="rk4",
    order=4,
    c=(F(0), F(1, 3), F(2, 3), F(1)),
    a=((), (F(1, 3),), (F(-1, 3), F(1)), (F(1), F(-1), F(1))),
    b=(F(1, 8), F(3, 8), F(3, 8), F(1, 8)),
    source="the 3/8 rule of Kutta (1901); Hairer, Nørsett & Wanner I, section II.1, table 1.2",
)


def _dopri5_dense(b: Row) -> tuple[Row, ...]:
    """Expand the nested form of the continuous extension into powers of θ.

    With `Δ = y_1 - y_0`, the extension is (Hairer, Nørsett & Wanner I, section II.6, and their code DOPRI5)

        y(θ) = y_0 + θ (Δ + (1-θ) ((h k_1 - Δ) + θ ((2Δ - h k_1 - h k_7) + (1-θ) h Σ d_i k_i))).
    """
    d = (
        F(-12715105075, 11282082432),
        F(0),
        F(87487479700, 32700410799),
        F(-10690763975, 1880347072),
        F(701980252875, 199316789632),
        F(-1453857185, 822651844),
        F(69997945, 29380423),
    )
    rows = []
    for i, (b_i, d_i) in enumerate(zip(b, d, strict=True)):
        slope = F(int(i == 0)) - b_i
        bend = b_i - slope - F(int(i == 6))
        rows.append((b_i + slope, bend - slope + d_i, -bend - 2 * d_i, d_i))
    return tuple(rows)


_DOPRI5_B = (F(35, 384), F(0), F(500, 1113), F(125, 192), F(-2187, 6784), F(11, 84), F(0))

DOPRI5 = ButcherTableau(
    name="dopri5",
    order=5,
    c=(F(0), F(1, 5), F(3, 10), F(4, 5), F(8, 9), F(1), F(1)),
    a=(
        (),
        (F(1, 5),),
        (F(3, 40), F(9, 40)),
        (F(44, 45), F(-56, 15), F(32, 9)),
        (F(19372, 6561), F(-25360, 2187), F(64448, 6561), F(-212, 729)),
        (F(9017, 3168), F(-355, 33), F(46732, 5247), F(49, 176), F(-5103, 18656)),
        _DOPRI5_B[:-1],
    ),
    b=_DOPRI5_B,
    b_error=(
        F(71, 57600),
        F(0),
        F(-71, 16695),
        F(71, 1920),
        F(-17253, 339200),
        F(22, 525),
        F(-1, 40),
    ),
    dense=_dopri5_dense(_DOPRI5_B),
    source="Dormand & Prince (1980); Hairer, Nørsett & Wanner I, section II.5, table 5.2; dense output II.6",
)
