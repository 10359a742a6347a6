"""The length of the next step: numbers worked out by hand, and what SciPy chooses."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import scipy.integrate
import torch
from torch import Tensor

from neural_ode import IntegralController, PIDController, solve
from neural_ode.control.arithmetic import Number
from neural_ode.control.first_step import initial_step
from neural_ode.control.tolerance import Tolerance
from neural_ode.problem.norms import rms_norm

# Integral control -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("err", "factor"),
    [
        (2.0**-10, 0.9 * 4),  # order 5: the fifth root
        (1e-9, 10.0),
        (0.0, 10.0),
        (0.9, 1.0),  # 0.9 · 0.9^(-1/5) = 0.919, but what passed does not shrink
        (1.0, 1.0),
        (32.0, 0.9 / 2),
        (1e9, 0.2),
        (math.inf, 0.2),
        (math.nan, 0.2),
    ],
)
def test_factor_of_the_integral_controller(err: float, factor: float) -> None:
    control = IntegralController()
    assert control.factor(err, 5) == pytest.approx(factor, rel=1e-12)
    assert control.factor(np.array([err, 1.0]), 5) == pytest.approx([factor, 1.0], rel=1e-12)


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize(("err", "factor"), [(0.8, 1.0), (0.125, 0.9 * 2)], ids=["nearly too large", "small"])
def test_a_step_that_passed_is_not_followed_by_a_shorter_one(err: float, factor: float, compile: bool) -> None:
    """y' = 24 t²: the error estimate of bosh3, h (5 k1 - 6 k2 - 8 k3 + 9 k4) / 72, is h³ in a step from 0."""
    y0, h = torch.zeros(1, dtype=torch.float64), 0.5
    how: dict[str, Any] = {"method": "bosh3", "rtol": 0, "atol": h**3 / err, "first_step": h, "compile": compile}
    with torch.no_grad():
        solution = solve(lambda t, y: 24 * t**2 * torch.ones_like(y), y0, [0.0, 10.0], **how)
    assert solution.stats.step_sizes[:2] == pytest.approx([h, h * factor], rel=1e-9)


# PID control ------------------------------------------------------------------------------------------------------


def test_factor_of_the_pid_controller() -> None:
    """Söderlind's equation 31 with the error ratios 2^-5, 2^-10 and 2^-15 of steps of order 5.

    Their fifth roots are 1/2, 1/4 and 1/8: the factor is 2 to the power k_I + k_P + k_D - 2 (k_P + 2 k_D) + 3 k_D.
    Of constant errors only the integral part is left, of errors that fall evenly that and the proportional part.
    """
    control = PIDController(safety=1.0, kI=0.3, kP=0.4, kD=0.1)
    assert control.factor(2.0**-5, 5, (2.0**-10, 2.0**-15)) == pytest.approx(2 ** (0.8 - 1.2 + 0.3), rel=1e-12)
    assert control.factor(2.0**-10, 5, (2.0**-10, 2.0**-10)) == pytest.approx(2 ** (2 * 0.3), rel=1e-12)
    assert control.factor(2.0**-15, 5, (2.0**-10, 2.0**-5)) == pytest.approx(2 ** (3 * 0.3 + 0.4), rel=1e-12)
    assert control.factor(np.array([2.0**-5]), 5, [np.array([2.0**-10]), np.array([2.0**-15])]) == pytest.approx(
        [2**-0.1], rel=1e-12
    )


def test_a_pid_controller_shrinks_after_a_rejection_by_the_error_alone() -> None:
    control = PIDController()
    assert control.factor(32.0, 5, (1e-9, 1e-9)) == pytest.approx(0.9 / 2, rel=1e-12)
    assert control.factor(1e9, 5) == 0.2
    assert control.factor(math.nan, 5) == 0.2


@pytest.mark.parametrize("rejected", [math.inf, math.nan, 7.0])
def test_a_pid_controller_does_not_grow_after_a_rejection(rejected: float) -> None:
    control = PIDController()
    assert control.factor(1e-9, 5, (0.5,)) > 1
    assert control.factor(1e-9, 5, (rejected, 0.5)) == 1
    # Its error ratio counts as 1: by the error alone the factor is 0.9 · 0.9^(-0.7/5).
    assert control.factor(0.9, 5, (rejected,)) == pytest.approx(0.9**0.86, rel=1e-12)


def test_an_error_of_zero_tells_a_pid_controller_no_trend() -> None:
    control = PIDController(kD=0.1)
    assert control.factor(0.5, 5, (0.0, 0.0)) == control.factor(0.5, 5) < 1.1
    assert control.factor(0.0, 5) == 10.0


class Watched(PIDController):
    """Writes down what it is asked and what it answers: error ratio, those before, factor."""

    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self, "seen", [])

    def factor(self, err: Number, order: int, earlier: Sequence[Number] = ()) -> Number:
        factor = super().factor(err, order, earlier)
        self.seen.append((err, tuple(earlier), factor))  # type: ignore[attr-defined]
        return factor


