"""Adams methods: coefficients in exact arithmetic, orders, gradients; against VODE and torchdiffeq."""

import math
import warnings
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from scipy.integrate import ode, solve_ivp
from torch import Tensor

import neural_ode
from neural_ode.control.controllers import IntegralController
from neural_ode.control.first_step import initial_step
from neural_ode.control.tolerance import Tolerance
from neural_ode.errors import InvalidArgumentError, NeuralODEWarning
from neural_ode.methods.adams import MAX_ORDER, History, VariableOrderAdams, newton_form
from neural_ode.methods.base import Method, Step
from neural_ode.methods.fixed_adams import AdamsBashforth, AdamsBashforthMoulton, adams_weights
from neural_ode.problem.norms import rms_norm

Dynamics = Callable[[Tensor, Tensor], Tensor]

THIRDS = [Fraction(1), Fraction(1, 3), Fraction(2), Fraction(5, 3), Fraction(1, 2), Fraction(4, 3)] * 2


def real(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def cosine(t: Tensor, y: Tensor) -> Tensor:
    """Solved by exp(sin t)."""
    return y * torch.cos(t)


def van_der_pol(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([y[1], 2 * (1 - y[0] ** 2) * y[1] - y[0]])


def pendulum(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([y[1], -torch.sin(y[0]) + 0.1 * torch.cos(t)])


def lotka_volterra(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([1.5 * y[0] - y[0] * y[1], -3 * y[1] + y[0] * y[1]])


def orbit(t: Tensor, y: Tensor) -> Tensor:
    """Two bodies; eccentricity 0.5 from the state below."""
    return torch.cat([y[2:], -y[:2] / torch.linalg.vector_norm(y[:2]) ** 3])


PROBLEMS = {
    "van_der_pol": (van_der_pol, real(2, 0)),
    "pendulum": (pendulum, real(1, 0)),
    "lotka_volterra": (lotka_volterra, real(1, 1)),
    "orbit": (orbit, real(0.5, 0, 0, math.sqrt(3))),
}


class Made(NamedTuple):
    """An accepted step."""

    t: float
    h: float
    y: Tensor
    step: Step
    order: int


class Run(NamedTuple):
    y: Tensor
    steps: list[Made]
    rejected: int
    nfe: int


def solve(
    f: Dynamics,
    y: Tensor,
    t0: float,
    t1: float,
    rtol: float = 1e-6,
    stops: tuple[float, ...] = (),
    method: Method | None = None,
) -> Run:
    """The loop with error control, in its simplest form."""
    method = method or VariableOrderAdams()
    tolerance = Tolerance(rtol, rtol / 100, rms_norm)
    dtype = y.abs().dtype
    direction = math.copysign(1.0, t1 - t0)
    slope = f(torch.tensor(t0, dtype=dtype), y)
    start, span = torch.tensor([t0, t1 - t0], dtype=torch.float64)
    h = initial_step(f, start, y, slope, span, method.order, tolerance).item()
    carry, now, nfe, rejected = method.begin(slope), t0, 2, 0
    made: list[Made] = []
    for stop in (*stops, t1):
        while now != stop:
            planned, cut = h, (now + h - stop) * direction >= 0
            h = stop - now if cut else h
            step = method.step(f, torch.tensor(now, dtype=dtype), y, h, carry)
            assert step.error is not None
            nfe += step.nfe
            err = tolerance.ratio(step.error, y, step.y1)
            order = carry.order
            following = method.after(step, carry, err, lambda error, y=y, y1=step.y1: tolerance.ratio(error, y, y1))
            carry = following.carry
            factor = IntegralController().factor(following.err, following.order)
            if err <= 1:
                made.append(Made(now, h, y, step, order))
                now, y = stop if cut else now + h, step.y1
                h = direction * max(abs(h * factor), abs(planned)) if cut else h * factor
            else:
                rejected += 1
                h *= factor
            assert len(made) + rejected < 5000
    return Run(y, made, rejected, nfe)


def as_numpy(f: Dynamics) -> Callable[[float, np.ndarray], np.ndarray]:
    def g(t: float, y: np.ndarray) -> np.ndarray:
        return f(torch.tensor(t, dtype=torch.float64), torch.from_numpy(np.array(y))).numpy()

    return g


def reference(f: Dynamics, y: Tensor, t0: float, t1: float, at: list[float] | None = None) -> Tensor:
    found = solve_ivp(as_numpy(f), (t0, t1), y.numpy(), method="DOP853", rtol=1e-13, atol=1e-13, t_eval=at)
    return torch.from_numpy(found.y.T if at else found.y[:, -1])


def observed_order(errors: list[float]) -> float:
    """From errors for steps that halve."""
    return math.log2(errors[0] / errors[-1]) / (len(errors) - 1)


# Coefficients


def test_equal_steps_give_the_textbook_formulas() -> None:
    """Hairer, Nørsett & Wanner I, section III.1, tables 1.1 and 1.2 for the γ, and equation 1.5."""
    form = newton_form((Fraction(1),) * 3)
    assert form.predictors[4] == [Fraction(n, 24) for n in (55, -59, 37, -9)]
    assert form.extrapolations[4] == [4, -6, 4, -1]
    assert form.g == [1, Fraction(1, 2), Fraction(5, 12), Fraction(3, 8), Fraction(251, 720)]


@pytest.mark.parametrize("k", range(1, MAX_ORDER + 1))
def test_any_distances_make_polynomials_exact(k: int) -> None:
    """Both weights, and the integrals of the Newton polynomials, against monomials in exact arithmetic."""
    steps = tuple(THIRDS[: k - 1])
    form = newton_form(steps)
    nodes = [-sum(steps[:i], Fraction(0)) for i in range(k)]
    for power in range(k):
        slopes = [node**power for node in nodes]
        assert sum(w * s for w, s in zip(form.extrapolations[k], slopes, strict=True)) == 1
        assert sum(w * s for w, s in zip(form.predictors[k], slopes, strict=True)) == Fraction(1, power + 1)
    for j, q in enumerate(form.q):
        assert sum(q) == 1
        assert min(q) >= 0
        for node in nodes[:j]:
            assert sum(c * node**p for p, c in enumerate(q)) == 0


def integrals(nodes: list[Fraction]) -> list[Fraction]:
    """Of Lagrange's polynomials from 0 to 1, in exact arithmetic."""
    found = []
    for i, node in enumerate(nodes):
        row = [Fraction(1)]
        for other in nodes[:i] + nodes[i + 1 :]:
            row = [(a - other * b) / (node - other) for a, b in zip([0, *row], [*row, 0], strict=True)]
        found.append(sum((c / (p + 1) for p, c in enumerate(row)), Fraction(0)))
    return found


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("grid", ["even", "uneven"])
@pytest.mark.parametrize("k", [3, 6, 11])
def test_weights_and_their_derivatives_in_the_steps(k: int, grid: str, implicit: bool) -> None:
    """The first and second along a line through all steps, against differences in exact arithmetic."""
    lengths = [Fraction(1)] * k if grid == "even" else THIRDS[:k]
    line = [Fraction(7 * i % 5 - 2, 3) for i in range(k)]
    factors = [Fraction(1, i + 1) for i in range(k + implicit)]

    def exact(along: Fraction) -> Fraction:
        h, *steps = (x + along * v for x, v in zip(lengths, line, strict=True))
        nodes = [-sum(steps[:i], Fraction(0)) / h for i in range(k)]
        weights = integrals([Fraction(1), *nodes] if implicit else nodes)
        return sum((c * w for c, w in zip(factors, weights, strict=True)), Fraction(0))

    def found(steps: Tensor) -> Tensor:
        return adams_weights(steps[1:], steps[0], implicit) @ real(*map(float, factors))

    at, direction = real(*map(float, lengths)), real(*map(float, line))
    little = Fraction(1, 10**8)
    low, middle, high = (exact(along) for along in (-little, Fraction(0), little))
    size = sum(map(abs, adams_weights(at[1:], at[0], implicit).tolist()))
    assert float(found(at)) == pytest.approx(float(middle), rel=0, abs=1e-13 * size)
    first, second = torch.func.grad(found)(at) @ direction, direction @ torch.func.hessian(found)(at) @ direction
    expected = float((high - low) / (2 * little)), float((high - 2 * middle + low) / little**2)
    assert (float(first), float(second)) == pytest.approx(expected, rel=1e-10 * size)


# Variable order and step


TIMES = (0.3, 1.1, 1.9, 2.5, 3.1)


def with_history(k: int, h: float, t: float) -> History:
    """Exact slopes of exp(sin t) at points whose distances vary."""
    steps = tuple(h * float(ratio) for ratio in THIRDS[: k - 1])
    times = t - torch.tensor([0.0, *np.cumsum(steps)], dtype=torch.float64)
    slopes = torch.exp(torch.sin(times)) * torch.cos(times)
    return History(slopes[:, None], steps, order=k, starting=False)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 8, 12])
def test_local_order_on_uneven_points(k: int) -> None:
    """The step has order k + 1, and its estimate is the error of order k."""
    errors, estimates = [], []
    for halvings in range(3):
        h = (0.08 if k < 8 else 0.2) / 2**halvings
        errors_here, estimates_here = [], []
        for t in TIMES:
            y = torch.exp(torch.sin(real(t)))
            step = VariableOrderAdams().step(cosine, real(t)[0], y, h, with_history(k, h, t))
            assert step.error is not None
            errors_here.append(abs(float(step.y1 - math.exp(math.sin(t + h)))))
            estimates_here.append(abs(float(step.error)))
        errors.append(max(errors_here))
        estimates.append(max(estimates_here))
    assert errors[1] < estimates[1]
    assert observed_order(estimates) == pytest.approx(k + 1, abs=0.4)
    if k < 8:  # beyond, rounding shows
        assert observed_order(errors) == pytest.approx(k + 2, abs=0.35)


@pytest.mark.parametrize("k", [2, 4, 7])
def test_global_order(k: int) -> None:
    """Steps of alternating lengths keep the order k + 1 of the corrector."""
    errors = []
    for steps in (40, 80, 160):
        h = 3 / steps
        carry = with_history(k, h, 0.0)
        y, now = real(1), 0.0
        for number in range(steps):
            length = h * (1.25 if number % 2 else 0.75)
            step = VariableOrderAdams().step(cosine, torch.tensor(now, dtype=torch.float64), y, length, carry)
            y, now, carry = step.y1, now + length, step.carry
        errors.append(abs(float(y) - math.exp(math.sin(3))))
    assert observed_order(errors) > k + 0.6


@pytest.mark.parametrize("rtol", [1e-4, 1e-8])
@pytest.mark.parametrize("name", PROBLEMS)
def test_as_good_as_vode(name: str, rtol: float) -> None:
    f, y0 = PROBLEMS[name]
    calls = 0

    def counted(t: float, y: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        return as_numpy(f)(t, y)

    vode = ode(counted).set_integrator("vode", method="adams", rtol=rtol, atol=rtol / 100, nsteps=10**5)
    theirs = torch.from_numpy(vode.set_initial_value(y0.numpy(), 0).integrate(10))
    exact = reference(f, y0, 0, 10)
    ours = solve(f, y0, 0, 10, rtol)
    size = exact.abs().max()
    error, their_error = float((ours.y - exact).abs().max() / size), float((theirs - exact).abs().max() / size)
    assert ours.nfe < 1.5 * calls
    assert error < max((200 if name == "orbit" else 20) * rtol, 3 * their_error)
    assert ours.rejected < 0.15 * len(ours.steps)


def test_tolerance_is_followed() -> None:
    exact = reference(pendulum, real(1, 0), 0, 10)
    errors = [
        float((solve(pendulum, real(1, 0), 0, 10, rtol).y - exact).abs().max()) for rtol in (1e-4, 1e-7, 1e-10)
    ]
    for rtol, error in zip((1e-4, 1e-7, 1e-10), errors, strict=True):
        assert error < 20 * rtol


def test_order_rises_on_a_smooth_problem() -> None:
    orders = [made.order for made in solve(pendulum, real(1, 0), 0, 20, 1e-10).steps]
    assert orders[:4] == [1, 2, 3, 4]
    assert max(orders) == MAX_ORDER
    assert np.median(orders) > 8
    assert np.median([made.order for made in solve(pendulum, real(1, 0), 0, 20, 1e-3).steps]) < 8


def test_steps_grow_by_two_or_not_at_all() -> None:
    steps = solve(pendulum, real(1, 0), 0, 20, 1e-8).steps[:-1]
    growth = [later.h / earlier.h for earlier, later in pairwise(steps)]
    assert max(growth) == pytest.approx(2, rel=1e-12)
    assert sum(g == 1 for g in growth) > 0.8 * len(growth)


def test_order_drops_at_a_discontinuity() -> None:
    """y' jumps at t = 1; the solution is t, then 1 + sin(4 (t - 1))."""

    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.where(t < 1, 1.0, 4 * torch.cos(4 * (t - 1))).to(y.dtype).expand(1)

    run = solve(f, real(0), 0, 3, 1e-8)
    assert abs(float(run.y) - 1 - math.sin(8)) < 1e-6
    crossing = [made.order for made in run.steps if abs(made.t - 1) < 1e-3]
    assert min(crossing) == 1
    assert max(made.order for made in run.steps if made.t > 2) > 5
    assert run.rejected < 60


def test_restart_where_the_dynamics_are_not_finite() -> None:
    method, ratio = VariableOrderAdams(), lambda error: float(error.abs())
    carry = with_history(4, 0.1, 0.3)
    step = method.step(lambda t, y: y * math.nan, real(0.3)[0], real(1), 0.1, carry)
    following = method.after(step, carry, math.nan, ratio)
    assert following.carry.order == 1
    assert torch.equal(following.carry.slopes, carry.slopes[:1])
    assert math.isnan(following.err)
    run = solve(lambda t, y: -torch.sqrt(1 - t + 0 * y), real(0), 0, 0.999999, 1e-6)  # NaN beyond t = 1
    assert float(run.y) == pytest.approx(-2 / 3, abs=1e-4)


def test_rounding_does_not_grow_while_the_steps_double() -> None:
    """From a very short first step the points lie together so closely that extrapolation of high order is noise."""
    run = solve(lambda t, y: torch.sqrt(1 - t).expand(1), real(0), 0, 0.5, 1e-11)
    assert run.steps[0].h < 1e-6
    for made in run.steps:
        exact = ((1 - made.t) ** 1.5 - (1 - made.t - made.h) ** 1.5) / 1.5
        assert float(made.step.y1 - made.y) == pytest.approx(exact, rel=0, abs=1e-11)


def test_third_rejection_restarts() -> None:
    method = VariableOrderAdams()
    carry: History = with_history(5, 0.1, 0.3)
    for order in (5, 5, 1):
        step = method.step(cosine, real(0.3)[0], real(1), 0.1, carry)
        following = method.after(step, carry, 50.0, lambda error: 60.0)
        carry = following.carry
        assert carry.order == order
        assert following.err >= 50
    assert len(carry.slopes) == 1
    assert following.order == 2


def test_rejection_lowers_the_order_where_that_makes_smaller_errors() -> None:
    method = VariableOrderAdams()
    carry = with_history(5, 0.1, 0.3)
    step = method.step(cosine, real(0.3)[0], real(1), 0.1, carry)
    following = method.after(step, carry, 5.0, lambda error: 4.0)
    assert (following.carry.order, following.err, following.order) == (4, 4.0, 5)


@pytest.mark.parametrize("name", PROBLEMS)
def test_reverse_time(name: str) -> None:
    f, y0 = PROBLEMS[name]
    there = solve(f, y0, 0.0, 1.0, 1e-9)
    back = solve(f, there.y, 1.0, 0.0, 1e-9)
    assert all(made.h < 0 for made in back.steps)
    torch.testing.assert_close(back.y, y0, rtol=1e-5, atol=1e-5)
    mirrored = solve(lambda t, y: -f(-t, y), y0, 0.0, -1.0, 1e-9)
    assert torch.equal(mirrored.y, there.y)


def test_dense_output() -> None:
    theta = torch.linspace(0, 1, 5, dtype=torch.float64)
    for rtol in (1e-4, 1e-9):
        for made in solve(cosine, real(1), 0, 10, rtol).steps:
            states = VariableOrderAdams().interpolate(made.y, made.step.dense, made.h, theta)
            exact = torch.exp(torch.sin(made.t + theta * made.h))[:, None]
            assert states.shape == (5, 1)
            assert float((states - exact).abs().max()) < 50 * rtol
            assert torch.equal(states[0], made.y)
            torch.testing.assert_close(states[-1], made.step.y1, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("k", [1, 3, 6])
def test_order_of_dense_output(k: int) -> None:
    """Inside the step the error has the order of the corrector too."""
    theta = real(0.2, 0.5, 0.9)
    errors = []
    for h in (0.16, 0.08, 0.04):
        error = 0.0
        for t in TIMES:
            y = torch.exp(torch.sin(real(t)))
            step = VariableOrderAdams().step(cosine, real(t)[0], y, h, with_history(k, h, t))
            found = VariableOrderAdams().interpolate(y, step.dense, h, theta)
            error = max(error, float((found[:, 0] - torch.exp(torch.sin(t + theta * h))).abs().max()))
        errors.append(error)
    assert observed_order(errors) == pytest.approx(k + 2, abs=0.5)


def test_dense_output_starts_with_the_slope() -> None:
    made = solve(pendulum, real(1, 0), 0, 5, 1e-8).steps[20]
    torch.testing.assert_close(made.step.dense[0], pendulum(torch.tensor(made.t), made.y))
    slope = torch.autograd.functional.jvp(
        lambda theta: VariableOrderAdams().interpolate(made.y, made.step.dense, made.h, theta), real(0), real(1)
    )[1]
    torch.testing.assert_close(slope[0] / made.h, made.step.dense[0])


def test_two_evaluations_a_step() -> None:
    calls = 0

    def f(t: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return pendulum(t, y)

    run = solve(f, real(1, 0), 0, 5)
    assert calls == run.nfe == 2 + 2 * (len(run.steps) + run.rejected)
    calls = 0
    assert VariableOrderAdams().step(f, real(0)[0], real(1, 0), 0.1, None).nfe == calls == 3


def test_steps_that_are_cut() -> None:
    """Prescribed times, some of them so near that the slopes there differ by little more than rounding."""
    stops = (1.0, 1.0 + 1e-12, 1.0 + 1e-7, 2.0, 2.0 + 1e-9, 3.3)
    cut, free = (solve(pendulum, real(1, 0), 0, 10, 1e-9, at) for at in (stops, ()))
    torch.testing.assert_close(cut.y, reference(pendulum, real(1, 0), 0, 10), rtol=0, atol=2e-8)
    assert cut.rejected <= free.rejected + 3
    assert len(cut.steps) < 1.3 * len(free.steps)


def test_points_too_near_are_left_out() -> None:
    history = History(torch.arange(4.0)[:, None], (1e-9, 1e-8, 1.0), order=4, starting=False)
    thin = history.usable(1.0)
    assert thin.slopes.flatten().tolist() == [0, 3]
    assert thin.steps == (1e-9 + 1e-8 + 1.0,)
    assert thin.order == 2
    assert history.usable(1e-9).slopes is history.slopes
    assert history.usable(1e3).steps == ()


@pytest.mark.parametrize(
    "f", [lambda t, y: 0 * y, lambda t, y: 0 * y + 2, lambda t, y: 0 * y + t], ids=["0", "2", "t"]
)
def test_errors_of_zero(f: Dynamics) -> None:
    run = solve(f, real(1), 0, 100)
    expected = {0: 1.0, 1: 201.0, 2: 5001.0}[
        int(f(real(0)[0], real(1))) // 2 + 2 * int(f(real(1)[0], real(1)) == 1)
    ]
    assert float(run.y) == pytest.approx(expected, rel=1e-12)
    assert len(run.steps) < 60


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_single_precision(dtype: torch.dtype) -> None:
    """A tolerance near the rounding of float32 still ends, in a reasonable number of steps."""
    exact = reference(lotka_volterra, real(1, 1), 0, 10)
    run = solve(lotka_volterra, real(1, 1).to(dtype), 0, 10, 1e-5)
    assert run.y.dtype == dtype
    torch.testing.assert_close(run.y.double(), exact, rtol=1e-3, atol=1e-4)
    assert len(run.steps) + run.rejected < 400


def test_complex_state_of_any_shape() -> None:
    frequency = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64).T
    run = solve(lambda t, y: 1j * frequency * y, torch.ones(3, 1, dtype=torch.complex128), 0, 5, 1e-9)
    torch.testing.assert_close(run.y, torch.exp(5j * frequency), rtol=0, atol=1e-7)
    made = run.steps[10]
    found = VariableOrderAdams().interpolate(made.y, made.step.dense, made.h, real(0.5))
    torch.testing.assert_close(found[0], torch.exp(1j * frequency * (made.t + made.h / 2)), rtol=0, atol=1e-7)
    assert solve(lambda t, y: -y, torch.tensor(1.0, dtype=torch.float64), 0, 1).y.shape == ()


def test_gradients() -> None:
    """Through steps of rising order and changing length, and the continuous extension."""

    def f(t: Tensor, y: Tensor, a: Tensor) -> Tensor:
        return torch.sin(a * y) + torch.cos(t) * y.flip(0)

    def final(y: Tensor, a: Tensor, t: Tensor) -> Tensor:
        method, dynamics = VariableOrderAdams(), lambda time, state: f(time, state, a)
        carry = method.begin(dynamics(t, y))
        start, passed = y, 0.0
        for number, h in enumerate((0.05, 0.1, 0.2, 0.2, 0.1, 0.3)):
            start = y
            step = method.step(dynamics, t + passed, y, h, carry)
            y, passed = step.y1, passed + h
            carry = step.carry._replace(order=min(number + 2, len(step.carry.slopes)))
        return torch.cat([y, method.interpolate(start, step.dense, h, real(0.3, 0.7)).flatten()])

    inputs = [x.requires_grad_() for x in (real(0.5, -0.3), real(1.2, 0.7), real(0.4)[0])]
    assert torch.autograd.gradcheck(final, inputs)
    assert torch.autograd.gradgradcheck(final, inputs)


def test_gradient_of_a_solve() -> None:
    """Against the derivative of a closed form."""
    a = real(0.7).requires_grad_()
    run = solve(lambda t, y: a * torch.cos(t) * y, real(1), 0, 2, 1e-10)
    (gradient,) = torch.autograd.grad(run.y.sum(), a)
    assert float(gradient) == pytest.approx(math.sin(2) * math.exp(0.7 * math.sin(2)), rel=1e-8)


@pytest.mark.parametrize("gradient", ["direct", "recursive_checkpoint"])
def test_safety_of_the_controller(gradient: str) -> None:
    """A smaller one makes shorter steps in proportion, by the same rules, and smaller errors."""
    y0 = real(1, 0).requires_grad_()
    exact = reference(pendulum, y0.detach(), 0, 20)
    little = 1e-4
    nearby = [reference(pendulum, real(1 + s * little, 0), 0, 20).sum() for s in (1, -1)]
    accepted, errors = [], []
    for safety in (0.9, 0.5, 0.3):
        solution = neural_ode.solve(
            *(pendulum, y0, [0.0, 20.0]),
            method="adams",
            rtol=1e-7,
            atol=1e-9,
            controller=IntegralController(safety=safety),
            gradient=gradient,
            params=(),
        )
        assert isinstance(solution.y, Tensor)
        growth = [later / earlier for earlier, later in pairwise(solution.stats.step_sizes[:-1])]
        assert max(growth) == pytest.approx(2)
        assert growth.count(1) > 0.8 * len(growth)
        accepted.append(solution.stats.accepted)
        errors.append(float((solution.y[-1] - exact).detach().abs().max()))
        (by_y0,) = torch.autograd.grad(solution.y[-1].sum(), y0)
        assert by_y0[0].item() == pytest.approx(float(nearby[0] - nearby[1]) / (2 * little), rel=1e-5)
    assert accepted[1] / accepted[0] == pytest.approx(0.9 / 0.5, rel=0.2)
    assert accepted[2] / accepted[0] == pytest.approx(0.9 / 0.3, rel=0.2)
    assert errors[2] < errors[1] / 4 < errors[0] / 16


def test_limits_of_the_controller() -> None:
    """How much a step grows, and how much it shrinks after a rejection, counted from one attempt to the next."""
    tried: list[float] = []
    rejected: list[int] = []
    neural_ode.solve(
        *(van_der_pol, real(2, 0), [0.0, 10.0]),
        method="adams",
        rtol=1e-6,
        atol=1e-8,
        controller=IntegralController(safety=0.6, ifactor=1.5, dfactor=0.55),
        callbacks=neural_ode.Callbacks(
            step=lambda t, y, h: tried.append(float(h)), reject=lambda t, y, h: rejected.append(len(tried) - 1)
        ),
    )
    assert len(rejected) > 3
    for number, (earlier, later) in enumerate(pairwise(tried[:-1])):
        factor = later / earlier
        if number in rejected:
            assert 0.55 * (1 - 1e-9) < factor < 0.8
        else:
            assert factor in (1, pytest.approx(1.5))


# Fixed grids

FIXED = {"explicit_adams": AdamsBashforth, "implicit_adams": AdamsBashforthMoulton}


def walk(
    method: Method, f: Dynamics, y: Tensor, times: Tensor, rtol: float = 1e-7, atol: float = 1e-9
) -> tuple[Tensor, int]:
    """States at all points of the grid, and the evaluations of the dynamics."""
    method = method.for_tolerance(Tolerance(rtol, atol, rms_norm))
    states, nfe, carry = [y], 0, None
    for start, end in pairwise(times):
        h = end - start if times.requires_grad else float(end - start)
        step = method.step(f, start.to(y.abs().dtype), states[-1], h, carry)
        carry, nfe = step.carry, nfe + step.nfe
        states.append(step.y1)
    return torch.stack(states), nfe


@pytest.mark.parametrize("max_order", [4, 5, 8, 12])
@pytest.mark.parametrize("name", FIXED)
def test_uniform_grid_equals_torchdiffeq(name: str, max_order: int) -> None:
    torchdiffeq = pytest.importorskip("torchdiffeq")
    # Adams-Bashforth of high order is stable, and can be compared, only for short steps.
    times = torch.linspace(0, 6 if max_order < 8 or name == "implicit_adams" else 0.6, 61, dtype=torch.float64)
    calls = 0

    def f(t: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return pendulum(t, y)

    theirs = torchdiffeq.odeint(f, real(1, 0), times, method=name, options={"max_order": max_order})
    ours, nfe = walk(FIXED[name](max_order), pendulum, real(1, 0), times)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    assert nfe == calls


@pytest.mark.filterwarnings("ignore:Functional iteration")
@pytest.mark.parametrize("max_iters", [1, 2])
def test_without_convergence_equals_torchdiffeq(max_iters: int) -> None:
    """The order does not rise after a step whose iteration did not converge, here the first ones."""
    torchdiffeq = pytest.importorskip("torchdiffeq")
    times = torch.linspace(0, 3, 31, dtype=torch.float64)
    options = {"max_order": 8, "max_iters": max_iters}
    theirs = torchdiffeq.odeint(
        pendulum, real(1, 0), times, method="implicit_adams", rtol=1e-7, atol=1e-7, options=options
    )
    with pytest.warns(NeuralODEWarning, match=r"did not converge in \d+ steps from t = 0.0 on, .*max_iters"):
        ours = neural_ode.odeint(
            pendulum, real(1, 0), times, method="implicit_adams", rtol=1e-7, atol=1e-7, options=options
        )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Functional iteration")
@pytest.mark.parametrize("event", [False, True])
@pytest.mark.parametrize("gradient", ["direct", "recursive_checkpoint", "backsolve"])
def test_one_warning_a_solve(gradient: str, event: bool) -> None:
    """With as many steps as torchdiffeq warns of. A backward solve is another one, steps made again are not."""
    torchdiffeq = pytest.importorskip("torchdiffeq")
    times = torch.linspace(0, 3, 4, dtype=torch.float64)
    options = {"step_size": 0.1, "max_iters": 1}
    with warnings.catch_warnings(record=True) as theirs:
        warnings.simplefilter("always")
        torchdiffeq.odeint(pendulum, real(1, 0), times, method="implicit_adams", options=options)
    count = sum("Functional iteration" in str(w.message) for w in theirs)
    assert count > 20
    y0 = real(1, 0).requires_grad_()
    with warnings.catch_warnings(record=True) as ours:
        warnings.simplefilter("always")
        for _ in range(2):
            solution = neural_ode.solve(
                *(pendulum, y0, times),
                method=AdamsBashforthMoulton(max_iters=1),
                step_size=0.1,
                gradient=gradient,
                params=(),
                event=(lambda t, y: t - 2.95) if event else None,
            )
            assert isinstance(solution.y, Tensor)
            torch.autograd.grad(solution.y[-1].sum(), y0)
            assert solution.stats.unconverged == count
    messages = [str(w.message) for w in ours if issubclass(w.category, NeuralODEWarning)]
    assert len(messages) == (4 if gradient == "backsolve" else 2)
    for message in messages[:: len(messages) // 2]:
        assert f"did not converge in {count} steps from t = 0.0 on, first at t = 0.2" in message


def uneven(steps: int, end: float) -> Tensor:
    """Every other step twice as long."""
    lengths = torch.ones(steps, dtype=torch.float64)
    lengths[1::2] = 2
    return torch.cat([real(0), torch.cumsum(lengths, 0)]) * (end / float(lengths.sum()))


@pytest.mark.parametrize("grid", ["even", "uneven"])
@pytest.mark.parametrize(
    ("method", "order"),
    [
        (AdamsBashforth(4), 3),
        (AdamsBashforth(5), 4),
        (AdamsBashforth(8), 4),
        (AdamsBashforthMoulton(4), 4),
        (AdamsBashforthMoulton(5), 5),
        (AdamsBashforthMoulton(8), 5),
    ],
    ids=lambda value: f"{value.name}-{value.max_order}" if isinstance(value, Method) else str(value),
)
def test_order_on_a_grid(method: Method, order: int, grid: str) -> None:
    errors = []
    for steps in (120, 240, 480):
        times = uneven(steps, 4) if grid == "uneven" else torch.linspace(0, 4, steps + 1, dtype=torch.float64)
        states, _ = walk(method, cosine, real(1), times, 1e-10, 1e-10)
        errors.append(float((states[:, 0] - torch.exp(torch.sin(times))).abs().max()))
    assert method.order == order
    assert observed_order(errors) > order - 0.3


def test_only_exact_weights_keep_the_order_on_an_uneven_grid() -> None:
    """What the formulas for equal steps lose there."""
    torchdiffeq = pytest.importorskip("torchdiffeq")
    times = uneven(100, 4)
    exact = torch.exp(torch.sin(times))[:, None]
    ours, _ = walk(AdamsBashforth(5), cosine, real(1), times)
    theirs = torchdiffeq.odeint(cosine, real(1), times, method="explicit_adams", options={"max_order": 5})
    assert (ours - exact).abs().max() < 1e-2 * (theirs - exact).abs().max()


@pytest.mark.parametrize("method", FIXED.values())
def test_grid_in_reverse_time(method: type[AdamsBashforth]) -> None:
    times = uneven(100, 3)
    there, _ = walk(method(6), pendulum, real(1, 0), times)
    mirrored, _ = walk(method(6), lambda t, y: -pendulum(-t, y), real(1, 0), -times)
    assert torch.equal(there, mirrored)


@pytest.mark.parametrize("grid", ["even", "uneven"])
@pytest.mark.parametrize("method", FIXED.values())
def test_gradients_on_a_grid(method: type[AdamsBashforth], grid: str) -> None:
    """With respect to the times too: moving a point moves the weights of all slopes."""
    times = uneven(6, 1.2) if grid == "uneven" else torch.linspace(0, 1.2, 7, dtype=torch.float64)

    def states(y: Tensor, a: Tensor, t: Tensor) -> Tensor:
        return walk(method(6), lambda time, y: torch.sin(a * y) + torch.cos(time) * y.flip(0), y, t, 1e-3, 1e-3)[0]

    inputs = [x.clone().requires_grad_() for x in (real(0.5, -0.3), real(1.2, 0.7), times)]
    assert torch.autograd.gradcheck(states, inputs)
    assert torch.autograd.gradgradcheck(states, inputs)
    with_times = states(*inputs)
    without = states(inputs[0], inputs[1], times)
    torch.testing.assert_close(with_times, without, rtol=1e-13, atol=1e-13)


def nodes_of(y: Tensor) -> int:
    """How many operations autograd has recorded."""
    seen: set[Any] = set()
    waiting = [y.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
    return len(seen)


@pytest.mark.parametrize("name", FIXED)
def test_times_with_gradients_cost_no_more_operations_than_in_torchdiffeq(name: str) -> None:
    """The weights depend on the steps; entry by entry that would be hundreds of operations in each."""
    torchdiffeq = pytest.importorskip("torchdiffeq")
    times = torch.linspace(0, 1, 61, dtype=torch.float64).requires_grad_()
    theirs, ours = (
        nodes_of(library.odeint(pendulum, real(1, 0), times, method=name)) for library in (torchdiffeq, neural_ode)
    )
    assert ours < theirs


def test_a_single_number_keeps_its_dtype_where_times_have_gradients() -> None:
    times = torch.linspace(0, 1, 11).requires_grad_()
    y = neural_ode.odeint(lambda t, y: -y, torch.tensor(1.0), times, method="implicit_adams")
    assert y.dtype == torch.float32
    assert y[-1].item() == pytest.approx(math.exp(-1), rel=1e-6)


@pytest.mark.parametrize("method", FIXED.values())
def test_other_dtypes_on_a_grid(method: type[AdamsBashforth]) -> None:
    times = torch.linspace(0, 2, 41, dtype=torch.float64)
    states, _ = walk(method(6), lambda t, y: 1j * y, torch.ones(2, 1, dtype=torch.complex128), times)
    torch.testing.assert_close(
        states[-1, 0], torch.exp(torch.tensor([2j], dtype=torch.complex128)), rtol=0, atol=1e-5
    )
    exact, _ = walk(method(6), pendulum, real(1, 0), times)
    single, _ = walk(method(6), pendulum, real(1, 0).float(), times, 1e-5, 1e-5)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", FIXED.values())
def test_low_max_order_is_rk4(method: type[AdamsBashforth]) -> None:
    with pytest.warns(NeuralODEWarning, match="max_order=3 does the same as rk4"):
        low = method(3)
    times = torch.linspace(0, 4, 21, dtype=torch.float64)
    _, nfe = walk(low, cosine, real(1), times)
    assert nfe == 80
    assert low.order == 4


@pytest.mark.parametrize("max_order", [0, 13, 4.5, "4"])
@pytest.mark.parametrize("method", FIXED.values())
def test_invalid_max_order(method: type[AdamsBashforth], max_order: int) -> None:
    with pytest.raises(InvalidArgumentError, match=r"max_order of .* must be an integer from 1 to 12, got"):
        method(max_order)


def test_invalid_max_iters() -> None:
    with pytest.raises(
        InvalidArgumentError, match="max_iters of implicit_adams must be an integer, 1 or more, got 0"
    ):
        AdamsBashforthMoulton(max_iters=0)
