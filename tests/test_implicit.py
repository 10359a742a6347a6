"""Implicit Runge-Kutta methods: coefficients in exact arithmetic, stability, orders, stiff problems, gradients."""

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import pytest
import scipy.integrate
import torch
from torch import Tensor

from neural_ode.control.controllers import IntegralController
from neural_ode.control.first_step import initial_step
from neural_ode.control.tolerance import Tolerance
from neural_ode.errors import InvalidArgumentError, NewtonError
from neural_ode.methods import implicit_runge_kutta
from neural_ode.methods.implicit_runge_kutta import ImplicitRungeKutta, _extrapolation
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
    ImplicitTableau,
)
from neural_ode.problem.norms import rms_norm
from neural_ode.problem.state import Dynamics
from test_tableaus import density, symmetry, trees

FIXED = [IMPLICIT_EULER, IMPLICIT_MIDPOINT, TRAPEZOID, GL4, GL6, RADAU_IIA3, RADAU_IIA5, SDIRK2, TRBDF2]
ADAPTIVE = [KVAERNO3, KVAERNO5]
STIFFLY_ACCURATE = [IMPLICIT_EULER, TRAPEZOID, RADAU_IIA3, RADAU_IIA5, SDIRK2, TRBDF2, KVAERNO3, KVAERNO5]
L_STABLE = [IMPLICIT_EULER, RADAU_IIA3, RADAU_IIA5, SDIRK2, TRBDF2, KVAERNO3, KVAERNO5]

# Order of the dense output: its error inside a step is proportional to the next power of the step.
DENSE_ORDER = {
    "implicit_euler": 1,
    "implicit_midpoint": 1,
    "trapezoid": 2,
    "gl4": 2,
    "gl6": 3,
    "radauIIA3": 2,
    "radauIIA5": 3,
    "sdirk2": 2,
    "trbdf2": 2,
    "kvaerno3": 3,
    "kvaerno5": 4,
}

each = pytest.mark.parametrize("tableau", FIXED + ADAPTIVE, ids=lambda tableau: tableau.name)
each_fixed = pytest.mark.parametrize("tableau", FIXED, ids=lambda tableau: tableau.name)
each_adaptive = pytest.mark.parametrize("tableau", ADAPTIVE, ids=lambda tableau: tableau.name)


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


# Coefficients


def stage_weights(tableau: ImplicitTableau, tree: Any) -> list[Fraction]:
    """Φ_i(tree) of each stage."""
    result = [Fraction(1)] * tableau.stages
    for child in tree:
        inner = stage_weights(tableau, child)
        for i, row in enumerate(tableau.a):
            result[i] *= sum((a * x for a, x in zip(row, inner, strict=True)), Fraction(0))
    return result


def total(weights: tuple[Fraction, ...], tableau: ImplicitTableau, tree: Any) -> Fraction:
    return sum((w * x for w, x in zip(weights, stage_weights(tableau, tree), strict=True)), Fraction(0))


def tolerance(tableau: ImplicitTableau) -> float:
    """Of conditions on the coefficients: those of kvaerno5 have 17 digits, the others 30 or more."""
    return 1e-16 if tableau is KVAERNO5 else 1e-28


@each
def test_nodes_are_row_sums(tableau: ImplicitTableau) -> None:
    for c, row in zip(tableau.c, tableau.a, strict=True):
        assert abs(sum(row, Fraction(0)) - c) <= tolerance(tableau)
        assert len(row) == tableau.stages


@each
def test_order_conditions(tableau: ImplicitTableau) -> None:
    for order in range(1, tableau.order + 1):
        for tree in trees(order):
            assert abs(total(tableau.b, tableau, tree) - Fraction(1, density(tree))) <= tolerance(tableau)


@each
def test_the_order_is_not_higher_than_stated(tableau: ImplicitTableau) -> None:
    defects = [total(tableau.b, tableau, tree) - Fraction(1, density(tree)) for tree in trees(tableau.order + 1)]
    assert max(map(abs, defects)) > 1e-5


@each_adaptive
def test_order_of_the_embedded_method(tableau: ImplicitTableau) -> None:
    assert tableau.b_error is not None
    for order in range(1, tableau.order):
        for tree in trees(order):
            assert abs(total(tableau.b_error, tableau, tree)) <= tolerance(tableau)
    assert max(abs(total(tableau.b_error, tableau, tree)) for tree in trees(tableau.order)) > 1e-4


@each_adaptive
def test_both_methods_of_a_pair_are_stiffly_accurate(tableau: ImplicitTableau) -> None:
    """So its error estimate stays bounded however stiff the problem is."""
    assert tableau.b_error is not None
    embedded = tuple(b - e for b, e in zip(tableau.b, tableau.b_error, strict=True))
    assert embedded == tableau.a[-2]
    assert float(tableau.c[-2]) == 1
    assert tableau.a[-1] == tableau.b


@each
def test_which_methods_are_stiffly_accurate(tableau: ImplicitTableau) -> None:
    assert tableau.stiffly_accurate == (tableau in STIFFLY_ACCURATE)


