"""Coefficients of Runge-Kutta methods: data only, each with its source.

A method with `s` stages advances `dy/dt = f(t, y)` by one step `h`:

    k_i = f(t + c_i h, y + h Σ_j a_ij k_j),    y_1 = y + h Σ_i b_i k_i.

An embedded pair has a second set of weights `b̂`; `h Σ_i (b_i - b̂_i) k_i` estimates the local error.
A continuous extension replaces `b_i` by polynomials `b_i(θ)`, `0 ≤ θ ≤ 1`, with `b_i(1) = b_i`.
(Hairer, Nørsett & Wanner, *Solving Ordinary Differential Equations I*, 2nd ed., sections II.1, II.4 and II.6.)

Fractions are exact where the source is rational; where it is decimal, they are the decimals.
"""

from dataclasses import dataclass
from fractions import Fraction as F

__all__ = [
    "ADAPTIVE_HEUN",
    "BOSH3",
    "DOPRI5",
    "DOPRI8",
    "EULER",
    "FEHLBERG2",
    "HEUN2",
    "HEUN3",
    "MIDPOINT",
    "RK4",
    "TSIT5",
    "ButcherTableau",
]

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

HEUN2 = ButcherTableau(
    name="heun2",
    order=2,
    c=(F(0), F(1)),
    a=((), (F(1),)),
    b=(F(1, 2), F(1, 2)),
    source="Runge (1895), Heun (1900): the trapezoidal rule with Euler's method as its predictor",
)

HEUN3 = ButcherTableau(
    name="heun3",
    order=3,
    c=(F(0), F(1, 3), F(2, 3)),
    a=((), (F(1, 3),), (F(0), F(2, 3))),
    b=(F(1, 4), F(0), F(3, 4)),
    source="Heun (1900); Hairer, Nørsett & Wanner I, section II.1, table 1.1",
)

# Not first same as last, so its extension has the slope f(t, y) at the start of a step but not at the end.
ADAPTIVE_HEUN = ButcherTableau(
    name="adaptive_heun",
    order=2,
    c=(F(0), F(1)),
    a=((), (F(1),)),
    b=(F(1, 2), F(1, 2)),
    b_error=(F(-1, 2), F(1, 2)),
    dense=((F(1), F(-1, 2)), (F(0), F(1, 2))),
    source="Heun (1900) with Euler's method embedded; dense output of order 2, the only one from its two stages",
)


def _smooth_dense(b: Row, bends: tuple[Row, ...]) -> tuple[Row, ...]:
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


_FEHLBERG2_B = (F(1, 512), F(255, 256), F(1, 512), F(0))

# The fourth stage belongs to the dense output; as the first stage of the next step it costs nothing.
FEHLBERG2 = ButcherTableau(
    name="fehlberg2",
    order=2,
    c=(F(0), F(1, 2), F(1), F(1)),
    a=((), (F(1, 2),), (F(1, 256), F(255, 256)), _FEHLBERG2_B[:-1]),
    b=_FEHLBERG2_B,
    b_error=(F(-1, 512), F(0), F(1, 512), F(0)),
    dense=_smooth_dense(_FEHLBERG2_B, ((),) * 4),
    source="RKF1(2) of Fehlberg, NASA TR R-315 (1969), propagating order 2; cubic Hermite dense output",
)

_BOSH3_B = (F(2, 9), F(1, 3), F(4, 9), F(0))

BOSH3 = ButcherTableau(
    name="bosh3",
    order=3,
    c=(F(0), F(1, 2), F(3, 4), F(1)),
    a=((), (F(1, 2),), (F(0), F(3, 4)), _BOSH3_B[:-1]),
    b=_BOSH3_B,
    b_error=(F(-5, 72), F(1, 12), F(1, 9), F(-1, 8)),
    dense=_smooth_dense(_BOSH3_B, ((),) * 4),
    source="Bogacki & Shampine, Applied Mathematics Letters 2 (1989) 321-325; cubic Hermite dense output",
)

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
    # Shampine's embedded weights, which torchdiffeq and diffrax have too. The estimate is two thirds of that of
    # Dormand & Prince, so steps are 8 % longer at the same tolerance.
    b_error=tuple(
        F(2, 3) * e
        for e in (
            F(71, 57600),
            F(0),
            F(-71, 16695),
            F(71, 1920),
            F(-17253, 339200),
            F(22, 525),
            F(-1, 40),
        )
    ),
    dense=_smooth_dense(
        _DOPRI5_B,
        (
            (F(-12715105075, 11282082432),),
            (F(0),),
            (F(87487479700, 32700410799),),
            (F(-10690763975, 1880347072),),
            (F(701980252875, 199316789632),),
            (F(-1453857185, 822651844),),
            (F(69997945, 29380423),),
        ),
    ),
    source="Dormand & Prince (1980), error estimate Shampine (1986); Hairer, Nørsett & Wanner I, section II.5, "
    "table 5.2; dense output II.6",
)

