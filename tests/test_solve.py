"""Solutions against closed forms, SciPy and torchdiffeq."""

import math

import numpy as np
import pytest
import scipy.integrate
import torch
import torchdiffeq
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from neural_ode import (
    Callbacks,
    InvalidArgumentError,
    MaxStepsError,
    NeuralODEWarning,
    NonFiniteError,
    SolverError,
    Statistics,
    StepSizeUnderflowError,
    UnknownNameError,
    solve,
)
from neural_ode.control.tolerance import Tolerance
from neural_ode.methods import get_method
from neural_ode.problem.norms import rms_norm
from neural_ode.stepping.integrate import integrate
from neural_ode.stepping.settings import SolverSettings

METHODS = {name: get_method(name) for name in ("euler", "midpoint", "rk4", "dopri5")}
ADAPTIVE = [name for name, method in METHODS.items() if method.adaptive]


def oscillator(t: Tensor, y: Tensor) -> Tensor:
    """y'' = -y as a system."""
    return torch.stack([y[1], -y[0]])


def driven(t: Tensor, y: Tensor) -> Tensor:
    """y' = y cos t: y = y0 exp(sin t). Depends on the time and is not linear in it."""
    return y * torch.cos(t)


def lotka_volterra(t: Tensor, y: Tensor) -> Tensor:
    a, b = y[..., 0], y[..., 1]
    return torch.stack([1.5 * a - a * b, a * b - 3 * b], dim=-1)


class Counting:
    """Counts calls, as the solver claims to."""

    def __init__(self, f):
        self.f, self.calls = f, 0

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        return self.f(t, y)


@pytest.mark.parametrize("method", METHODS)
def test_order_of_convergence(method: str) -> None:
    """Halving the step divides the error by 2^order."""
    y0 = torch.tensor([1.3], dtype=torch.float64)
    steps = np.array([16, 32, 64, 128]) if METHODS[method].order < 5 else np.array([8, 16, 32, 64])
    errors = []
    for n in steps:
        end = solve(driven, y0, [0.0, 2.0], method=method, step_size=2.0 / n).y[-1]
        errors.append(abs(end.item() - 1.3 * math.exp(math.sin(2.0))))
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope == pytest.approx(METHODS[method].order, abs=0.25)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_error_follows_the_tolerance(method: str) -> None:
    y0 = torch.tensor([1.0, 0.0], dtype=torch.float64)
    tolerances = [1e-4, 1e-6, 1e-8, 1e-10]
    errors, evaluations = [], []
    for tolerance in tolerances:
        solution = solve(oscillator, y0, [0.0, 10.0], method=method, rtol=tolerance, atol=tolerance)
        exact = torch.tensor([math.cos(10), -math.sin(10)], dtype=torch.float64)
        errors.append((solution.y[-1] - exact).abs().max().item())
        evaluations.append(solution.stats.nfe)
    slope = np.polyfit(np.log(tolerances), np.log(errors), 1)[0]
    assert 0.7 < slope < 1.3
    assert evaluations == sorted(evaluations)
    assert all(error < 100 * tolerance for error, tolerance in zip(errors, tolerances, strict=True))