R3, R6, R15 = math.sqrt(3), math.sqrt(6), math.sqrt(15)


@pytest.mark.parametrize(
    ("tableau", "a", "b"),
    [
        (TRAPEZOID, [[0, 0], [1 / 2, 1 / 2]], [1 / 2, 1 / 2]),
        (GL4, [[1 / 4, 1 / 4 - R3 / 6], [1 / 4 + R3 / 6, 1 / 4]], [1 / 2, 1 / 2]),
        (
            GL6,
            [
                [5 / 36, 2 / 9 - R15 / 15, 5 / 36 - R15 / 30],
                [5 / 36 + R15 / 24, 2 / 9, 5 / 36 - R15 / 24],
                [5 / 36 + R15 / 30, 2 / 9 + R15 / 15, 5 / 36],
            ],
            [5 / 18, 4 / 9, 5 / 18],
        ),
        (RADAU_IIA3, [[5 / 12, -1 / 12], [3 / 4, 1 / 4]], [3 / 4, 1 / 4]),
        (
            RADAU_IIA5,
            [
                [(88 - 7 * R6) / 360, (296 - 169 * R6) / 1800, (-2 + 3 * R6) / 225],
                [(296 + 169 * R6) / 1800, (88 + 7 * R6) / 360, (-2 - 3 * R6) / 225],
                [(16 - R6) / 36, (16 + R6) / 36, 1 / 9],
            ],
            [(16 - R6) / 36, (16 + R6) / 36, 1 / 9],
        ),
    ],
    ids=lambda value: value.name if isinstance(value, ImplicitTableau) else "",
)
def test_collocation_methods_are_those_of_the_tables(
    tableau: ImplicitTableau, a: list[list[float]], b: list[float]
) -> None:
    """As printed in Hairer & Wanner II, section IV.5."""
    assert np.array(tableau.a, dtype=float) == pytest.approx(np.array(a), abs=1e-15)
    assert np.array(tableau.b, dtype=float) == pytest.approx(np.array(b), abs=1e-15)


@each
def test_order_of_the_dense_output(tableau: ImplicitTableau) -> None:
    """Σ b_i(θ) Φ_i(τ) = θ^q / γ(τ), power by power, so for all θ; and not of an order more."""

    def defects(order: int) -> Iterator[float]:
        for power, weights in enumerate(zip(*tableau.dense, strict=True), start=1):
            for tree in trees(order):
                target = Fraction(int(power == order), density(tree))
                yield float(abs(total(weights, tableau, tree) - target))

    for order in range(1, DENSE_ORDER[tableau.name] + 1):
        assert max(defects(order)) <= tolerance(tableau) * 10
    assert max(defects(DENSE_ORDER[tableau.name] + 1)) > 1e-3


@each
def test_dense_output_ends_at_the_new_state(tableau: ImplicitTableau) -> None:
    for row, b in zip(tableau.dense, tableau.b, strict=True):
        assert abs(sum(row, Fraction(0)) - b) <= tolerance(tableau)


@pytest.mark.parametrize("tableau", [TRAPEZOID, TRBDF2, KVAERNO3, KVAERNO5], ids=lambda tableau: str(tableau.name))
def test_dense_output_joins_smoothly(tableau: ImplicitTableau) -> None:
    """Its slopes at the ends are the first and the last stage."""
    assert [row[0] for row in tableau.dense] == [1] + [0] * (tableau.stages - 1)
    slopes = [sum(((p + 1) * c for p, c in enumerate(row)), Fraction(0)) for row in tableau.dense]
    assert slopes == [0] * (tableau.stages - 1) + [1]


def test_dense_output_of_kvaerno5_is_what_its_comment_says() -> None:
    a = np.array(KVAERNO5.a, dtype=float)
    rows = np.array(KVAERNO5.dense, dtype=float)
    p = rows[:, 3]  # of the terms θ² (1-θ)² p_i, the only ones with θ⁴
    assert p[1] == 0
    assert p[0] - p[1:] @ np.linalg.solve(a[1:, 1:], a[1:, 0]) == pytest.approx(0, abs=1e-13)
    # In the only direction that keeps this and the order, the squared errors of order 5 have no slope.
    c = np.array(KVAERNO5.c, dtype=float)
    stiff = np.concatenate([[1], -np.linalg.solve(a[1:, 1:], a[1:, 0])])
    conditions = np.stack([c**0, c, c**2, c**3, stiff, np.eye(7)[1]])
    *_, basis = np.linalg.svd(conditions)
    direction = basis[-1]
    assert conditions @ direction == pytest.approx(0, abs=1e-13)
    nodes, weights = np.polynomial.legendre.leggauss(10)
    theta, weights = (nodes + 1) / 2, weights / 2
    values = rows @ theta ** np.arange(1, 5)[:, None]
    slope, size = 0.0, 0.0
    for tree in trees(5):
        phi = np.array(stage_weights(KVAERNO5, tree), dtype=float)
        error = (phi @ values - theta**5 / density(tree)) / symmetry(tree)
        change = (phi @ direction) * (theta * (1 - theta)) ** 2 / symmetry(tree)
        slope += weights @ (error * change)
        size += weights @ np.abs(error * change)
    assert abs(slope) < 1e-9 * size