# The numbers of the paper with more of their digits, so that the order conditions hold to 1e-22.
_TSIT5_B = (
    F("0.0964607668180652295181674"),
    F("0.01"),
    F("0.4798896504144995747752495"),
    F("1.3790085741037418931922748"),
    F("-3.2900695154360806799010476"),
    F("2.3247105240997739824153559"),
    F(0),
)

TSIT5 = ButcherTableau(
    name="tsit5",
    order=5,
    c=(F(0), F("0.161"), F("0.327"), F("0.9"), F("0.9800255409045096857298103"), F(1), F(1)),
    a=(
        (),
        (F("0.161"),),
        (
            F("-0.0084806554923569885444269"),
            F("0.3354806554923569885444269"),
        ),
        (
            F("2.8971530571054934321304326"),
            F("-6.3594484899750748431481599"),
            F("4.3622954328695814110177273"),
        ),
        (
            F("5.3258648284392566044288779"),
            F("-11.7488835640628278777471703"),
            F("7.4955393428898362083046048"),
            F("-0.0924950663617552492565021"),
        ),
        (
            F("5.8614554429464200286592515"),
            F("-12.9209693178471092917061187"),
            F("8.1593678985761586431804008"),
            F("-0.0715849732814009972245305"),
            F("-0.0282690503940683829090031"),
        ),
        _TSIT5_B[:-1],
    ),
    b=_TSIT5_B,
    b_error=(
        F("0.0017800110522257714433786"),
        F("0.0008164344596567469032236"),
        F("-0.0078808780102619960103147"),
        F("0.1447110071732629075371651"),
        F("-0.5823571654525552250199376"),
        F("0.4580821059291869466616365"),
        F(-1, 66),
    ),
    dense=_smooth_dense(
        _TSIT5_B,
        (
            (F("-1.0530884977290215572274903"),),
            (F("0.1017"),),
            (F("2.4906272856512527930835451"),),
            (F("-16.548102889244902718307298"),),
            (F("47.379521962819281218681582"),),
            (F("-34.870657861496609736230339"),),
            (F("2.5"),),
        ),
    ),
    source="Tsitouras, Computers & Mathematics with Applications 62 (2011) 770-775; its dense output of order 4",
)

# The 13 stages of the paper and a fourteenth, f(t + h, y_1), for the dense output; as the first stage of the next
# step it costs nothing. The fractions of the paper are approximations: the order conditions hold to 1e-17.
_DOPRI8_B = (
    F(14005451, 335480064),
    F(0),
    F(0),
    F(0),
    F(0),
    F(-59238493, 1068277825),
    F(181606767, 758867731),
    F(561292985, 797845732),
    F(-1041891430, 1371343529),
    F(760417239, 1151165299),
    F(118820643, 751138087),
    F(-528747749, 2220607170),
    F(1, 4),
    F(0),
)
_DOPRI8_EMBEDDED = (
    F(13451932, 455176623),
    F(0),
    F(0),
    F(0),
    F(0),
    F(-808719846, 976000145),
    F(1757004468, 5645159321),
    F(656045339, 265891186),
    F(-3867574721, 1518517206),
    F(465885868, 322736535),
    F(53011238, 667516719),
    F(2, 45),
    F(0),
    F(0),
)