def test_agrees_with_scipy_at_tight_tolerance() -> None:
    times = np.linspace(0, 8, 30)
    y0 = np.array([5.0, 1.0])
    reference = scipy.integrate.solve_ivp(
        lambda t, y: [1.5 * y[0] - y[0] * y[1], y[0] * y[1] - 3 * y[1]],
        (0, 8),
        y0,
        method="DOP853",
        t_eval=times,
        rtol=1e-13,
        atol=1e-13,
    )
    solution = solve(lotka_volterra, torch.from_numpy(y0), torch.from_numpy(times), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(solution.y, torch.from_numpy(reference.y.T), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_agrees_with_torchdiffeq(method: str) -> None:
    """The same method on the same grid gives the same numbers; error control, the same within tolerance."""
    y0 = torch.tensor([[5.0, 1.0], [2.0, 2.5]], dtype=torch.float64)
    t = torch.linspace(0, 2, 41, dtype=torch.float64)
    tolerance = {"rtol": 1e-9, "atol": 1e-9}
    ours = solve(lotka_volterra, y0, t, method=method, **tolerance).y
    theirs = torchdiffeq.odeint(lotka_volterra, y0, t, method=method, **tolerance)
    exact = {"rtol": 1e-12, "atol": 1e-12}
    close = {"rtol": 1e-7, "atol": 1e-7}
    torch.testing.assert_close(ours, theirs, **(close if METHODS[method].adaptive else exact))


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ADAPTIVE])
@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
def test_step_size_grid_agrees_with_torchdiffeq(method: str, interpolation: str) -> None:
    y0 = torch.tensor([5.0, 1.0], dtype=torch.float64)
    t = torch.tensor([0.0, 0.13, 0.5, 0.77, 1.0], dtype=torch.float64)
    ours = solve(lotka_volterra, y0, t, method=method, step_size=0.11, interpolation=interpolation).y
    theirs = torchdiffeq.odeint(
        lotka_volterra, y0, t, method=method, options={"step_size": 0.11, "interp": interpolation}
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("span", [(0.0, 1.5), (1.5, 0.0)])
def test_counts_every_evaluation(method: str, span: tuple[float, float]) -> None:
    f = Counting(lotka_volterra)
    y0 = torch.tensor([5.0, 1.0], dtype=torch.float64)
    times = torch.linspace(*span, 7)
    solution = solve(f, y0, times, method=method, rtol=1e-4, atol=1e-4)
    assert solution.stats.nfe == f.calls
    assert sum(solution.stats.step_sizes) == pytest.approx(span[1] - span[0])
    assert len(solution.stats.step_sizes) == solution.stats.accepted


def test_counts_rejected_steps_and_cubic_interpolation() -> None:
    f = Counting(lambda t, y: -200 * (y - torch.cos(t)))
    y0 = torch.tensor([3.0], dtype=torch.float64)
    solution = solve(f, y0, [0.0, 1.0], rtol=1e-3, atol=1e-3, first_step=0.5)
    assert solution.stats.rejected > 0
    assert solution.stats.nfe == f.calls
    f = Counting(driven)
    solution = solve(f, y0, [0, 0.3, 0.9, 1], method="rk4", step_size=0.2, interpolation="cubic")
    # The slope at the end of an interpolated step is the first stage of the next one; only the last one is extra.
    assert solution.stats.nfe == f.calls == 5 * 4 + 1


def test_first_same_as_last_saves_an_evaluation_a_step() -> None:
    solution = solve(driven, torch.ones(1), [0.0, 1.0], rtol=1e-5, atol=1e-5)
    steps = solution.stats.accepted + solution.stats.rejected
    assert solution.stats.nfe == 6 * steps + 2  # and two to begin: f(t0, y0), and one to choose the first step


def test_never_evaluates_outside_the_interval() -> None:
    seen = []

    def f(t: Tensor, y: Tensor) -> Tensor:
        seen.append(t.item())
        return torch.sqrt(1 - t) * torch.ones_like(y)  # NaN beyond t = 1

    solve(f, torch.zeros(1, dtype=torch.float64), [0.0, 1.0], rtol=1e-6, atol=1e-6)
    assert min(seen) >= 0
    assert max(seen) <= 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 3, 4), (0,), (0, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_shape_and_dtype(method: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    y0 = torch.rand(shape, dtype=dtype)
    y = solve(lambda t, y: -y, y0, [0.0, 0.5, 1.0], method=method, rtol=1e-4, atol=1e-4, step_size=None).y
    assert isinstance(y, Tensor)
    assert y.shape == (3, *shape)
    assert y.dtype == dtype
    assert torch.equal(y[0], y0)


@pytest.mark.parametrize("method", METHODS)
def test_tuple_states(method: str) -> None:
    """A tuple gives what the same numbers in one tensor give, with the norm of the whole."""
    first, second = torch.rand(2, 3, dtype=torch.float64), torch.rand(4, dtype=torch.float64)

    def f(t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return -y[0] * y[1].mean(), torch.cos(t) * y[1]

    def flat(t: Tensor, y: Tensor) -> Tensor:
        return torch.cat([-y[:6] * y[6:].mean(), torch.cos(t) * y[6:]])

    def largest(parts: tuple[Tensor, Tensor]) -> Tensor:
        return torch.cat([part.flatten() for part in parts]).abs().max()

    times = [0.0, 0.4, 1.0]
    y = solve(f, (first, second), times, method=method, norm=largest).y
    joined = solve(flat, torch.cat([first.flatten(), second]), times, method=method, norm=lambda x: x.abs().max()).y
    assert isinstance(y, tuple)
    assert [part.shape for part in y] == [(3, 2, 3), (3, 4)]
    torch.testing.assert_close(torch.cat([y[0].flatten(1), y[1]], dim=1), joined, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_reverse_time_mirrors_forward_time(method: str) -> None:
    y0 = torch.tensor([1.0, 2.0], dtype=torch.float64)
    backward = solve(lotka_volterra, y0, [0.0, -0.3, -1.0], method=method).y
    mirrored = solve(lambda t, y: -lotka_volterra(-t, y), y0, [0.0, 0.3, 1.0], method=method).y
    torch.testing.assert_close(backward, mirrored, rtol=1e-13, atol=1e-13)


def test_outputs_do_not_change_the_steps() -> None:
    y0 = torch.tensor([5.0, 1.0], dtype=torch.float64)
    few = solve(lotka_volterra, y0, [0.0, 3.0], rtol=1e-6, atol=1e-6)
    many = solve(lotka_volterra, y0, torch.linspace(0, 3, 301, dtype=torch.float64), rtol=1e-6, atol=1e-6)
    assert few.stats == many.stats
    assert torch.equal(few.y[-1], many.y[-1])


def test_dense_output_is_as_accurate_as_its_order() -> None:
    """Error between the steps falls with h^5 (order four, local), and the outputs are the same function."""
    y0 = torch.tensor([1.0, 0.0], dtype=torch.float64)
    errors = []
    for steps in (10, 20, 40):
        solution = solve(oscillator, y0, [0.0, 5.0], step_size=5.0 / steps, dense=True)
        times = np.linspace(0, 5, 173)
        values = torch.stack([solution.dense(t) for t in times])
        exact = torch.from_numpy(np.stack([np.cos(times), -np.sin(times)], axis=1))
        errors.append((values - exact).abs().max().item())
    assert math.log2(errors[0] / errors[1]) > 4.5
    assert math.log2(errors[1] / errors[2]) > 4.5
    outputs = solve(oscillator, y0, torch.from_numpy(times), step_size=5.0 / steps).y
    torch.testing.assert_close(outputs, values, rtol=1e-13, atol=1e-13)


def test_dense_output_of_tuples_in_reverse_time() -> None:
    y0 = (torch.tensor([1.0], dtype=torch.float64), torch.tensor([0.0], dtype=torch.float64))
    solution = solve(lambda t, y: (y[1], -y[0]), y0, [0.0, -3.0], dense=True)
    position, velocity = solution.dense(-1.7)
    assert position.item() == pytest.approx(math.cos(1.7), abs=1e-6)
    assert velocity.item() == pytest.approx(math.sin(1.7), abs=1e-6)
    with pytest.raises(InvalidArgumentError, match="outside the interval"):
        solution.dense(0.1)


@given(st.floats(0.05, 1.95), st.integers(0, 2**31))
def test_splitting_the_interval_changes_little(split: float, seed: int) -> None:
    y0 = torch.rand(2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.5
    whole = solve(lotka_volterra, y0, [0.0, 2.0], rtol=1e-9, atol=1e-9).y[-1]
    half = solve(lotka_volterra, y0, [0.0, split], rtol=1e-9, atol=1e-9).y[-1]
    rest = solve(lotka_volterra, half, [split, 2.0], rtol=1e-9, atol=1e-9).y[-1]
    torch.testing.assert_close(rest, whole, rtol=1e-6, atol=1e-6)


@given(st.permutations(range(5)), st.sampled_from(sorted(METHODS)))
def test_permuting_the_batch_permutes_the_solution(order: list[int], method: str) -> None:
    y0 = torch.rand(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) + 0.5
    times = [0.0, 0.5, 1.0]
    plain = solve(lotka_volterra, y0, times, method=method).y
    permuted = solve(lotka_volterra, y0[order], times, method=method).y
    torch.testing.assert_close(permuted, plain[:, order], rtol=1e-7, atol=1e-7)


def test_float32_state_with_a_long_time_axis() -> None:
    """Times are counted in float64, so a late start costs no accuracy."""
    y0 = torch.tensor([1.0])
    late = solve(lambda t, y: -y, y0, [1e6, 1e6 + 1], rtol=1e-5, atol=1e-6).y[-1].item()
    assert late == pytest.approx(math.exp(-1), rel=1e-4)


def test_scale_of_the_problem_does_not_matter() -> None:
    """First step and error control follow the problem, from years to nanoseconds."""
    for scale in (1e-9, 1.0, 1e9):
        y0 = torch.tensor([1.0], dtype=torch.float64)
        solution = solve(lambda t, y, s=scale: -y / s, y0, [0.0, scale], rtol=1e-8, atol=1e-8)
        assert solution.y[-1].item() == pytest.approx(math.exp(-1), rel=1e-6)
        assert solution.stats.accepted < 40


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_state_of_zero_without_absolute_tolerance(dtype: torch.dtype) -> None:
    """The tolerated error is zero at the start; the solve gets past it or gives up, but does not go on for ever."""
    y0 = torch.zeros(1, dtype=dtype)
    stays = solve(lambda t, y: y * 0, y0, [0.0, 1.0], rtol=1e-3, atol=0.0)
    assert stays.y[-1].item() == 0
    try:
        grows = solve(lambda t, y: y * 0 + 1, y0, [0.0, 1.0], rtol=1e-2, atol=0.0, max_steps=5000)
    except SolverError:
        return
    assert grows.y[-1].item() == pytest.approx(1, rel=1e-2)


def test_numbers_may_be_tensors() -> None:
    y0 = torch.ones(1, dtype=torch.float64)
    plain = solve(driven, y0, [0.0, 1.0], rtol=1e-6, atol=1e-8, first_step=0.01)
    tensors = {
        "rtol": torch.tensor(1e-6).double(),
        "atol": np.float64(1e-8),
        "first_step": torch.tensor(0.01).double(),
    }
    solution = solve(driven, y0, [0.0, 1.0], **tensors)
    assert solution.stats.step_sizes[0] == pytest.approx(0.01)
    torch.testing.assert_close(solution.y, plain.y, rtol=1e-12, atol=1e-12)
    assert all(isinstance(h, float) for h in solution.stats.step_sizes)


def test_dense_output_reaches_both_ends() -> None:
    rng = np.random.default_rng(0)
    for start, end in rng.normal(size=(100, 2)):
        solution = solve(lambda t, y: -y, torch.ones(1).double(), [start, end], rtol=1e-4, atol=1e-4, dense=True)
        torch.testing.assert_close(solution.dense(end), solution.y[-1])
        torch.testing.assert_close(solution.dense(start), solution.y[0])


@pytest.mark.parametrize("end", [3.0, -3.0])
def test_dense_output_just_outside_of_the_interval(end: float) -> None:
    """Where rounded times may lie: the first and the last step are continued."""
    dense = solve(driven, torch.ones(1, dtype=torch.float64), [0.0, end], dense=True).dense
    assert dense is not None
    for t in (-1e-3 * end, 1.001 * end):
        assert dense.packed(t).item() == pytest.approx(math.exp(math.sin(t)), rel=1e-5)


def test_a_given_first_step_is_taken() -> None:
    solution = solve(driven, torch.ones(1), [0.0, 1.0], first_step=1e-3)
    assert solution.stats.step_sizes[0] == 1e-3


@pytest.mark.parametrize(
    ("f", "error", "words"),
    [
        (lambda t, y: y * math.nan, NonFiniteError, "not finite at the start"),
        (lambda t, y: torch.where(t > 0.5, math.nan, y), NonFiniteError, "t = 0.5"),
        (lambda t, y: y**2, SolverError, r"t = (0\.9999|1\.0)"),  # y = 1 / (1 - t)
    ],
)
def test_dynamics_that_leave_their_domain(f, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        solve(f, torch.ones(1, dtype=torch.float64), [0.0, 2.0], rtol=1e-6, atol=1e-6)


def test_step_size_underflow() -> None:
    # The slope is noise of size 1e9: no step passes.
    def noise(t: Tensor, y: Tensor) -> Tensor:
        return torch.sign(torch.rand_like(y) - 0.5) * 1e9

    with pytest.raises(StepSizeUnderflowError, match="loosen rtol"):
        solve(noise, torch.ones(1), [1.0, 2.0], rtol=1e-9, atol=1e-12)


def test_max_steps() -> None:
    with pytest.raises(MaxStepsError, match=r"3 steps .* reached t = 0\.\d+.*max_steps"):
        solve(oscillator, torch.tensor([1.0, 0.0]), [0.0, 100.0], max_steps=3)


@pytest.mark.parametrize("compile", [False, True])
def test_steps_are_counted_from_one_output_to_the_next(compile: bool) -> None:
    """Four steps of a quarter each time."""
    y0 = torch.tensor([1.0, 0.0], dtype=torch.float64)
    how = {"rtol": 0.1, "atol": 0.1, "max_step": 0.25, "compile": compile}
    with torch.no_grad():
        solution = solve(oscillator, y0, torch.arange(11.0), max_steps=4, **how)
        with pytest.raises(MaxStepsError, match=r"3 steps .* from t = 0.0 to 1.0"):
            solve(oscillator, y0, torch.arange(11.0), max_steps=3, **how)
    assert solution.stats.accepted == 40


def test_steps_of_a_grid_are_counted_from_the_start() -> None:
    y0 = torch.ones(1, dtype=torch.float64)
    assert solve(driven, y0, [0.0, 0.5, 1.0], method="rk4", step_size=0.25, max_steps=4).stats.accepted == 4
    with pytest.raises(MaxStepsError, match=r"3 steps .*reached t = 0.75"):
        solve(driven, y0, [0.0, 0.5, 1.0], method="rk4", step_size=0.25, max_steps=3)


def test_a_grid_has_no_sliver_at_its_end() -> None:
    """0.1 + 0.2 is a little more than 0.3: still three steps of 0.1."""
    assert solve(driven, torch.ones(1), [0.0, 0.1 + 0.2], method="rk4", step_size=0.1).stats.accepted == 3


@pytest.mark.parametrize("direction", [1, -1])
def test_a_step_that_was_cut_is_followed_by_one_as_long_as_planned(direction: int) -> None:
    """Without an error steps grow tenfold: from 0.1 to 1, of which the stop leaves 0.05."""
    y0, t = torch.ones(1, dtype=torch.float64), [0.0, direction * 20.0]
    steps = solve(lambda t, y: 0 * y, y0, t, first_step=0.1, step_t=[direction * 0.15]).stats.step_sizes
    assert steps == pytest.approx([direction * h for h in (0.1, 0.05, 1.0, 10.0, 8.85)])
    # Also where the solve ends there, and another one goes on from it.
    settings = SolverSettings(METHODS["dopri5"], Tolerance(1e-7, 1e-9, rms_norm), first_step=0.1)
    end = torch.tensor([0.0, direction * 0.15], dtype=torch.float64)
    assert integrate(lambda t, y: 0 * y, y0, end, settings, Statistics()).next_step == pytest.approx(direction)


@pytest.mark.parametrize("how", [{}, {"method": "rk4", "step_size": 0.1}, {"method": "adams"}])
@pytest.mark.parametrize("direction", [1, -1])
def test_an_event_at_a_known_time(how: dict, direction: int) -> None:
    """The event function sees the time that belongs to the state, and ends the solve there."""
    y0 = torch.ones(1, dtype=torch.float64)
    seen = []

    def event(t: Tensor, y: Tensor) -> Tensor:
        seen.append((t.item(), y.item()))
        return t - direction * 0.777

    solution = solve(driven, y0, [0.0, direction * 0.3, direction * 2.0], event=event, **how)
    assert solution.t.tolist() == pytest.approx([0.0, direction * 0.3, direction * 0.777], rel=1e-12)
    assert solution.y[-1].item() == pytest.approx(math.exp(math.sin(direction * 0.777)), rel=1e-2)
    times, states = torch.tensor(seen, dtype=torch.float64).T
    torch.testing.assert_close(states, torch.exp(torch.sin(times)), rtol=1e-2, atol=0)


def test_which_event_ends_a_solve() -> None:
    """The first in time, of several at once the first in the list; also at the last time of all."""
    y0 = torch.ones(1, dtype=torch.float64)
    at = {"late first": [0.9, 0.4], "at once": [0.4, 0.4, 0.9], "at the end": [2.0, 1.0]}
    found = {
        name: solve(driven, y0, [0.0, 1.0], event=lambda t, y, times=times: t - torch.tensor(times)).event
        for name, times in at.items()
    }
    assert found == {"late first": 1, "at once": 0, "at the end": 1}


def test_event_of_a_complex_state_moves_with_it() -> None:
    """Im (a + ib) exp(it) = a sin t + b cos t rises to 1/2 at a time with the derivatives -tan t and -1."""
    y0 = torch.ones(1, dtype=torch.complex128, requires_grad=True)
    solution = solve(lambda t, y: 1j * y, y0, [0.0, 3.0], event=lambda t, y: y.imag - 0.5)
    assert solution.t[-1].item() == pytest.approx(math.pi / 6, rel=1e-7)
    (by_y0,) = torch.autograd.grad(solution.t[-1], y0)
    torch.testing.assert_close(by_y0, torch.tensor([-1 / math.sqrt(3) - 1j]).to(y0), rtol=1e-6, atol=1e-6)


def test_event_function_without_a_slope() -> None:
    """Its time does not move; the state there does, as at any fixed time."""
    y0 = torch.ones(1, dtype=torch.float64, requires_grad=True)
    with pytest.warns(NeuralODEWarning, match="its crossing has no slope"):
        solution = solve(driven, y0, [0.0, 1.0], event=lambda t, y: torch.where(t > 0.5, 1.0, -1.0) + 0 * y)
    assert solution.t[-1].item() == pytest.approx(0.5)
    (by_y0,) = torch.autograd.grad(solution.y[-1].sum(), y0)
    assert by_y0.item() == pytest.approx(math.exp(math.sin(0.5)), rel=1e-6)


@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_perturbed_steps_see_their_own_side_of_a_jump(method: str, direction: int) -> None:
    """y' is 1 before 0.5 and -2 after it, a point of the grid: no step may start from the slope before it."""

    def f(t: Tensor, y: Tensor) -> Tensor:
        return direction * torch.where(direction * t < 0.5, 1.0, -2.0).double() * torch.ones_like(y)

    t = [0.0, direction * 1.0]
    y = solve(f, torch.zeros(1, dtype=torch.float64), t, method=method, step_size=0.25, perturb=True).y
    assert y[-1].item() == pytest.approx(0.5 - 2 * 0.5, abs=1e-12)


@pytest.mark.parametrize("direction", [1, -1])
def test_callbacks_get_the_state_at_the_start_of_the_step(direction: int) -> None:
    seen: dict[str, list[tuple[float, float, float]]] = {"step": [], "accept": [], "reject": []}

    def watch(name: str):
        return lambda t, y, h: seen[name].append((t.item(), y.item(), h.item()))

    y0, calls = torch.ones(1, dtype=torch.float64), Callbacks(*map(watch, seen))
    how = {"rtol": 1e-6, "atol": 1e-6, "first_step": 1.5, "callbacks": calls}
    solution = solve(driven, y0, [0.0, direction * 2.0], **how)
    accepted, rejected = solution.stats.accepted, solution.stats.rejected
    assert [len(calls) for calls in seen.values()] == [accepted + rejected, accepted, rejected]
    assert rejected > 0
    for calls in seen.values():
        for t, y, h in calls:
            assert y == pytest.approx(math.exp(math.sin(t)), rel=1e-4)
            assert h > 0
    assert [direction * h for _, _, h in seen["accept"]] == pytest.approx(solution.stats.step_sizes)


GOOD = {"f": driven, "y0": torch.ones(2), "t": [0.0, 1.0]}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"f": 3}, InvalidArgumentError, "f must be callable"),
        ({"f": lambda t, y: y[:1]}, InvalidArgumentError, "shape"),
        ({"f": lambda t, y: y.double()}, InvalidArgumentError, "float64"),
        ({"f": lambda t, y: None}, InvalidArgumentError, "NoneType"),
        ({"f": lambda t, y: (y,)}, InvalidArgumentError, "tuple"),
        ({"y0": [1.0, 2.0]}, InvalidArgumentError, "y0 must be a tensor"),
        ({"y0": torch.ones(2, dtype=torch.int64)}, InvalidArgumentError, "floating-point"),
        ({"y0": ()}, InvalidArgumentError, "empty tuple"),
        ({"y0": (torch.ones(2), 3.0)}, InvalidArgumentError, "float"),
        ({"y0": (torch.ones(2), torch.ones(3)), "f": lambda t, y: y[0]}, InvalidArgumentError, "got Tensor"),
        ({"y0": (torch.ones(2), torch.ones(3)), "f": lambda t, y: y[::-1]}, InvalidArgumentError, "shapes of y0"),
        ({"t": []}, InvalidArgumentError, "at least one"),
        ({"t": torch.zeros(2, 2)}, InvalidArgumentError, "one dimension"),
        ({"t": [0.0, 0.0]}, InvalidArgumentError, "strictly"),
        ({"t": [0.0, 2.0, 1.0]}, InvalidArgumentError, "strictly"),
        ({"t": [0.0, math.nan]}, InvalidArgumentError, "finite"),
        ({"t": [0.0, math.inf]}, InvalidArgumentError, "finite"),
        ({"t": torch.tensor([0, 1])}, InvalidArgumentError, "floating-point"),
        ({"method": "dopri55"}, UnknownNameError, "did you mean 'dopri5'"),
        ({"gradient": "backsolv"}, UnknownNameError, "did you mean 'backsolve'"),
        ({"gradient": 3}, InvalidArgumentError, "gradient must be"),
        ({"gradient": "backsolve"}, InvalidArgumentError, "pass params"),
        ({"rtol": -1.0}, InvalidArgumentError, "rtol"),
        ({"atol": math.nan}, InvalidArgumentError, "atol"),
        ({"rtol": "1e-3"}, InvalidArgumentError, "rtol"),
        ({"rtol": torch.ones(3)}, InvalidArgumentError, "rtol"),
        ({"max_steps": "many"}, InvalidArgumentError, "max_steps"),
        ({"rtol": 0, "atol": 0}, InvalidArgumentError, "both be zero"),
        ({"first_step": 0.0}, InvalidArgumentError, "first_step"),
        ({"step_size": -0.1}, InvalidArgumentError, "step_size"),
        ({"max_steps": 0}, InvalidArgumentError, "max_steps"),
        ({"interpolation": "quintic"}, InvalidArgumentError, "interpolation"),
        ({"dense": True, "method": "rk4"}, InvalidArgumentError, "dense output"),
        ({"dense": True, "gradient": "backsolve", "params": ()}, InvalidArgumentError, "dense=True"),
    ],
)
def test_misuse_is_named(change: dict, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        solve(**{**GOOD, **change})


@pytest.mark.gpu
@pytest.mark.parametrize("method", METHODS)
def test_gpu_agrees_with_cpu(method: str, device: torch.device) -> None:
    y0 = torch.tensor([[5.0, 1.0]], dtype=torch.float64)
    times = [0.0, 0.5, 1.0]
    on_cpu = solve(lotka_volterra, y0, times, method=method).y
    on_gpu = solve(lotka_volterra, y0.to(device), times, method=method).y
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-10, atol=1e-10)
