"""Events: where they are found, what they see, and two derivatives of them. Right values are closed forms."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchdiffeq
from torch import Tensor, nn

from neural_ode import (
    GRADIENTS,
    METHODS,
    Event,
    InvalidArgumentError,
    MaxStepsError,
    NeuralODEWarning,
    NonFiniteError,
    odeint,
    odeint_adjoint,
    odeint_event,
    solve,
)
from neural_ode.methods import Method

DOUBLE = torch.float64
ONE = torch.ones(1, dtype=DOUBLE)
WITH_EVENTS = [name for name, method in METHODS.items() if isinstance(method, Method)]
TIGHT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}


def decay(t: Tensor, y: Tensor) -> Tensor:
    return -y


def growing(t: Tensor, y: Tensor) -> Tensor:
    """y' = 1: y is the time, and steps become as long as they may."""
    return torch.ones_like(y)


def still(t: Tensor, y: Tensor) -> Tensor:
    return torch.zeros_like(y)


def grid(method: str) -> dict[str, Any]:
    """A step where the method has no error control."""
    known = METHODS[method]
    return {} if isinstance(known, Method) and known.adaptive else {"step_size": 0.1}


def at_half(t: Tensor, y: Tensor) -> Tensor:
    return t - 0.5


@pytest.mark.parametrize("method", WITH_EVENTS)
def test_an_output_at_the_time_of_the_event(method: str) -> None:
    """Both rows are the state at that time: y' = 1 is solved exactly by every method."""
    found = solve(growing, ONE, [0.0, 0.25, 0.5, 1.0], event=at_half, method=method, **grid(method))
    assert found.t.tolist() == pytest.approx([0.0, 0.25, 0.5, 0.5], abs=1e-12)
    torch.testing.assert_close(found.y[:, 0], ONE + found.t, rtol=1e-10, atol=0)


@pytest.mark.parametrize("gradient", [name for name in GRADIENTS if name != "reversible"])
@pytest.mark.parametrize("method", ["dopri5", "tsit5", "kvaerno5"])
def test_an_output_at_the_time_of_the_event_with_gradients(gradient: str, method: str) -> None:
    y0 = torch.tensor(1.0, dtype=DOUBLE, requires_grad=True)
    found = solve(
        decay, y0, [0.0, 0.5, 1.0, 2.0], event=at_half, method=method, gradient=gradient, params=(), **TIGHT
    )
    torch.testing.assert_close(found.y[1:], torch.full((2,), math.exp(-0.5), dtype=DOUBLE), rtol=1e-8, atol=0)
    for row in (1, 2):
        (slope,) = torch.autograd.grad(found.y[row], y0, retain_graph=True)
        assert slope.item() == pytest.approx(math.exp(-0.5), rel=1e-6)


@pytest.mark.parametrize("method", ["dopri5", "adams", "rk4", "kvaerno5"])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_events_see_the_time_in_double_precision(method: str, dtype: torch.dtype) -> None:
    """Around a million, float32 has steps of 1/16."""
    when = 1e6 + 0.7123
    start = torch.tensor([1e6], dtype=DOUBLE)
    y0 = torch.ones(2, dtype=dtype)
    on_grid = {} if method != "rk4" else {"step_size": 0.3}
    found = solve(still, y0, [1e6, 1e6 + 2], event=lambda t, y: t - when, method=method, **on_grid)
    assert found.t[-1].item() == pytest.approx(when, abs=1e-9)
    time, _ = odeint(
        still, y0, torch.tensor([1e6, 1e6 + 2], dtype=DOUBLE), event_fn=lambda t, y: t - when, method=method,
        options=on_grid,
    )  # fmt: skip
    assert time.item() == pytest.approx(when, abs=1e-9)
    time, _ = odeint_event(still, y0, start, event_fn=lambda t, y: t - when, method=method, options=on_grid)
    assert time.item() == pytest.approx(when, abs=1e-9)


def test_stage_times_are_counted_in_double_precision() -> None:
    """A float32 state sees the time rounded once, not a sum of rounded times."""
    seen = []

    def f(t: Tensor, y: Tensor) -> Tensor:
        seen.append(t.item())
        return torch.zeros_like(y)

    solve(f, torch.ones(1), [1e6, 1e6 + 1.0], method="rk4", step_size=0.05)
    exact = [1e6 + 0.05 * step + c for step in range(20) for c in (0.0, 0.05 / 3, 0.1 / 3, 0.05)]
    assert seen == torch.tensor(exact, dtype=DOUBLE).float().tolist()