# The dense output has order 5, the highest possible: for order 6 the stages contradict each other. Order 5 asks for
# b_2(θ) = … = b_5(θ) = 0 and Σ b_i(θ) c_i^(q-1) = θ^q / q with q = 1 … 5. Of the polynomials of degree 6 that
# do so and join smoothly, these minimise
#
#     ∫ |e_6(θ)|² + |e_7(θ)|² / 4 + |e_8(θ)|² / 16 dθ + 1e-16 Σ_i |p_i|²,
#
# where e_q holds (Σ_i b_i(θ) Φ_i(τ) - θ^q / γ(τ)) / σ(τ) for the trees τ of order q (section II.2; σ is the
# symmetry) and |p_i| is the norm of the coefficients of p_i. The integral weighs the orders as a step of half the
# time scale of the solution does; the last term selects moderate coefficients among nearly equal ones.
_NO_BEND = (F(0), F(0), F(0))
_DOPRI8_BENDS = (
    (F("-4.828388002408717660"), F("9.654487359128169879"), F("-6.338036954236431725")),
    _NO_BEND,
    _NO_BEND,
    _NO_BEND,
    _NO_BEND,
    (F("-6.321733847545700831"), F("42.754515018475809356"), F("-40.505822924844497551")),
    (F("10.012221039289163914"), F("-27.311002073855191730"), F("20.363329586827886137")),
    (F("-5.159563878407686325"), F("-10.948509178859129747"), F("10.751516242591809514")),
    (F("11.305800584129180549"), F("-18.851588711663290714"), F("27.574423721848318563")),
    (F("-5.182622111881272358"), F("1.282124665753477669"), F("-7.037375803611168658")),
    (F("-1.343267833476719359"), F("6.878560396392446749"), F("-13.181274265842770836")),
    (F("3.867179636930958377"), F("-22.026313921658603959"), F("33.285776496694860164")),
    (F("-4.132093845981809709"), F("23.607677146613193632"), F("-36.168850976285066149")),
    (F("1.782468259352603403"), F("-5.039950700326881136"), F("11.256314876857060542")),
)

DOPRI8 = ButcherTableau(
    name="dopri8",
    order=8,
    c=(
        F(0),
        F(1, 18),
        F(1, 12),
        F(1, 8),
        F(5, 16),
        F(3, 8),
        F(59, 400),
        F(93, 200),
        F(5490023248, 9719169821),
        F(13, 20),
        F(1201146811, 1299019798),
        F(1),
        F(1),
        F(1),
    ),
    a=(
        (),
        (F(1, 18),),
        (F(1, 48), F(1, 16)),
        (F(1, 32), F(0), F(3, 32)),
        (F(5, 16), F(0), F(-75, 64), F(75, 64)),
        (F(3, 80), F(0), F(0), F(3, 16), F(3, 20)),
        (
            F(29443841, 614563906),
            F(0),
            F(0),
            F(77736538, 692538347),
            F(-28693883, 1125000000),
            F(23124283, 1800000000),
        ),
        (
            F(16016141, 946692911),
            F(0),
            F(0),
            F(61564180, 158732637),
            F(22789713, 633445777),
            F(545815736, 2771057229),
            F(-180193667, 1043307555),
        ),
        (
            F(39632708, 573591083),
            F(0),
            F(0),
            F(-433636366, 683701615),
            F(-421739975, 2616292301),
            F(100302831, 723423059),
            F(790204164, 839813087),
            F(800635310, 3783071287),
        ),
        (
            F(246121993, 1340847787),
            F(0),
            F(0),
            F(-37695042795, 15268766246),
            F(-309121744, 1061227803),
            F(-12992083, 490766935),
            F(6005943493, 2108947869),
            F(393006217, 1396673457),
            F(123872331, 1001029789),
        ),
        (
            F(-1028468189, 846180014),
            F(0),
            F(0),
            F(8478235783, 508512852),
            F(1311729495, 1432422823),
            F(-10304129995, 1701304382),
            F(-48777925059, 3047939560),
            F(15336726248, 1032824649),
            F(-45442868181, 3398467696),
            F(3065993473, 597172653),
        ),
        (
            F(185892177, 718116043),
            F(0),
            F(0),
            F(-3185094517, 667107341),
            F(-477755414, 1098053517),
            F(-703635378, 230739211),
            F(5731566787, 1027545527),
            F(5232866602, 850066563),
            F(-4093664535, 808688257),
            F(3962137247, 1805957418),
            F(65686358, 487910083),
        ),
        (
            F(403863854, 491063109),
            F(0),
            F(0),
            F(-5068492393, 434740067),
            F(-411421997, 543043805),
            F(652783627, 914296604),
            F(11173962825, 925320556),
            F(-13158990841, 6184727034),
            F(3936647629, 1978049680),
            F(-160528059, 685178525),
            F(248638103, 1413531060),
            F(0),
        ),
        _DOPRI8_B[:-1],
    ),
    b=_DOPRI8_B,
    b_error=tuple(b - embedded for b, embedded in zip(_DOPRI8_B, _DOPRI8_EMBEDDED, strict=True)),
    dense=_smooth_dense(_DOPRI8_B, _DOPRI8_BENDS),
    source="RK8(7)13M of Prince & Dormand, Journal of Computational and Applied Mathematics 7 (1981) 67-75; dense "
    "output of order 5, derived for this library",
)