# Stability


def stability_function(tableau: ImplicitTableau, z: complex) -> complex:
    """`R(z) = 1 + z bᵀ (I - z A)^(-1) 1` (Hairer & Wanner II, section IV.3)."""
    a, b = np.array(tableau.a, dtype=float), np.array(tableau.b, dtype=float)
    ones = np.ones(len(b))
    return complex(1 + z * b @ np.linalg.solve(np.eye(len(b)) - z * a, ones))


@each
def test_steps_follow_the_stability_function(tableau: ImplicitTableau) -> None:
    """Dahlquist's equation with any λ in the left half plane; the state is complex."""
    method = ImplicitRungeKutta(tableau)
    for z in (-1e4, -3.0, -1.0 + 2j, 2j, 50j, 1e4j, -1e4 + 1e4j):
        y = torch.tensor([1.0 + 0j], dtype=torch.complex128)
        y1 = method.step(lambda t, y, z=z: z / 0.5 * y, scalar(0), y, 0.5, None).y1.item()
        assert y1 == pytest.approx(stability_function(tableau, z), abs=1e-10)
        assert abs(y1) <= 1 + 1e-10
    if tableau in L_STABLE:
        assert abs(stability_function(tableau, -1e7)) < 1e-6
    else:
        assert abs(stability_function(tableau, -1e7)) == pytest.approx(1, abs=1e-4)


@each
def test_a_stable(tableau: ImplicitTableau) -> None:
    """|R| ≤ 1 on the imaginary axis, and no poles in the left half plane."""
    for y in np.logspace(-3, 6, 200):
        assert abs(stability_function(tableau, 1j * y)) <= 1 + 1e-9
    eigenvalues = np.linalg.eigvals(np.array(tableau.a, dtype=float))
    assert (eigenvalues.real >= 0).all()


@pytest.mark.parametrize("tableau", L_STABLE, ids=lambda tableau: str(tableau.name))
def test_stiff_relaxation_is_damped_at_once(tableau: ImplicitTableau) -> None:
    """y' = λ (y - cos t) - sin t with λ h = -1e4, from a state far from cos t."""
    method, h = ImplicitRungeKutta(tableau), 0.05
    y, carry = tensor(2.0), None
    for i in range(4):
        step = method.step(lambda t, y: -1e4 / h * (y - torch.cos(t)) - torch.sin(t), scalar(i * h), y, h, carry)
        y, carry = step.y1, step.carry
    assert y.item() == pytest.approx(math.cos(4 * h), abs=1e-4)


# Order