class Decay(nn.Module):
    """y1' = -a y1 and y2' = a t y2."""

    def __init__(self, a: float = 0.7):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a, dtype=DOUBLE))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([-self.a * y[0], self.a * y[1] * t])


def half(t: Tensor, y: Tensor) -> Tensor:
    return y[0] - 0.5


Run = Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]


def by_solve(**how: Any) -> Run:
    def run(f: nn.Module, y0: Tensor) -> tuple[Tensor, Tensor]:
        found = solve(f, y0, [0.0, 10.0], event=half, **TIGHT, **how)
        assert isinstance(found.y, Tensor)
        return found.t[-1], found.y[-1]

    return run


def by_name(interface: Callable[..., Any]) -> Run:
    def run(f: nn.Module, y0: Tensor) -> tuple[Tensor, Tensor]:
        start = torch.zeros(1, dtype=DOUBLE)
        time, states = odeint_event(f, y0, start, event_fn=half, odeint_interface=interface, **TIGHT)
        assert isinstance(states, Tensor)
        return time, states[-1]

    return run


WAYS: dict[str, Run] = {
    **{name: by_solve(gradient=name) for name in GRADIENTS if name != "reversible"},
    "tsit5": by_solve(method="tsit5"),
    "adams": by_solve(method="adams"),
    "kvaerno5": by_solve(method="kvaerno5"),
    "rk4": by_solve(method="rk4", step_size=0.01, interpolation="cubic"),
    "odeint": by_name(odeint),
    "odeint_adjoint": by_name(odeint_adjoint),
}


@pytest.mark.parametrize("way", WAYS)
def test_two_derivatives_of_time_and_state(way: str) -> None:
    """y1 falls to 1/2 at T = ln 2 / a, where y2 = exp(a T² / 2) = exp(L / a) with L = (ln 2)² / 2."""
    f = Decay()
    a, L = 0.7, math.log(2) ** 2 / 2
    time, state = WAYS[way](f, torch.ones(2, dtype=DOUBLE))
    value = math.exp(L / a)
    right = {
        time: (math.log(2) / a, -math.log(2) / a**2, 2 * math.log(2) / a**3),
        state[0]: (0.5, 0.0, 0.0),
        state[1]: (value, -L / a**2 * value, (2 * L / a**3 + L**2 / a**4) * value),
    }
    for found, (exact, first, second) in right.items():
        assert found.item() == pytest.approx(exact, abs=1e-7)
        (slope,) = torch.autograd.grad(found, f.a, create_graph=True)
        assert slope.item() == pytest.approx(first, abs=1e-6)
        (bend,) = torch.autograd.grad(slope, f.a, retain_graph=True)
        assert bend.item() == pytest.approx(second, abs=1e-5)


def test_two_derivatives_in_the_event_function_and_the_start() -> None:
    """y' = -y from y0 falls to c at ln(y0 / c): both Hessians are of a logarithm, and the mixed one is zero."""
    y0, c = (torch.tensor(x, dtype=DOUBLE, requires_grad=True) for x in (1.3, 0.4))
    time = solve(decay, y0, [0.0, 10.0], event=lambda t, y: y - c, **TIGHT).t[-1]
    by_y0, by_c = torch.autograd.grad(time, (y0, c), create_graph=True)
    assert (by_y0.item(), by_c.item()) == pytest.approx((1 / 1.3, -1 / 0.4), abs=1e-8)
    first = torch.autograd.grad(by_y0, (y0, c), retain_graph=True)
    second = torch.autograd.grad(by_c, (y0, c))
    assert [x.item() for x in (*first, *second)] == pytest.approx([-1 / 1.3**2, 0, 0, 1 / 0.4**2], abs=1e-7)


def test_third_derivatives_are_refused() -> None:
    f = Decay()
    time, _ = by_solve()(f, torch.ones(2, dtype=DOUBLE))
    (first,) = torch.autograd.grad(time, f.a, create_graph=True)
    (second,) = torch.autograd.grad(first, f.a, create_graph=True)
    with pytest.raises(InvalidArgumentError, match="third ones would be wrong"):
        torch.autograd.grad(second, f.a)


