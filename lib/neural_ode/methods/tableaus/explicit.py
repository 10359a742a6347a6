"""Coefficients of explicit Runge-Kutta methods up to order 5: data only, each with its source.

Fractions are exact where the source is rational; where it is decimal, they are the decimals.
"""

from fractions import Fraction as F

from neural_ode.methods.tableaus.butcher import ButcherTableau, smooth_dense

__all__ = [
    "ADAPTIVE_HEUN",
    "BOSH3",
    "DOPRI5",
    "EULER",
    "FEHLBERG2",
    "HEUN2",
    "HEUN3",
    "MIDPOINT",
    "RK4",
    "TSIT5",
]

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


_FEHLBERG2_B = (F(1, 512), F(255, 256), F(1, 512), F(0))

# The fourth stage belongs to the dense output; as the first stage of the next step it costs nothing.
FEHLBERG2 = ButcherTableau(
    name="fehlberg2",
    order=2,
    c=(F(0), F(1, 2), F(1), F(1)),
    a=((), (F(1, 2),), (F(1, 256), F(255, 256)), _FEHLBERG2_B[:-1]),
    b=_FEHLBERG2_B,
    b_error=(F(-1, 512), F(0), F(1, 512), F(0)),
    dense=smooth_dense(_FEHLBERG2_B, ((),) * 4),
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
    dense=smooth_dense(_BOSH3_B, ((),) * 4),
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
    dense=smooth_dense(
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
    dense=smooth_dense(
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
