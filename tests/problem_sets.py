"""The classical sets of test problems for solvers of ordinary differential equations.

The 25 problems of DETEST, which are not stiff: five classes, from single equations to orbits and equations of the
second order. T. E. Hull, W. H. Enright, B. M. Fellen & A. E. Sedgwick, Comparing numerical methods for ordinary
differential equations, SIAM J. Numer. Anal. 9 (1972) 603–637; W. H. Enright & J. D. Pryce, Two FORTRAN packages for
assessing initial value methods, ACM Trans. Math. Softw. 13 (1987) 1–27.

Three stiff problems: E. Hairer & G. Wanner, Solving Ordinary Differential Equations II, sections IV.1 and IV.10,
with the end points and reference solutions of F. Mazzia & C. Magherini, Test Set for Initial Value Problem Solvers,
release 2.4 (2008).

All states are vectors in float64.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import scipy.special
import torch
from torch import Tensor

__all__ = ["DETEST", "STIFF", "Problem", "five_bodies_integrals"]


@dataclass(frozen=True)
class Problem:
    """An initial value problem that starts at t = 0.

    Attributes:
        name: in the papers.
        title: what it is about.
        f: the dynamics.
        y0: the initial state.
        end: the last time.
        exact: the solution at times of shape (n,), shape (n, *y0.shape), where a closed form is known.
        final: the state at the end, where a reference solution is known.
    """

    name: str
    title: str
    f: Callable[[Tensor, Tensor], Tensor]
    y0: Tensor
    end: float = 20.0
    exact: Callable[[Tensor], Tensor] | None = None
    final: Tensor | None = None


def _vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _stack(*rows: Tensor) -> Tensor:
    return torch.stack(rows, dim=-1)


# A: single equations


def _a1(t: Tensor, y: Tensor) -> Tensor:
    return -y


def _a2(t: Tensor, y: Tensor) -> Tensor:
    return -(y**3) / 2


def _a3(t: Tensor, y: Tensor) -> Tensor:
    return y * torch.cos(t)


def _a4(t: Tensor, y: Tensor) -> Tensor:
    return y / 4 * (1 - y / 20)


def _a5(t: Tensor, y: Tensor) -> Tensor:
    return (y - t) / (y + t)


def _a5_exact(t: Tensor) -> Tensor:
    """In polar coordinates `t = r cos φ`, `y = r sin φ` it is `r = 4 exp(π/2 - φ)`; bisection for φ."""
    low, high = torch.full_like(t, -math.pi / 4), torch.full_like(t, math.pi / 2)
    for _ in range(60):
        middle = (low + high) / 2
        beyond = 4 * torch.exp(math.pi / 2 - middle) * torch.cos(middle) > t
        low, high = torch.where(beyond, middle, low), torch.where(beyond, high, middle)
    return _stack(4 * torch.exp(math.pi / 2 - low) * torch.sin(low))


# B: small systems


def _b1(t: Tensor, y: Tensor) -> Tensor:
    return _stack(2 * (y[0] - y[0] * y[1]), -(y[1] - y[0] * y[1]))


_B2 = torch.tensor([[-1, 1, 0], [1, -2, 1], [0, 1, -1]], dtype=torch.float64)


def _b2_exact(t: Tensor) -> Tensor:
    """The eigenvalues are 0, -1 and -3, with the eigenvectors (1, 1, 1), (1, 0, -1) and (1, -2, 1)."""
    slow, fast = torch.exp(-t) / 2, torch.exp(-3 * t) / 2
    return _stack(1 + slow + fast, 1 - 2 * fast, 1 - slow + fast)


def _b3(t: Tensor, y: Tensor) -> Tensor:
    return _stack(-y[0], y[0] - y[1] ** 2, y[1] ** 2)


def _b4(t: Tensor, y: Tensor) -> Tensor:
    r = torch.sqrt(y[0] ** 2 + y[1] ** 2)
    return _stack(-y[1] - y[0] * y[2] / r, y[0] - y[1] * y[2] / r, y[0] / r)


def _b4_exact(t: Tensor) -> Tensor:
    r = 2 + torch.cos(t)
    return _stack(r * torch.cos(t), r * torch.sin(t), torch.sin(t))


def _b5(t: Tensor, y: Tensor) -> Tensor:
    return _stack(y[1] * y[2], -y[0] * y[2], -0.51 * y[0] * y[1])


def _b5_exact(t: Tensor) -> Tensor:
    """The elliptic functions of Jacobi with the parameter 0.51."""
    sn, cn, dn, _ = scipy.special.ellipj(t.numpy(), 0.51)
    return _stack(torch.as_tensor(sn), torch.as_tensor(cn), torch.as_tensor(dn))


# C: moderate systems


def _chain(rates: Tensor) -> Tensor:
    """What decays from one entry arrives at the next; the last is stable."""
    n = len(rates) + 1
    matrix = torch.zeros(n, n, dtype=torch.float64)
    matrix[range(n - 1), range(n - 1)] = -rates
    matrix[range(1, n), range(n - 1)] = rates
    return matrix


def _second_difference(n: int) -> Tensor:
    ones = torch.ones(n - 1, dtype=torch.float64)
    return torch.diag(ones, 1) + torch.diag(ones, -1) - 2 * torch.eye(n, dtype=torch.float64)


def _linear(matrix: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return matrix @ y


def _first_unit(n: int) -> Tensor:
    return torch.eye(n, dtype=torch.float64)[0]


def _c1_exact(t: Tensor) -> Tensor:
    """Poisson probabilities; the last entry has the rest."""
    first = [torch.exp(-t) * t**k / math.factorial(k) for k in range(9)]
    return _stack(*first, 1 - sum(first))


def _c2_exact(t: Tensor) -> Tensor:
    """Probabilities of the birth process of Yule; the last entry has the rest."""
    first = [torch.exp(-t) * (1 - torch.exp(-t)) ** k for k in range(9)]
    return _stack(*first, 1 - sum(first))


def _diffusion_exact(n: int, t: Tensor) -> Tensor:
    """The eigenvectors of the second difference are sines."""
    k = torch.arange(1, n + 1, dtype=torch.float64)
    sines = torch.sin(math.pi * k * k[:, None] / (n + 1))
    decay = torch.exp(-4 * torch.sin(math.pi * k / (2 * (n + 1))) ** 2 * t[:, None])
    return 2 / (n + 1) * (decay * sines[0]) @ sines


# C5: the sun and five planets; lengths in astronomical units, times in 100 days, positions relative to the sun
_GRAVITATION = 2.95912208286
_SUN = 1.00000597682
_PLANETS = _vector(
    0.954786104043e-3,  # Jupiter
    0.285583733151e-3,  # Saturn
    0.437273164546e-4,  # Uranus
    0.517759138449e-4,  # Neptune
    0.277777777778e-5,  # Pluto
)
_POSITIONS = _vector(
    *(3.42947415189, 3.35386959711, 1.35494901715),
    *(6.64145542550, 5.97156957878, 2.18231499728),
    *(11.2630437207, 14.6952576794, 6.27960525067),
    *(-30.1552268759, 1.65699966404, 1.43785752721),
    *(-21.1238353380, 28.4465098142, 15.3882659679),
)
_VELOCITIES = _vector(
    *(-0.557160570446, 0.505696783289, 0.230578543901),
    *(-0.415570776342, 0.365682722812, 0.169143213293),
    *(-0.325325669158, 0.189706021964, 0.0877265322780),
    *(-0.0240476254170, -0.287659532608, -0.117219543175),
    *(-0.176860753121, -0.216393453025, -0.0148647893090),
)


def _c5(t: Tensor, y: Tensor) -> Tensor:
    r = y[:15].reshape(5, 3)
    to_sun = torch.linalg.vector_norm(r, dim=1) ** 3
    difference = r - r[:, None]  # from the first planet to the second
    cubes = (difference**2).sum(2).fill_diagonal_(1) ** 1.5
    pull = (_PLANETS[:, None] * difference / cubes[..., None]).sum(1)
    # The frame falls towards the planets with the sun. A planet's own part of that is the mass added to the sun's.
    fall = (_PLANETS[:, None] * r / to_sun[:, None]).sum(0)
    acceleration = _GRAVITATION * (pull - _SUN * r / to_sun[:, None] - fall)
    return torch.cat([y[15:], acceleration.reshape(-1)])


def five_bodies_integrals(y: Tensor) -> Tensor:
    """Energy and angular momentum of C5 with respect to the centre of mass, shape (4,)."""
    masses = torch.cat([_vector(_SUN), _PLANETS])
    r, v = (torch.cat([torch.zeros(1, 3).to(part), part]) for part in (y[:15].reshape(5, 3), y[15:].reshape(5, 3)))
    r, v = (part - masses @ part / masses.sum() for part in (r, v))
    kinetic = (masses * (v**2).sum(1)).sum() / 2
    one, two = torch.triu_indices(6, 6, 1)
    potential = -_GRAVITATION * (masses[one] * masses[two] / torch.linalg.vector_norm(r[one] - r[two], dim=1)).sum()
    momentum = (masses[:, None] * torch.linalg.cross(r, v)).sum(0)
    return torch.cat([(kinetic + potential).reshape(1), momentum])


# D: orbits, from nearly round to very long ones


def _orbit(t: Tensor, y: Tensor) -> Tensor:
    cube = (y[0] ** 2 + y[1] ** 2) ** 1.5
    return _stack(y[2], y[3], -y[0] / cube, -y[1] / cube)


def _orbit_exact(eccentricity: float, t: Tensor) -> Tensor:
    """Kepler's equation `E - e sin E = t`, by Newton's method from the start of Danby (1987)."""
    e = eccentricity
    anomaly = t + 0.85 * e * torch.sign(torch.sin(t))
    for _ in range(20):
        anomaly = anomaly - (anomaly - e * torch.sin(anomaly) - t) / (1 - e * torch.cos(anomaly))
    cos, sin = torch.cos(anomaly), torch.sin(anomaly)
    rate, minor = 1 / (1 - e * cos), math.sqrt(1 - e**2)
    return _stack(cos - e, minor * sin, -sin * rate, minor * cos * rate)


def _orbit_problem(number: int, e: float) -> Problem:
    y0 = _vector(1 - e, 0, 0, math.sqrt((1 + e) / (1 - e)))
    return Problem(f"D{number}", f"orbit of eccentricity {e}", _orbit, y0, exact=partial(_orbit_exact, e))


# E: equations of the second order


def _e1(t: Tensor, y: Tensor) -> Tensor:
    return _stack(y[1], -(y[1] / (t + 1) + (1 - 0.25 / (t + 1) ** 2) * y[0]))


def _e1_exact(t: Tensor) -> Tensor:
    """The Bessel function of order 1/2 is elementary."""
    x = t + 1
    scale = torch.sqrt(2 / (math.pi * x))
    return _stack(scale * torch.sin(x), scale * (torch.cos(x) - torch.sin(x) / (2 * x)))


def _van_der_pol(mu: float, t: Tensor, y: Tensor) -> Tensor:
    return _stack(y[1], mu * (1 - y[0] ** 2) * y[1] - y[0])


def _e3(t: Tensor, y: Tensor) -> Tensor:
    return _stack(y[1], y[0] ** 3 / 6 - y[0] + 2 * torch.sin(2.78535 * t))


def _e4(t: Tensor, y: Tensor) -> Tensor:
    return _stack(y[1], 0.032 - 0.4 * y[1] ** 2)


def _e4_exact(t: Tensor) -> Tensor:
    terminal = math.sqrt(0.032 / 0.4)
    x = 0.4 * terminal * t
    return _stack(30 + torch.log(torch.cosh(x)) / 0.4, terminal * torch.tanh(x))


def _e5(t: Tensor, y: Tensor) -> Tensor:
    return _stack(y[1], torch.sqrt(1 + y[1] ** 2) / (25 - t))


def _e5_exact(t: Tensor) -> Tensor:
    s = 25 - t
    return _stack(12.5 * torch.log(25 / s) - (625 - s**2) / 100, (25 / s - s / 25) / 2)


def _problem(
    name: str,
    title: str,
    f: Callable[[Tensor, Tensor], Tensor],
    y0: Tensor,
    exact: Callable[[Tensor], Tensor] | None = None,
) -> Problem:
    return Problem(name, title, f, y0, exact=exact)


DETEST: dict[str, Problem] = {
    problem.name: problem
    for problem in (
        _problem("A1", "exponential decay", _a1, _vector(1), lambda t: _stack(torch.exp(-t))),
        _problem("A2", "a Riccati equation", _a2, _vector(1), lambda t: _stack(1 / torch.sqrt(1 + t))),
        _problem("A3", "an oscillation", _a3, _vector(1), lambda t: _stack(torch.exp(torch.sin(t)))),
        _problem("A4", "a logistic curve", _a4, _vector(1), lambda t: _stack(20 / (1 + 19 * torch.exp(-t / 4)))),
        _problem("A5", "a spiral", _a5, _vector(4), _a5_exact),
        _problem("B1", "two populations in conflict", _b1, _vector(1, 3)),
        _problem("B2", "a linear chemical reaction", partial(_linear, _B2), _vector(2, 0, 1), _b2_exact),
        _problem("B3", "a nonlinear chemical reaction", _b3, _vector(1, 0, 0)),
        _problem("B4", "a curve on a torus", _b4, _vector(3, 0, 0), _b4_exact),
        _problem("B5", "a rigid body without forces", _b5, _vector(0, 1, 1), _b5_exact),
        _problem(
            "C1",
            "radioactive decay, equal rates",
            partial(_linear, _chain(_vector(*[1] * 9))),
            _first_unit(10),
            _c1_exact,
        ),
        _problem(
            "C2",
            "radioactive decay, growing rates",
            partial(_linear, _chain(_vector(*range(1, 10)))),
            _first_unit(10),
            _c2_exact,
        ),
        _problem(
            "C3",
            "diffusion, 10 points",
            partial(_linear, _second_difference(10)),
            _first_unit(10),
            partial(_diffusion_exact, 10),
        ),
        _problem(
            "C4",
            "diffusion, 51 points",
            partial(_linear, _second_difference(51)),
            _first_unit(51),
            partial(_diffusion_exact, 51),
        ),
        _problem("C5", "the outer planets", _c5, torch.cat([_POSITIONS, _VELOCITIES])),
        *(_orbit_problem(i + 1, e) for i, e in enumerate((0.1, 0.3, 0.5, 0.7, 0.9))),
        _problem("E1", "the equation of Bessel", _e1, _vector(0.6713967071418030, 0.09540051444747446), _e1_exact),
        _problem("E2", "the equation of Van der Pol", partial(_van_der_pol, 1.0), _vector(2, 0)),
        _problem("E3", "the equation of Duffing", _e3, _vector(0, 0)),
        _problem("E4", "a falling body", _e4, _vector(30, 0), _e4_exact),
        _problem("E5", "a pursuit", _e5, _vector(0, 0), _e5_exact),
    )
}


def _robertson(t: Tensor, y: Tensor) -> Tensor:
    slow, medium, fast = 0.04 * y[0], 1e4 * y[1] * y[2], 3e7 * y[1] ** 2
    return _stack(medium - slow, slow - medium - fast, fast)


def _hires(t: Tensor, y: Tensor) -> Tensor:
    bound = 280 * y[5] * y[7]
    return _stack(
        -1.71 * y[0] + 0.43 * y[1] + 8.32 * y[2] + 0.0007,
        1.71 * y[0] - 8.75 * y[1],
        -10.03 * y[2] + 0.43 * y[3] + 0.035 * y[4],
        8.32 * y[1] + 1.71 * y[2] - 1.12 * y[3],
        -1.745 * y[4] + 0.43 * y[5] + 0.43 * y[6],
        -bound + 0.69 * y[3] + 1.71 * y[4] - 0.43 * y[5] + 0.69 * y[6],
        bound - 1.81 * y[6],
        -bound + 1.81 * y[6],
    )


STIFF: dict[str, Problem] = {
    problem.name: problem
    for problem in (
        Problem(
            "ROBER",
            "the chemical reaction of Robertson",
            _robertson,
            _vector(1, 0, 0),
            end=1e11,
            final=_vector(0.2083340149701255e-7, 0.8333360770334713e-13, 0.9999999791665050),
        ),
        Problem(
            "VDPOL",
            "the equation of Van der Pol",
            partial(_van_der_pol, 1000.0),
            _vector(2, 0),
            end=2000.0,
            final=_vector(0.1706167732170469e1, -0.8928097010248125e-3),
        ),
        Problem(
            "HIRES",
            "high irradiance responses of photomorphogenesis",
            _hires,
            _vector(1, 0, 0, 0, 0, 0, 0, 0.0057),
            end=321.8122,
            final=_vector(
                0.7371312573325668e-3,
                0.1442485726316185e-3,
                0.5888729740967575e-4,
                0.1175651343283149e-2,
                0.2386356198831331e-2,
                0.6238968252742796e-2,
                0.2849998395185769e-2,
                0.2850001604814231e-2,
            ),
        ),
    )
}