@pytest.mark.parametrize("method", ["dopri5", "adams", "rk4"])
@pytest.mark.parametrize("first", [0.3, 3.3, 30.3])
def test_crossings_that_come_and_go_within_a_step(method: str, first: float) -> None:
    """The steps of y' = 1 become ten times as long each; the first of two crossings is the event."""

    def event(t: Tensor, y: Tensor) -> Tensor:
        return (y - first) * (y - first - 0.1)

    found = solve(growing, 0 * ONE, [0.0, 100.0], event=event, method=method, **grid(method))
    assert found.t[-1].item() == pytest.approx(first, abs=1e-9)


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_the_first_of_many_crossings(method: str) -> None:
    found = solve(still, ONE, [0.0, 10.0], event=lambda t, y: torch.sin(t - 0.1), method=method, **grid(method))
    assert found.t[-1].item() == pytest.approx(0.1, abs=1e-9)


@pytest.mark.parametrize(
    "event",
    [lambda t, y: y < 0.5, lambda t, y: (y < 0.5).long(), lambda t, y: 2 * (y < 0.5).int() - 1],
    ids=["boolean", "integer", "signed"],
)
def test_events_without_a_slope_are_bisected(event: Callable[[Tensor, Tensor], Tensor]) -> None:
    """As in torchdiffeq; which, though, stops at once where the sign at the start is that of `False` or 0."""
    times = torch.tensor([0.0, 5.0], dtype=DOUBLE)
    for watched in (event, Event(event, direction="rising")):
        found = solve(decay, ONE, [0.0, 5.0], event=watched, **TIGHT)
        assert found.t[-1].item() == pytest.approx(math.log(2), abs=1e-9)
        time, _ = odeint(decay, ONE, times, event_fn=watched, **TIGHT)
        assert time.item() == pytest.approx(math.log(2), abs=1e-9)
    for starts_at_one in (lambda t, y: y > 0.5, lambda t, y: (y > 0.5).long()):
        time, _ = odeint(decay, ONE, times, event_fn=starts_at_one, **TIGHT)
        expected, _ = torchdiffeq.odeint(decay, ONE, times, event_fn=starts_at_one, **TIGHT)
        assert time.item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize(
    ("event", "words"),
    [(lambda t, y: y < 0.5, "no derivative"), (lambda t, y: (y - 0.5).clamp(min=0), "no slope")],
    ids=["boolean", "flat"],
)
def test_a_lost_gradient_is_named(event: Callable[[Tensor, Tensor], Tensor], words: str) -> None:
    y0 = ONE.clone().requires_grad_()
    with pytest.warns(NeuralODEWarning, match=f"number 0 of the event function.*{words}"):
        solve(decay, y0, [0.0, 5.0], event=event)


def test_an_event_of_time_alone_loses_nothing() -> None:
    """Its time is a constant, and the state there moves with the start only."""
    y0 = ONE.clone().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = solve(decay, y0, [0.0, 5.0], event=at_half, **TIGHT)
    (slope,) = torch.autograd.grad(found.y[-1].sum(), y0)
    assert slope.item() == pytest.approx(math.exp(-0.5), rel=1e-8)
    assert not found.t.requires_grad


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_the_direction_of_a_crossing(method: str) -> None:
    """sin y for y = t crosses at 0, π, 2π."""

    def time(**how: Any) -> float:
        event = Event(lambda t, y: torch.sin(y), **how)
        found = solve(growing, 0 * ONE, [0.0, 10.0], event=event, method=method, **grid(method))
        return found.t[-1].item()

    assert time() == 0.0
    assert time(direction="falling") == pytest.approx(math.pi, abs=1e-6)
    assert time(direction="rising") == pytest.approx(2 * math.pi, abs=1e-6)
    assert time(skip_start=True) == pytest.approx(math.pi, abs=1e-6)


def test_backwards_in_time_a_crossing_falls_as_the_solve_sees_it() -> None:
    event = Event(lambda t, y: torch.sin(y), direction="falling")
    found = solve(growing, 4 + 0 * ONE, [4.0, -10.0], event=event)
    assert found.t[-1].item() == pytest.approx(0.0, abs=1e-6)


