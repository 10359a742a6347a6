"""Coefficients of implicit Runge-Kutta methods: data only, each with its source.

As in `tableaus`, but a stage may depend on itself and on later ones:

    k_i = f(t + c_i h, y + h Σ_j a_ij k_j),  j = 1 … s,    y_1 = y + h Σ_i b_i k_i.

A method is stiffly accurate if `b` is the last row of `a`: then `y_1` is the last stage, which solves a stiff
equation however long the step is. (Hairer & Wanner, *Solving Ordinary Differential Equations II*, 2nd ed., cited as
HW, sections IV.3, IV.5 and IV.6.)

Roots and decimals are fractions with more digits than float64 has.
"""

from dataclasses import dataclass
from decimal import Context, Decimal
from fractions import Fraction as F

from neural_ode.methods.tableaus.butcher import Row, smooth_dense

__all__ = [
    "GL4",
    "GL6",
    "IMPLICIT_EULER",
    "IMPLICIT_MIDPOINT",
    "KVAERNO3",
    "KVAERNO5",
    "RADAU_IIA3",
    "RADAU_IIA5",
    "SDIRK2",
    "TRAPEZOID",
    "TRBDF2",
    "ImplicitTableau",
]


@dataclass(frozen=True)
class ImplicitTableau:
    """An implicit Runge-Kutta method with a continuous extension.

    Attributes:
        name: the usual name.
        order: order of the solution that is propagated.
        c: nodes, `s` numbers.
        a: matrix, `s` rows of `s` entries.
        b: weights, `s` numbers.
        dense: row `i` holds the coefficients of θ, θ², … in `b_i(θ)`.
        source: where the coefficients come from.
        b_error: `b - b̂`, or `None` without an embedded method.
    """

    name: str
    order: int
    c: Row
    a: tuple[Row, ...]
    b: Row
    dense: tuple[Row, ...]
    source: str
    b_error: Row | None = None

    @property
    def stages(self) -> int:
        """How many slopes a step has, `s`."""
        return len(self.c)

    @property
    def stiffly_accurate(self) -> bool:
        """The last stage is the new state (Hairer & Wanner II, section IV.3): what is stiff is damped at once."""
        return self.c[-1] == 1 and self.a[-1] == self.b


def _sqrt(n: int) -> F:
    return F(Decimal(n).sqrt(Context(prec=40)))


def _integrated_lagrange(nodes: Row) -> tuple[Row, ...]:
    """Coefficients of θ, θ², … in `∫_0^θ l_i`, where the polynomial `l_i` is 1 at node `i` and 0 at the others."""
    rows = []
    for i, node in enumerate(nodes):
        polynomial = [F(1)]
        for other in nodes[:i] + nodes[i + 1 :]:
            shifted = zip([F(0), *polynomial], [*polynomial, F(0)], strict=True)
            polynomial = [(lower - other * same) / (node - other) for lower, same in shifted]
        rows.append(tuple(coefficient / power for power, coefficient in enumerate(polynomial, start=1)))
    return tuple(rows)


def _evaluated(row: Row, theta: F) -> F:
    return sum((coefficient * theta**power for power, coefficient in enumerate(row, start=1)), F(0))


def _collocation(name: str, order: int, nodes: Row, source: str) -> ImplicitTableau:
    """The method whose steps follow the polynomial that satisfies the equation at the nodes.

    With the Lagrange polynomials `l_j` of the nodes, `b_j(θ) = ∫_0^θ l_j` and `a_ij = b_j(c_i)` (Hairer, Nørsett &
    Wanner I, section II.7). The extension `b_j(θ)` is the polynomial itself: its error inside a step is of order
    `s + 1`, while at the end of the step it is of the higher order of the method.
    """
    dense = _integrated_lagrange(nodes)
    return ImplicitTableau(
        name=name,
        order=order,
        c=nodes,
        a=tuple(tuple(_evaluated(row, node) for row in dense) for node in nodes),
        b=tuple(_evaluated(row, F(1)) for row in dense),
        dense=dense,
        source=source,
    )


IMPLICIT_EULER = _collocation("implicit_euler", 1, (F(1),), "HW, section IV.1; the Radau IIA method of order 1")

IMPLICIT_MIDPOINT = _collocation(
    "implicit_midpoint", 2, (F(1, 2),), "HW, section IV.3; the Gauss-Legendre method of order 2"
)

TRAPEZOID = _collocation("trapezoid", 2, (F(0), F(1)), "HW, section IV.3; the Lobatto IIIA method of order 2")

GL4 = _collocation(
    "gl4",
    4,
    (F(1, 2) - _sqrt(3) / 6, F(1, 2) + _sqrt(3) / 6),
    "Gauss-Legendre (Kuntzmann 1961, Butcher 1964); HW, section IV.5",
)

GL6 = _collocation(
    "gl6",
    6,
    (F(1, 2) - _sqrt(15) / 10, F(1, 2), F(1, 2) + _sqrt(15) / 10),
    "Gauss-Legendre (Kuntzmann 1961, Butcher 1964); HW, section IV.5",
)

RADAU_IIA3 = _collocation("radauIIA3", 3, (F(1, 3), F(1)), "Ehle (1969); HW, section IV.5")

RADAU_IIA5 = _collocation(
    "radauIIA5",
    5,
    ((4 - _sqrt(6)) / 10, (4 + _sqrt(6)) / 10, F(1)),
    "Ehle (1969); HW, section IV.5",
)

_SDIRK2_GAMMA = 1 - _sqrt(2) / 2