def pendulum(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([y[1] + 0.1 * torch.cos(2 * t) * y[0], -torch.sin(y[0]) - 0.2 * y[1] ** 3 + torch.sin(t)])


def as_numpy(f: Dynamics) -> Callable[[float, np.ndarray], np.ndarray]:
    return lambda t, y: f(torch.tensor(t, dtype=torch.float64), torch.from_numpy(y)).numpy()


PENDULUM = scipy.integrate.solve_ivp(
    as_numpy(pendulum), (0, 2), [1.0, 0.5], method="DOP853", rtol=1e-13, atol=1e-14, dense_output=True
)


def run_until(method: ImplicitRungeKutta, f: Dynamics, y: Tensor, end: float, steps: int) -> Tensor:
    h, carry = end / steps, None
    for i in range(steps):
        step = method.step(f, torch.tensor(i * h, dtype=y.abs().dtype), y, h, carry)
        y, carry = step.y1, step.carry
    return y


@each
def test_observed_order(tableau: ImplicitTableau) -> None:
    method = ImplicitRungeKutta(tableau)
    exact = torch.from_numpy(PENDULUM.y[:, -1])
    few, many = (10, 20) if tableau.order > 4 else (40, 80)
    coarse, fine = (
        (run_until(method, pendulum, tensor(1.0, 0.5), 2.0, n) - exact).abs().max().item() for n in (few, many)
    )
    assert math.log2(coarse / fine) == pytest.approx(tableau.order, abs=0.25)


@each
def test_observed_order_inside_a_step_and_of_the_error_estimate(tableau: ImplicitTableau) -> None:
    method = ImplicitRungeKutta(tableau)
    theta = tensor(0.2, 0.7)
    errors, estimates = [], []
    for h in (0.1, 0.05):
        y = torch.from_numpy(PENDULUM.sol(0.5))
        step = method.step(pendulum, scalar(0.5), y, h, None)
        inside = method.interpolate(y, step.dense, h, theta)
        exact = torch.from_numpy(PENDULUM.sol(0.5 + h * theta.numpy()).T)
        errors.append((inside - exact).abs().max().item())
        estimates.append(0.0 if step.error is None else step.error.abs().max().item())
        ends = method.interpolate(y, step.dense, h, tensor(0.0, 1.0))
        assert torch.allclose(ends, torch.stack([y, step.y1]), rtol=1e-14, atol=0)
    assert math.log2(errors[0] / errors[1]) > DENSE_ORDER[tableau.name] + 0.6
    if method.adaptive:
        assert math.log2(estimates[0] / estimates[1]) == pytest.approx(tableau.order, abs=0.4)


@each
def test_reverse_time_undoes_the_step(tableau: ImplicitTableau) -> None:
    method, y = ImplicitRungeKutta(tableau), tensor(1.0, 0.5)
    there = method.step(pendulum, scalar(0.5), y, 0.01, None).y1
    back = method.step(pendulum, scalar(0.51), there, -0.01, None).y1
    tolerated = 1e-14 if tableau in (IMPLICIT_MIDPOINT, TRAPEZOID, GL4, GL6) else 3e-4 * 0.01 ** (tableau.order - 1)
    assert (back - y).abs().max() < tolerated


@each
def test_linear_systems_are_solved_exactly(tableau: ImplicitTableau) -> None:
    """Against the stages from one dense linear system, in NumPy."""
    A, b = np.array(tableau.a, dtype=float), np.array(tableau.b, dtype=float)
    rng = np.random.default_rng(0)
    L, y, h = rng.normal(size=(4, 4)), rng.normal(size=4), 0.7
    stages = np.linalg.solve(np.eye(4 * len(b)) - h * np.kron(A, L), np.tile(L @ y, len(b))).reshape(len(b), 4)
    matrix = torch.from_numpy(L)
    step = ImplicitRungeKutta(tableau).step(lambda t, y: matrix @ y, scalar(0), torch.from_numpy(y), h, None)
    assert step.y1.numpy() == pytest.approx(y + h * b @ stages, rel=1e-12)
    assert torch.stack(step.dense).numpy() == pytest.approx(stages, rel=1e-11, abs=1e-12)


# Stiff problems with error control


def robertson(t: Tensor, y: Tensor) -> Tensor:
    slow, fast = -0.04 * y[0] + 1e4 * y[1] * y[2], 3e7 * y[1] ** 2
    return torch.stack([slow, -slow - fast, fast])


def van_der_pol(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([y[1], 1000 * (1 - y[0] ** 2) * y[1] - y[0]])


class Run:
    """A solve with error control, and what it cost."""

    def __init__(
        self,
        method: ImplicitRungeKutta,
        f: Dynamics,
        y: Tensor,
        end: float,
        rtol: float,
        atol: float,
        first_step: float | None = None,
    ):
        tolerance, controller = Tolerance(rtol, atol, rms_norm), IntegralController()
        method = method.for_tolerance(tolerance)
        slope = f(torch.zeros((), dtype=y.dtype), y)
        carry = method.begin(slope)
        start, span = torch.tensor([0.0, end], dtype=torch.float64)
        h = first_step or initial_step(f, start, y, slope, span, method.order, tolerance).item()
        now, self.accepted, self.rejected, self.failed = 0.0, 0, 0, 0
        while now < end:
            h = min(h, end - now)
            step = method.step(f, torch.tensor(now, dtype=y.dtype), y, h, carry)
            assert step.error is not None
            err = tolerance.ratio(step.error, y, step.y1)
            self.failed += math.isinf(err)
            following = method.after(step, carry, err, lambda error: 0.0)
            carry = following.carry
            if err <= 1:
                now, y, self.accepted = now + h, step.y1, self.accepted + 1
            else:
                self.rejected += 1
            assert self.accepted + self.rejected < 2000
            h *= controller.factor(following.err, following.order)
        self.y = y


@cache
def radau(f: Dynamics, y0: tuple[float, ...], end: float) -> Tensor:
    """The final state, from SciPy."""
    solution = scipy.integrate.solve_ivp(as_numpy(f), (0, end), y0, method="Radau", rtol=1e-8, atol=1e-11)
    return torch.from_numpy(solution.y[:, -1])


@pytest.mark.parametrize(
    ("tableau", "f", "y0", "end", "rtol", "steps"),
    [
        (KVAERNO3, robertson, (1.0, 0.0, 0.0), 1e4, 1e-5, 300),
        (KVAERNO5, robertson, (1.0, 0.0, 0.0), 1e4, 1e-6, 80),
        (KVAERNO3, van_der_pol, (2.0, 0.0), 900.0, 1e-4, 600),
        (KVAERNO5, van_der_pol, (2.0, 0.0), 900.0, 1e-5, 400),
    ],
    ids=["robertson-kvaerno3", "robertson-kvaerno5", "van_der_pol-kvaerno3", "van_der_pol-kvaerno5"],
)
def test_stiff_problems_against_radau(
    tableau: ImplicitTableau, f: Dynamics, y0: tuple[float, ...], end: float, rtol: float, steps: int
) -> None:
    run = Run(ImplicitRungeKutta(tableau), f, tensor(*y0), end, rtol, rtol * 1e-3)
    expected = radau(f, y0, end)
    assert ((run.y - expected).abs() <= 20 * (rtol * expected.abs() + rtol * 1e-3)).all()
    assert run.accepted + run.rejected < steps


def test_float32_reaches_its_own_accuracy() -> None:
    y = torch.tensor([1.0, 0.0, 0.0])
    run = Run(ImplicitRungeKutta(KVAERNO5), robertson, y, 100.0, 1e-5, 1e-9)
    assert torch.allclose(run.y.double(), radau(robertson, (1.0, 0.0, 0.0), 100.0), rtol=1e-4, atol=0)
    assert run.y.sum().item() == pytest.approx(1, abs=1e-5)


@each
def test_single_precision_does_not_disturb_newtons_method(tableau: ImplicitTableau) -> None:
    """A stiff linear problem whose rounding errors are far above those of the state."""
    f: Dynamics = lambda t, y: -1e6 * (y - torch.cos(t))  # noqa: E731
    method = ImplicitRungeKutta(tableau).for_tolerance(Tolerance(1e-7, 1e-9, rms_norm))
    step = method.step(f, torch.tensor(0.0), torch.tensor([1.0]), 0.1, None)
    assert step.y1.dtype == torch.float32
    assert step.y1.item() == pytest.approx(math.cos(0.1), abs=0.02)


@each
def test_rounding_errors_of_the_dynamics_end_the_iteration(tableau: ImplicitTableau) -> None:
    """Noise a hundred times as large as rounding errors of the state: no iterate comes nearer."""
    method = ImplicitRungeKutta(tableau).for_tolerance(Tolerance(1e-7, 1e-9, rms_norm))
    f: Dynamics = lambda t, y: -y - y**3  # noqa: E731
    noisy: Dynamics = lambda t, y: f(t, y) + 1e-5 * torch.sin(1e7 * y.detach())  # noqa: E731
    y = torch.tensor([1.0, 0.7])
    step = method.step(noisy, torch.tensor(0.0), y, 1.0, None)
    exact = method.step(f, scalar(0), y.double(), 1.0, None).y1
    assert step.error is None or torch.isfinite(step.error).all()
    assert torch.allclose(step.y1.double(), exact, atol=1e-4)


# Newton's method


def test_a_looser_tolerance_takes_fewer_evaluations() -> None:
    method = ImplicitRungeKutta(KVAERNO5)
    nfe = [
        method.for_tolerance(Tolerance(rtol, rtol, rms_norm))
        .step(pendulum, scalar(0.5), tensor(1.0, 0.5), 0.3, None)
        .nfe
        for rtol in (1e-2, 1e-6, 1e-12)
    ]
    assert nfe[0] < nfe[1] < nfe[2]


@pytest.mark.parametrize(
    ("f", "h"),
    [(lambda t, y: -5 * y**3, 0.2), (lambda t, y: torch.cos(t) - 4 * y**2, 0.05)],
    ids=["cubic", "square"],
)
def test_stages_are_as_exact_as_a_hundredth_of_the_tolerance(f: Dynamics, h: float) -> None:
    """Beside an iteration to rounding; where it converges slowly, the last correction is less than the error."""
    method, y, rtol = ImplicitRungeKutta(KVAERNO3), tensor(2.0), 1e-4
    step = method.for_tolerance(Tolerance(rtol, rtol, rms_norm)).step(f, scalar(0), y, h, None)
    exact = method.step(f, scalar(0), y, h, None)
    assert step.nfe < exact.nfe
    slopes = torch.stack(step.dense) - torch.stack(exact.dense)
    stages = h * torch.tensor([[float(x) for x in row] for row in KVAERNO3.a], dtype=torch.float64) @ slopes
    assert 0 < float(stages.abs().max()) <= 0.01 * (rtol + rtol * 2.0)


def test_fixed_methods_do_not_depend_on_the_tolerance() -> None:
    method = ImplicitRungeKutta(GL4)
    assert method.for_tolerance(Tolerance(1e-1, 1e-1, rms_norm)) is method


@each_fixed
@pytest.mark.parametrize(
    ("f", "h"),
    [
        (lambda t, y: -(y**3), 1.5),  # the first Jacobian is not good enough
        (lambda t, y: -y - y**3, 10.0),  # from some predictions, even Newton's method goes too far
        (lambda t, y: -3 * torch.tanh(2 * y), 10.0),  # it goes to and fro for ever without damping
    ],
    ids=["cubic", "linear-cubic", "tanh"],
)
def test_stages_satisfy_their_equations_up_to_rounding(tableau: ImplicitTableau, f: Dynamics, h: float) -> None:
    y = tensor(1.0, 0.7)
    step = ImplicitRungeKutta(tableau).step(f, scalar(0), y, h, None)
    slopes = torch.stack(step.dense)
    stages = y + h * torch.tensor([[float(x) for x in row] for row in tableau.a], dtype=torch.float64) @ slopes
    assert torch.allclose(slopes, f(scalar(0), stages), rtol=1e-11, atol=1e-11)


def test_failure_on_a_fixed_grid_is_raised() -> None:
    """Equations without a solution: y = 1 + h (y² + 1) has none for h = 1."""
    with pytest.raises(NewtonError, match=r"t = 0\.25 with h = 1\.0.*smaller step_size.*max_iters \(now 30\)"):
        ImplicitRungeKutta(IMPLICIT_EULER).step(lambda t, y: y**2 + 1, scalar(0.25), tensor(1.0), 1.0, None)


def test_failure_is_raised_when_the_dynamics_are_not_finite() -> None:
    with pytest.raises(NewtonError, match="NaN or infinite"):
        ImplicitRungeKutta(RADAU_IIA5).step(lambda t, y: torch.log(y), scalar(0), tensor(-1.0), 0.1, None)


def test_max_iters_limits_the_iterations() -> None:
    f: Dynamics = lambda t, y: -(y**3)  # noqa: E731
    patient = ImplicitRungeKutta(RADAU_IIA3)
    hasty = patient.configured(max_iters=2)
    assert (patient.max_iters, hasty.max_iters) == (30, 2)
    patient.step(f, scalar(0), tensor(2.0), 1.5, None)
    with pytest.raises(NewtonError, match=r"after 2 iterations.*max_iters \(now 2\)"):
        hasty.step(f, scalar(0), tensor(2.0), 1.5, None)


@pytest.mark.parametrize("max_iters", [0, -3, 2.5, True, "10"])
def test_max_iters_is_checked(max_iters: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="max_iters"):
        ImplicitRungeKutta(GL4).configured(max_iters=max_iters)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="theta"):
        ImplicitRungeKutta(GL4).configured(theta=0.5)


@each_adaptive
def test_failure_under_error_control_rejects_the_step(tableau: ImplicitTableau) -> None:
    """y' = y² + 1, y = tan(t + π/4), blows up inside the step: the error is infinite and the state as before."""
    method = ImplicitRungeKutta(tableau).for_tolerance(Tolerance(1e-6, 1e-6, rms_norm))
    calls = 0

    def f(t: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return y**2 + 1

    y = tensor(1.0)
    step = method.step(f, scalar(0), y, 5.0, None)
    assert step.error is not None
    assert torch.isinf(step.error).all()
    assert torch.equal(step.y1, y)
    assert step.nfe == calls
    run = Run(ImplicitRungeKutta(tableau), f, y, 0.7, 1e-6, 1e-6, first_step=0.7)
    assert run.failed > 0
    assert run.y.item() == pytest.approx(math.tan(0.7 + math.pi / 4), rel=1e-3)


@each_adaptive
def test_a_hopeless_iteration_is_given_up_early(tableau: ImplicitTableau) -> None:
    """Under error control a shorter step costs less than `max_iters` iterations with new Jacobians."""
    method = ImplicitRungeKutta(tableau).for_tolerance(Tolerance(1e-6, 1e-6, rms_norm))
    step = method.step(lambda t, y: -5 * torch.tanh(1000 * (y - 0.3)), scalar(0), tensor(1.0), 3.0, None)
    assert step.error is not None
    assert torch.isinf(step.error).all()
    assert step.nfe < 10


def test_an_adaptive_method_that_is_unbound_iterates_to_rounding() -> None:
    y = tensor(1.0, 0.5)
    exact = ImplicitRungeKutta(KVAERNO3).step(pendulum, scalar(0), y, 0.2, None).y1
    tight = ImplicitRungeKutta(KVAERNO3).for_tolerance(Tolerance(1e-13, 1e-13, rms_norm))
    assert torch.allclose(tight.step(pendulum, scalar(0), y, 0.2, None).y1, exact, rtol=1e-14)


# Dynamics of all kinds


class Counted:
    def __init__(self, f: Dynamics):
        self.f, self.calls = f, 0

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        return self.f(t, y)


@each
@pytest.mark.parametrize("gradients", [False, True])
def test_every_evaluation_is_counted(tableau: ImplicitTableau, gradients: bool) -> None:
    f, method = Counted(pendulum), ImplicitRungeKutta(tableau)
    y = tensor(1.0, 0.5).requires_grad_(gradients)
    first = method.step(f, scalar(0), y, 0.1, None)
    assert first.nfe == f.calls
    second = method.step(f, scalar(0.1), first.y1, 0.1, first.carry)
    assert first.nfe + second.nfe == f.calls


@each
def test_without_gradients_nothing_is_spent_on_them(tableau: ImplicitTableau) -> None:
    method, y = ImplicitRungeKutta(tableau), tensor(1.0, 0.5)
    plain = method.step(pendulum, scalar(0), y, 0.1, None)
    with torch.no_grad():
        muted = method.step(pendulum, scalar(0), y.clone().requires_grad_(), 0.1, None)
    attached = method.step(pendulum, scalar(0), y.clone().requires_grad_(), 0.1, None)
    assert plain.nfe == muted.nfe < attached.nfe
    assert not plain.y1.requires_grad
    assert not muted.y1.requires_grad
    assert attached.y1.requires_grad


@pytest.mark.parametrize("tableau", [TRAPEZOID, TRBDF2, KVAERNO5], ids=lambda tableau: str(tableau.name))
def test_the_last_slope_is_the_first_of_the_next_step(tableau: ImplicitTableau) -> None:
    method, y = ImplicitRungeKutta(tableau), tensor(1.0, 0.5)
    step = method.step(pendulum, scalar(0), y, 0.1, None)
    assert torch.allclose(step.carry, pendulum(scalar(0.1), step.y1), rtol=1e-12)
    known = method.step(pendulum, scalar(0), y, 0.1, method.begin(pendulum(scalar(0), y)))
    assert known.nfe == step.nfe - 1
    assert torch.equal(known.y1, step.y1)


@pytest.mark.parametrize("tableau", [IMPLICIT_EULER, RADAU_IIA5], ids=lambda tableau: str(tableau.name))
def test_the_last_slope_is_the_first_guess_of_the_next_step(tableau: ImplicitTableau) -> None:
    method, y = ImplicitRungeKutta(tableau), tensor(1.0, 0.5)
    known = method.step(pendulum, scalar(0), y, 0.01, pendulum(scalar(0), y))
    unknown = method.step(pendulum, scalar(0), y, 0.01, None)
    assert known.nfe < unknown.nfe
    assert torch.allclose(known.y1, unknown.y1, rtol=1e-14)


def test_first_guesses_follow_a_line_through_the_nearest_nodes() -> None:
    """Through the two nearest ones, the latest where nodes are equal; a constant through a single one."""
    assert _extrapolation([0.0, 0.5], 1.0) == pytest.approx([-1.0, 2.0])
    assert _extrapolation([0.0, 0.25, 1.0], 0.5) == pytest.approx([-1.0, 2.0, 0.0])
    assert _extrapolation([0.0, 0.5, 0.5], 1.0) == pytest.approx([-1.0, 0.0, 2.0])
    assert _extrapolation([0.0, 1.0], 1.0) == pytest.approx([0.0, 1.0])
    assert _extrapolation([0.3], 1.0) == [1.0]


def test_first_guesses_save_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    tolerance, nfe = Tolerance(1e-6, 1e-6, rms_norm), []
    for _ in range(2):
        method = ImplicitRungeKutta(KVAERNO5, tolerance=tolerance)
        nfe.append(method.step(pendulum, scalar(0), tensor(1.0, 0.5), 0.3, None).nfe)
        monkeypatch.setattr(implicit_runge_kutta, "_extrapolation", lambda nodes, node: [0.0] * len(nodes))
    assert nfe[0] < nfe[1]


@pytest.mark.parametrize("tableau", [GL4, SDIRK2, KVAERNO5], ids=lambda tableau: str(tableau.name))
def test_states_of_any_shape(tableau: ImplicitTableau) -> None:
    method = ImplicitRungeKutta(tableau)
    batch = torch.randn(3, 1, 2, dtype=torch.float64)
    f: Dynamics = lambda t, y: torch.stack([y[..., 1], -torch.sin(y[..., 0]) * t], -1)  # noqa: E731
    step = method.step(f, scalar(0.3), batch, 0.2, None)
    for y, y1, slope in zip(batch, step.y1, step.dense[0], strict=True):
        alone = method.step(f, scalar(0.3), y, 0.2, None)
        assert torch.allclose(alone.y1, y1, rtol=1e-13)
        assert torch.allclose(alone.dense[0], slope, rtol=1e-12)
    single = method.step(lambda t, y: -y, scalar(0), scalar(1.0), 0.1, None)
    assert single.y1.shape == ()
    assert single.y1.item() == pytest.approx(math.exp(-0.1), rel=1e-3)
    assert method.interpolate(batch, step.dense, 0.2, tensor(0.0, 0.5)).shape == (2, 3, 1, 2)


class Untransformable(torch.autograd.Function):
    """A cube whose backward pass cannot be vectorised."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g * torch.tensor([3 * v**2 for v in x.tolist()], dtype=x.dtype) if g.sum().item() else g * 0


def _in_place(t: Tensor, y: Tensor) -> Tensor:
    slope = torch.empty_like(y)
    slope[0] = y[1]
    slope[1] = -50 * y[0] ** 3
    return slope


CUBE: Dynamics = lambda t, y: torch.stack([y[1], -50 * y[0] ** 3])  # noqa: E731


@pytest.mark.parametrize(
    "f",
    [
        lambda t, y: torch.from_numpy(np.array([y[1].item(), -50 * y[0].item() ** 3])),
        lambda t, y: torch.stack([y[1], (-50 if y[0].item() < 1e9 else 0) * y[0] ** 3]),
        lambda t, y: torch.stack([y[1], -50 * Untransformable.apply(y)[0]]),  # type: ignore[no-untyped-call]
        _in_place,
    ],
    ids=["numpy", "item", "no-vmap", "in-place"],
)
@pytest.mark.parametrize("tableau", [RADAU_IIA5, KVAERNO5], ids=lambda tableau: str(tableau.name))
def test_dynamics_that_are_hard_to_differentiate(f: Dynamics, tableau: ImplicitTableau) -> None:
    method, y = ImplicitRungeKutta(tableau), tensor(1.0, 0.5)
    counted = Counted(f)
    step = method.step(counted, scalar(0), y, 0.5, None)
    expected = method.step(CUBE, scalar(0), y, 0.5, None)
    assert torch.allclose(step.y1, expected.y1, rtol=1e-12, atol=1e-12)
    assert step.nfe == counted.calls


@each
def test_slopes_that_do_not_depend_on_the_state(tableau: ImplicitTableau) -> None:
    method = ImplicitRungeKutta(tableau)
    step = method.step(lambda t, y: torch.ones(2, dtype=torch.float64), scalar(0), tensor(0.0, 3.0), 0.5, None)
    assert torch.allclose(step.y1, tensor(0.5, 3.5), rtol=1e-14)
    at_rest = method.step(lambda t, y: 0 * y, scalar(0), tensor(0.0, 0.0), 0.5, None)
    assert torch.equal(at_rest.y1, tensor(0.0, 0.0))


@pytest.mark.parametrize(
    "f", [lambda t, y: y[:1], lambda t, y: y.float(), lambda t, y: 0.0], ids=["shape", "dtype", "type"]
)
def test_slopes_must_be_like_the_state(f: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"f\(t, y\) must (return|have)"):
        ImplicitRungeKutta(GL4).step(f, scalar(0), tensor(1.0, 2.0), 0.1, None)


# Gradients


def two_steps(tableau: ImplicitTableau, y: Tensor, p: Tensor, t: Tensor, h: Tensor) -> Tensor:
    """Everything that two steps compute from a state, a parameter, a time and a step."""

    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([-p * y[0] ** 2 * torch.cos(t) + y[1], -y[0] * y[1] + torch.sin(p * t)])

    method = ImplicitRungeKutta(tableau)
    first = method.step(f, t, y, h, None)
    second = method.step(f, t + h, first.y1, 1.5 * h, first.carry)
    results = [
        first.y1,
        second.y1,
        method.interpolate(first.y1, second.dense, 1.5 * h, tensor(0.4))[0],
        second.dense[0],
        second.error,
        second.carry,
    ]
    return torch.cat([result for result in results if result is not None])


def inputs() -> tuple[Tensor, ...]:
    values = tensor(1.0, 0.5), scalar(0.8), scalar(0.3), scalar(0.2)
    return tuple(value.requires_grad_() for value in values)


@each
def test_gradients(tableau: ImplicitTableau) -> None:
    assert torch.autograd.gradcheck(lambda *x: two_steps(tableau, *x), inputs())


@each
def test_second_derivatives(tableau: ImplicitTableau) -> None:
    assert torch.autograd.gradgradcheck(lambda *x: two_steps(tableau, *x), inputs(), fast_mode=True)


@each
def test_gradients_do_not_change_the_states(tableau: ImplicitTableau) -> None:
    attached = two_steps(tableau, *inputs())
    with torch.no_grad():
        assert torch.equal(two_steps(tableau, *inputs()), attached)


def test_gradients_of_complex_states() -> None:
    def solve(y: Tensor, p: Tensor) -> Tensor:
        f: Dynamics = lambda t, y: 1j * p * y * y.abs() - y.conj()  # noqa: E731
        return ImplicitRungeKutta(GL4).step(f, scalar(0), y, 0.3, None).y1

    y = torch.tensor([1.0 + 0.5j, -0.3j], dtype=torch.complex128, requires_grad=True)
    p = scalar(0.7).requires_grad_()
    assert torch.autograd.gradcheck(solve, (y, p))


@pytest.mark.parametrize("tableau", [IMPLICIT_EULER, RADAU_IIA5, KVAERNO5], ids=lambda tableau: str(tableau.name))
def test_gradients_of_parameters_alone(tableau: ImplicitTableau) -> None:
    """Parameters in a closure and a state without gradients, through a stiff step."""
    network = torch.nn.Linear(2, 2, dtype=torch.float64)

    def loss() -> Tensor:
        f: Dynamics = lambda t, y: torch.tanh(network(y)) - 1e3 * y  # noqa: E731
        return ImplicitRungeKutta(tableau).step(f, scalar(0), tensor(1.0, -2.0), 0.5, None).y1.square().sum()

    loss().backward()
    assert network.weight.grad is not None
    delta = torch.zeros_like(network.weight)
    delta[0, 1] = 1e-4
    with torch.no_grad():
        network.weight += delta
        above = loss()
        network.weight -= 2 * delta
        below = loss()
    assert network.weight.grad[0, 1].item() == pytest.approx(((above - below) / 2e-4).item(), rel=1e-5, abs=1e-12)