def test_a_ball_that_bounces() -> None:
    """From the event on: with a direction, the ground where it starts is no event. Bounces of v are 2v/g long."""

    def fall(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[1], torch.full_like(y[1], -9.81)])

    ground = Event(lambda t, y: y[0], direction="falling")
    time, state = 0.0, torch.tensor([0.0, 9.81], dtype=DOUBLE)
    times = []
    for _ in range(4):
        found = solve(fall, state, [time, math.inf], event=ground)
        time, state = found.t[-1].item(), found.y[-1] * torch.tensor([1.0, -0.5], dtype=DOUBLE)
        times.append(time)
    assert times == pytest.approx([2.0, 3.0, 3.5, 3.75], abs=1e-6)


def test_waiting_in_vain_says_how_to_start_from_an_event() -> None:
    y = solve(decay, ONE, [0.0, math.inf], event=lambda t, y: y - 0.5).y[-1]
    with pytest.raises(MaxStepsError, match=r"goes on from an event.*direction.*skip_start"):
        solve(decay, y, [0.0, math.inf], event=lambda t, y: y - 0.6, max_steps=50)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, DOUBLE])
def test_an_event_that_never_comes_ends(dtype: torch.dtype) -> None:
    """Steps grow until their length is no number of the dtype."""
    with pytest.raises(MaxStepsError, match="no event until"):
        solve(still, torch.ones(2, dtype=dtype), [0.0, math.inf], event=lambda t, y: y + 1, rtol=1e-2, atol=1e-2)


def test_what_an_event_must_be() -> None:
    with pytest.raises(InvalidArgumentError, match="direction must be 'rising', 'falling' or None, got 'up'"):
        Event(half, direction="up")  # type: ignore[arg-type]
    with pytest.raises(NonFiniteError, match="NaN at the start"):
        solve(decay, ONE, [0.0, 1.0], event=lambda t, y: (y - 2).sqrt())
    with pytest.raises(InvalidArgumentError, match="changed the state in place"):
        solve(decay, ONE, [0.0, 1.0], event=lambda t, y: y.sub_(0.5))
    assert ONE.item() == 1.0


def test_the_number_that_crossed_is_followed() -> None:
    """Not one that is always near zero."""
    f = Decay()

    def event(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([1e-20 * y[1], y[0] - 0.5])

    time, _ = odeint_event(f, torch.ones(2, dtype=DOUBLE), torch.zeros(1, dtype=DOUBLE), event_fn=event, **TIGHT)
    (slope,) = torch.autograd.grad(time, f.a)
    assert slope.item() == pytest.approx(-math.log(2) / 0.49, abs=1e-7)


@pytest.mark.parametrize(
    ("direction", "when"), [("falling", math.log(2)), ("rising", math.log(4)), (None, math.log(2))]
)
def test_integers_in_one_direction(direction: Any, when: float) -> None:
    """1 until y is 1/2, then 0 until it is 1/4, then 2."""

    def event(t: Tensor, y: Tensor) -> Tensor:
        return (y > 0.5).int() + 2 * (y < 0.25).int()

    found = solve(decay, ONE, [0.0, 5.0], event=Event(event, direction=direction), **TIGHT)
    assert found.t[-1].item() == pytest.approx(when, abs=1e-9)


def test_an_event_function_with_a_buffer() -> None:
    buffer = torch.empty(1, dtype=DOUBLE)

    def event(t: Tensor, y: Tensor) -> Tensor:
        return buffer.copy_(y - 0.5)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = solve(decay, ONE, [0.0, 5.0], event=event, **TIGHT)
    assert found.t[-1].item() == pytest.approx(math.log(2), abs=1e-9)


def test_forward_mode_through_an_event_is_refused() -> None:
    with torch.autograd.forward_ad.dual_level():
        y0 = torch.autograd.forward_ad.make_dual(ONE, ONE)
        with pytest.raises(InvalidArgumentError, match="reverse mode"):
            solve(decay, y0, [0.0, 5.0], event=lambda t, y: y - 0.5)


@pytest.mark.parametrize("when", [1500.0, 5000.0, 40000.0])
def test_half_precision_reaches_an_event(when: float) -> None:
    y0 = torch.ones(2, dtype=torch.float16)
    found = solve(still, y0, [0.0, math.inf], event=lambda t, y: t - when, rtol=1e-2, atol=1e-2)
    assert found.t[-1].item() == pytest.approx(when, abs=1e-6)