# An extension of order 2 has Σ b_i(θ) = θ and Σ b_i(θ) c_i = θ²/2, which determine it where there are two nodes.
SDIRK2 = ImplicitTableau(
    name="sdirk2",
    order=2,
    c=(_SDIRK2_GAMMA, F(1)),
    a=((_SDIRK2_GAMMA, F(0)), (1 - _SDIRK2_GAMMA, _SDIRK2_GAMMA)),
    b=(1 - _SDIRK2_GAMMA, _SDIRK2_GAMMA),
    dense=_integrated_lagrange((_SDIRK2_GAMMA, F(1))),
    source="Alexander, SIAM J. Numer. Anal. 14 (1977) 1006-1021; the only dense output of order 2",
)

_TRBDF2_B = (_sqrt(2) / 4, _sqrt(2) / 4, _SDIRK2_GAMMA)

TRBDF2 = ImplicitTableau(
    name="trbdf2",
    order=2,
    c=(F(0), 2 * _SDIRK2_GAMMA, F(1)),
    a=((F(0), F(0), F(0)), (_SDIRK2_GAMMA, _SDIRK2_GAMMA, F(0)), _TRBDF2_B),
    b=_TRBDF2_B,
    dense=smooth_dense(_TRBDF2_B, ((),) * 3),
    source="Bank et al. (1985), as a Runge-Kutta method by Hosea & Shampine, Appl. Numer. Math. 20 (1996) 21-37; "
    "cubic Hermite dense output",
)

# The root of 6 γ³ - 18 γ² + 9 γ - 1 that makes the method L-stable (HW, section IV.6).
_G3 = F("0.435866521508458999416019451194")
_KVAERNO3_EMBEDDED = ((-4 * _G3**2 + 6 * _G3 - 1) / (4 * _G3), (1 - 2 * _G3) / (4 * _G3), _G3, F(0))
_KVAERNO3_B = (
    (6 * _G3 - 1) / (12 * _G3),
    -1 / (12 * _G3 * (2 * _G3 - 1)),
    (-6 * _G3**2 + 6 * _G3 - 1) / (3 * (2 * _G3 - 1)),
    _G3,
)

KVAERNO3 = ImplicitTableau(
    name="kvaerno3",
    order=3,
    c=(F(0), 2 * _G3, F(1), F(1)),
    a=((F(0),) * 4, (_G3, _G3, F(0), F(0)), _KVAERNO3_EMBEDDED, _KVAERNO3_B),
    b=_KVAERNO3_B,
    b_error=tuple(b - embedded for b, embedded in zip(_KVAERNO3_B, _KVAERNO3_EMBEDDED, strict=True)),
    dense=smooth_dense(_KVAERNO3_B, ((),) * 4),
    source="Kværnø, BIT 44 (2004) 489-502, the pair of orders 3 and 2; cubic Hermite dense output, of order 3",
)

_G5 = F("0.26")
_KVAERNO5_EMBEDDED = (
    F("0.13855640231268224"),
    F(0),
    F("-0.04245337201752043"),
    F("0.02446657898003141"),
    F("0.61943039072480676"),
    _G5,
    F(0),
)
_KVAERNO5_B = (
    F("0.13659751177640291"),
    F(0),
    F("-0.05496908796538376"),
    F("-0.04118626728321046"),
    F("0.62993304899016403"),
    F("0.06962479448202728"),
    _G5,
)
_KVAERNO5_A = (
    (F(0),) * 7,
    (_G5, _G5, *(F(0),) * 5),
    (F("0.13"), F("0.84033320996790809"), _G5, *(F(0),) * 4),
    (F("0.22371961478320505"), F("0.47675532319799699"), F("-0.06470895363112615"), _G5, *(F(0),) * 3),
    (
        F("0.16648564323248321"),
        F("0.10450018841591720"),
        F("0.03631482272098715"),
        F("-0.13090704451073998"),
        _G5,
        F(0),
        F(0),
    ),
    _KVAERNO5_EMBEDDED,
    _KVAERNO5_B,
)

# The p_i(θ) of `smooth_dense`, constants here. Order 4 asks for Σ p_i c_i^q = 0, q = 0, 1, 2, Σ p_i c_i³ = 1/4 and
# p_2 = 0. The first slope, which no equation damps, can be large in a stiff problem. There it enters Σ p_i k_i with
# the weight p_1 - Σ_i p_i (Â^(-1) a)_i, where Â is the matrix without its first row and column `a`: zero here. What
# is left free minimises the squared errors of order 5, integrated over θ.
_KVAERNO5_BENDS = (
    (F("-0.49343340383472230988"),),
    (F(0),),
    (F("0.93349607093083811997"),),
    (F("-0.93191456264921336858"),),
    (F("1.4293410464174860066"),),
    (F("1.0956055129687490876"),),
    (F("-2.0330946638331375357"),),
)

KVAERNO5 = ImplicitTableau(
    name="kvaerno5",
    order=5,
    c=tuple(sum(row, F(0)) for row in _KVAERNO5_A),
    a=_KVAERNO5_A,
    b=_KVAERNO5_B,
    b_error=tuple(b - embedded for b, embedded in zip(_KVAERNO5_B, _KVAERNO5_EMBEDDED, strict=True)),
    dense=smooth_dense(_KVAERNO5_B, _KVAERNO5_BENDS),
    source="Kværnø, BIT 44 (2004) 489-502, the pair of orders 5 and 4; dense output of order 4, derived for this "
    "library",
)