@pytest.mark.parametrize("batched", [False, True])
def test_a_solve_tells_the_error_ratios_of_the_two_steps_before(batched: bool) -> None:
    """The last one first, infinite where it was rejected. A burst in the middle rejects steps."""

    def burst(t: Tensor, y: Tensor) -> Tensor:
        return torch.exp(-((10 * (t - 1)) ** 2)).reshape(-1, 1) * torch.ones_like(y)

    control, y0 = Watched(), torch.zeros(1, 1, dtype=torch.float64)
    solve(burst, y0, [0.0, 2.0], batched=batched, controller=control, rtol=1e-4, atol=1e-4)
    before: list[float] = []
    for err, earlier, factor in control.seen:  # type: ignore[attr-defined]
        assert earlier == tuple(before[:2])
        if before and before[0] > 1 >= err:
            assert factor <= 1
        before.insert(0, err if err <= 1 else math.inf)
    assert math.inf in before


@pytest.mark.parametrize("batched", [False, True])
def test_a_step_that_overflows_counts_as_rejected(batched: bool) -> None:
    control, y0 = Watched(), torch.full((1, 1), 1e3, dtype=torch.float64)
    how: dict[str, Any] = {"batched": batched, "controller": control, "rtol": 1e-6, "atol": 1e-6}
    solve(lambda t, y: -(y**3), y0, [0.0, 1.0], first_step=1.0, **how)
    _, earlier, factor = next(x for x in control.seen if x[0] <= 1)  # type: ignore[attr-defined]
    assert earlier[0] == math.inf
    assert factor <= 1


# The first step ---------------------------------------------------------------------------------------------------


def chosen(f: Any, y0: Tensor, span: float, order: int, tolerance: Tolerance) -> float:
    start, distance = torch.tensor([0.0, span], dtype=torch.float64)
    return initial_step(f, start, y0, f(start, y0), distance, order, tolerance).item()


@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize(("order", "h"), [(1, 0.01), (2, 0.1), (5, 0.01**0.2)])
def test_first_step_worked_out_by_hand(order: int, h: float, direction: int) -> None:
    """y' = ±y from 1 with tolerance 1: y, y' and, after a step of 0.01, y'' all have the size 1.

    HNW ask for h^(p+1) · 1 = 0.01 with an error of the size h^(p+1), which is here h^order.
    """

    def f(t: Tensor, y: Tensor) -> Tensor:
        return -direction * y

    tolerance = Tolerance(0.0, 1.0, rms_norm)
    y0 = torch.ones(3, dtype=torch.float64)
    assert chosen(f, y0, 100.0 * direction, order, tolerance) == pytest.approx(direction * h, rel=1e-9)
    # Not longer than the interval, nor than a hundred times the step that found y''.
    assert chosen(f, y0, 1e-3 * direction, order, tolerance) == direction * 1e-3
    near = torch.full_like(y0, 1e-3)
    assert chosen(lambda t, y: f(t, y) * 0 + 1, near, 100.0, order, tolerance) == pytest.approx(
        min(1e-3, 0.01 ** (1 / order)), rel=1e-9
    )


@pytest.mark.parametrize("solver", [scipy.integrate.RK23, scipy.integrate.RK45, scipy.integrate.DOP853])
@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
def test_first_step_is_that_of_scipy(solver: Any, direction: int, scale: float) -> None:
    def f(t: Any, y: Any) -> Any:
        return (torch.stack if isinstance(y, Tensor) else np.stack)([y[1] / scale, -3 * y[0] / scale + 0.1 * t])

    y0, rtol, atol = np.array([1.0, 0.3]), 1e-6, 1e-8
    theirs = solver(f, 0.0, y0, direction * 50.0 * scale, rtol=rtol, atol=atol)
    ours = chosen(
        f,
        torch.from_numpy(y0),
        direction * 50.0 * scale,
        solver.error_estimator_order + 1,
        Tolerance(rtol, atol, rms_norm),
    )
    assert ours == pytest.approx(direction * theirs.h_abs, rel=1e-9)


def test_first_step_of_a_solution_at_rest() -> None:
    """Without a slope there is nothing to compare: 1e-6, and the least step from there."""
    tolerance = Tolerance(1e-3, 1e-6, rms_norm)
    assert chosen(lambda t, y: 0 * y, torch.ones(2, dtype=torch.float64), 10.0, 5, tolerance) == 1e-6


class Alternating(PIDController):
    """Of a user, for numbers: keeps books that arrays would break."""

    def factor(self, err: Any, order: int, earlier: Any = ()) -> Any:
        if not err <= 1:
            return 0.5
        return 1.1 if not earlier or earlier[0] <= 1 else 1.0


def test_a_controller_of_ones_own_is_asked_row_by_row() -> None:
    y0 = torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=torch.float64)
    rows = solve(lambda t, y: -y, y0, [0.0, 1.0], controller=Alternating(), batched=True)
    alone = [solve(lambda t, y: -y, row[None], [0.0, 1.0], controller=Alternating(), batched=True) for row in y0]
    assert torch.equal(rows.y, torch.cat([solution.y for solution in alone], dim=1))
    assert rows.stats.per_sample.accepted.tolist() == [int(s.stats.per_sample.accepted) for s in alone]


def test_a_factor_of_whole_numbers_is_a_number() -> None:
    for err in (1, np.float32(1.0)):
        assert type(IntegralController().factor(err, 5)) is float


def test_one_tolerance_may_be_a_number_beside_a_tensor() -> None:
    y0, ones = torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    expected = solve(lambda t, y: -y, y0, [0.0, 1.0], rtol=1e-3, atol=1e-4)
    for tolerances in ({"rtol": 1e-3, "atol": 1e-4 * ones}, {"rtol": 1e-3 * ones, "atol": 1e-4}):
        assert torch.equal(solve(lambda t, y: -y, y0, [0.0, 1.0], **tolerances).y, expected.y)
