"""What torchdiffeq takes and does, side by side: options, callbacks, norms, events, tolerances, complex states."""

import math
import warnings
from typing import Any

import pytest
import torch
import torchdiffeq
from torch import Tensor, nn

import neural_ode
from neural_ode.methods import METHODS, ExplicitRungeKutta, Method

LIBRARIES = (torchdiffeq, neural_ode)
FIXED = ["euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams", "implicit_adams"]
ADAPTIVE = ["dopri8", "dopri5", "bosh3", "fehlberg2", "adaptive_heun"]
TOLERANCE = {"dopri8": 1e-9, "dopri5": 1e-8, "bosh3": 1e-6, "fehlberg2": 1e-4, "adaptive_heun": 1e-5}


class Field(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(2, 2).double()

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(self.linear(y)) * torch.cos(t)


def states() -> Tensor:
    return torch.tensor([[1.0, -0.5], [0.3, 2.0]], dtype=torch.float64)


def both(function: str, *arguments: Any, **keywords: Any) -> tuple[Any, Any]:
    """The results of torchdiffeq and of this library."""
    theirs, ours = (getattr(library, function)(*arguments, **keywords) for library in LIBRARIES)
    return theirs, ours


@pytest.mark.parametrize("method", FIXED)
@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize(
    "options",
    [
        None,
        {"step_size": 0.05},
        {"step_size": 0.06, "interp": "cubic"},
        {"grid_constructor": lambda f, y, t: torch.linspace(t[0].item(), t[-1].item(), 13, dtype=t.dtype)},
        {"step_size": 0.1, "perturb": True},
    ],
)
@pytest.mark.filterwarnings("ignore:.*did not converge")
def test_fixed_grids_give_the_same_numbers(method: str, direction: int, options: dict[str, Any] | None) -> None:
    t = direction * torch.tensor([0.0, 0.3, 0.6, 0.9, 1.2], dtype=torch.float64)
    theirs, ours = both("odeint", Field(), states(), t, method=method, options=options)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("method", ADAPTIVE)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"first_step": 0.01, "safety": 0.8, "ifactor": 4.0, "dfactor": 0.5},
        {"max_step": 0.05},
        {"min_step": 0.01},
        {"step_t": torch.tensor([0.25, 0.5])},
        {"dtype": torch.float64},
    ],
)
def test_adaptive_methods_are_as_accurate(method: str, options: dict[str, Any]) -> None:
    """The steps differ a little, and so do the numbers: the errors are of one size."""
    f, t = Field(), torch.linspace(0, 1.2, 5, dtype=torch.float64)
    tolerance = TOLERANCE[method]
    exact = torchdiffeq.odeint(f, states(), t, rtol=1e-12, atol=1e-13)
    theirs, ours = (
        (y - exact).abs().max().item()
        for y in both("odeint", f, states(), t, method=method, rtol=tolerance, atol=tolerance, options=options)
    )
    assert ours < 4 * theirs + 10 * tolerance


@pytest.mark.parametrize("as_tuple", [False, True])
@pytest.mark.parametrize("rtol", [1e-5, torch.tensor(1e-5), "parts"])
def test_tolerances(as_tuple: bool, rtol: Any) -> None:
    """A number, a tensor, or one for each entry or part of the state; a looser one means fewer evaluations."""
    y0 = states()
    loose = (1e-2, 1e-5) if as_tuple else torch.tensor([1e-2, 1e-5], dtype=torch.float64)
    chosen = loose if rtol == "parts" else rtol
    f = Field()
    field = (lambda t, y: (f(t, y[0]), y[1] * 0)) if as_tuple else f
    start = (y0, y0) if as_tuple else y0
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    theirs, ours = both("odeint", field, start, t, rtol=chosen, atol=1e-12)
    torch.testing.assert_close(ours, theirs, rtol=1e-2 if rtol == "parts" else 1e-4, atol=1e-4)


@pytest.mark.parametrize("jump", [0.5, 0.31])
@pytest.mark.parametrize("direction", [1, -1])
def test_jumps(jump: float, direction: int) -> None:
    """Told of the discontinuity, a solve is exact and needs fewer evaluations."""
    calls = 0

    def f(t: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.where(direction * t < jump, torch.ones_like(y), -2 * torch.ones_like(y)) * direction

    t = direction * torch.tensor([0.0, 1.0], dtype=torch.float64)
    y0 = torch.zeros(1, dtype=torch.float64)
    told = neural_ode.odeint(f, y0, t, options={"jump_t": direction * torch.tensor([jump], dtype=torch.float64)})
    with_jump, calls = calls, 0
    neural_ode.odeint(f, y0, t)
    assert told[-1].item() == pytest.approx(jump - 2 * (1 - jump), abs=1e-14)
    assert with_jump < calls / 4


class Watched(Field):
    """Writes down its callbacks."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, Any]] = []
        for name in ("callback_step", "callback_accept_step", "callback_reject_step"):
            for suffix in ("", "_adjoint"):
                setattr(self, name + suffix, self.watcher(name + suffix))

    def watcher(self, name: str) -> Any:
        def watch(t: Tensor, y: Any, h: Tensor) -> None:
            shapes = tuple(tuple(part.shape) for part in y) if isinstance(y, tuple) else tuple(y.shape)
            assert t.shape == h.shape == ()
            assert h > 0
            self.seen.append((name, shapes))

        return watch


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
@pytest.mark.parametrize("direction", [1, -1])
def test_callbacks(method: str, direction: int) -> None:
    kinds = []
    t = direction * torch.tensor([0.0, 1.0], dtype=torch.float64)
    for library in LIBRARIES:
        f = Watched()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            y = library.odeint_adjoint(f, states(), t, method=method, rtol=1e-5, atol=1e-5)
            y.sum().backward()
        kinds.append((sorted(set(f.seen)), any("callback_accept_step" in str(w.message) for w in caught)))
        if method == "rk4":
            kinds[-1] += (len(f.seen),)  # type: ignore[assignment]
    assert kinds[0] == kinds[1]


@pytest.mark.parametrize(
    ("method", "option"), [("dopri5", "step_size"), ("rk4", "first_step"), ("dopri5", "max_ordr")]
)
def test_options_without_effect_warn_by_name(method: str, option: str) -> None:
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    for library in LIBRARIES:
        with pytest.warns(UserWarning, match=option):
            library.odeint(Field(), states(), t, method=method, options={option: 0.1})


@pytest.mark.parametrize("as_tuple", [False, True])
@pytest.mark.parametrize("norm", ["own", "seminorm", None])
def test_norms_of_the_adjoint(as_tuple: bool, norm: str | None) -> None:
    """Called with the same structure; the gradients agree."""
    gradients, structures = [], []
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    for library in LIBRARIES:
        seen = set()

        def own(parts: tuple[Tensor, ...], seen: set[Any] = seen) -> Tensor:
            seen.add(tuple(tuple(part.shape) for part in parts))
            return torch.stack([part.abs().max() for part in parts]).max()

        f = Field()
        y0 = states().requires_grad_()
        field = f
        if as_tuple:
            field = nn.Module()  # type: ignore[assignment]
            field.f = f
            field.forward = lambda t, y, f=f: (f(t, y[0]), y[1] * t)  # type: ignore[method-assign]
        start = (y0, y0[0]) if as_tuple else y0
        options = {} if norm is None else {"adjoint_options": {"norm": own if norm == "own" else norm}}
        y = library.odeint_adjoint(field, start, t, rtol=1e-8, atol=1e-8, **options)
        loss = y[0][-1].sum() + y[1][-1].sum() if as_tuple else y[-1].sum()
        gradients.append(torch.autograd.grad(loss, [y0, *f.parameters()]))
        structures.append(seen)
    assert structures[0] == structures[1]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


ALL = [name for name, m in METHODS.items() if isinstance(m, Method)]


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("reverse", [False, True])
def test_events(method: str, reverse: bool) -> None:
    """A falling ball: the time it takes, the speed it has, and how both change with the height."""
    adaptive = METHODS[method].adaptive  # type: ignore[union-attr]
    how: dict[str, Any] = (
        {"rtol": 1e-7, "atol": 1e-7} if METHODS[method].order > 2 else {"rtol": 1e-4, "atol": 1e-4}
    )  # type: ignore[union-attr]
    if not adaptive:
        how["options"] = {"step_size": 0.01, "interp": "cubic"}
    y0 = torch.tensor([10.0, 0.0], dtype=torch.float64, requires_grad=True)
    sign = -1.0 if reverse else 1.0

    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[1], torch.full_like(y[1], -9.81)])

    event_t, y = neural_ode.odeint_event(
        f,
        y0,
        torch.tensor(0.0, dtype=torch.float64),
        event_fn=lambda t, y: y[0],
        reverse_time=reverse,
        method=method,
        **how,
    )
    duration = math.sqrt(20 / 9.81)
    close = 1e-6 if METHODS[method].order > 2 else 2e-2  # type: ignore[union-attr]
    assert event_t.item() == pytest.approx(sign * duration, rel=close)
    assert y.shape == (2, 2)
    assert y[-1, 1].item() == pytest.approx(-sign * 9.81 * duration, rel=close)
    (by_time,) = torch.autograd.grad(event_t, y0, retain_graph=True)
    (by_speed,) = torch.autograd.grad(y[-1, 1], y0)
    # With an initial speed v, the ball lands at (v + sqrt(v² + 2 g h)) / g.
    assert by_time.tolist() == pytest.approx([sign / (9.81 * duration), 1 / 9.81], rel=10 * close)
    assert by_speed.tolist() == pytest.approx([-sign / duration, 0.0], rel=10 * close, abs=10 * close)


@pytest.mark.parametrize("interface", ["odeint", "odeint_adjoint"])
def test_events_agree_with_torchdiffeq(interface: str) -> None:
    """A tuple state, an event function with two components and parameters, gradients through both."""
    found = []
    for library in LIBRARIES:
        f, y0 = Field(), states()[0].requires_grad_()
        keywords: dict[str, Any] = {"odeint_interface": getattr(library, interface), "rtol": 1e-10, "atol": 1e-10}
        if interface == "odeint_adjoint":
            keywords["adjoint_params"] = tuple(f.parameters())
        event_t, (y, _) = library.odeint_event(
            lambda t, y, f=f: (f(t, y[0]), y[1] * 0),
            (y0, y0[:1]),
            torch.tensor([0.0], dtype=torch.float64),
            event_fn=lambda t, y: torch.stack([y[0][0] - 1.2, y[0][1] + 3.0]),
            **keywords,
        )
        loss = event_t + y[-1].prod()
        found.append((event_t.reshape(()), y[-1], *torch.autograd.grad(loss.sum(), [y0, *f.parameters()])))
    for ours, theirs in zip(*found[::-1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_gradient_of_the_parameters_of_an_event_function() -> None:
    """Where torchdiffeq has none: the time when exp(-t) reaches a level moves with the level."""
    level = torch.tensor(0.25, dtype=torch.float64, requires_grad=True)
    solution = neural_ode.solve(
        lambda t, y: -y,
        torch.ones(1, dtype=torch.float64),
        [0.0, 0.5, math.inf],
        event=lambda t, y: y[0] - level,
        rtol=1e-10,
        atol=1e-12,
    )
    assert solution.t.tolist() == pytest.approx([0.0, 0.5, math.log(4)], rel=1e-9)
    (by_level,) = torch.autograd.grad(solution.t[-1], level)
    assert by_level.item() == pytest.approx(-1 / 0.25, rel=1e-6)


@pytest.mark.parametrize("function", ["odeint", "odeint_adjoint"])
@pytest.mark.parametrize("method", ["dopri5", "rk4", "implicit_adams"])
def test_complex_states_with_real_and_complex_parameters(function: str, method: str) -> None:
    """y' = w y with w real or complex: the gradient is that of exp(w t)."""
    t = torch.linspace(0, 1, 41, dtype=torch.float64)
    for w in (torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.3 - 0.8j, dtype=torch.complex128)):
        w.requires_grad_()
        y0 = torch.tensor([1 + 1j, 2j], dtype=torch.complex128, requires_grad=True)
        keywords: dict[str, Any] = {"adjoint_params": (w,)} if function == "odeint_adjoint" else {}
        y = getattr(neural_ode, function)(lambda t, y, w=w: w * y, y0, t, method=method, **keywords)
        exact = y0 * torch.exp(w * t[-1])
        torch.testing.assert_close(y[-1], exact, rtol=1e-5, atol=1e-5)
        for loss in (lambda y: y.real.sum(), lambda y: (y.abs() ** 2).sum()):
            ours = torch.autograd.grad(loss(y[-1]), [y0, w], retain_graph=True)
            for a, b in zip(ours, torch.autograd.grad(loss(exact), [y0, w], retain_graph=True), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "method", [n for n, m in METHODS.items() if isinstance(m, ExplicitRungeKutta) and m.adaptive]
)
def test_dense_output(method: str) -> None:
    tolerance = TOLERANCE.get(method, 1e-8)
    dense = neural_ode.odeint_dense(
        Field(), states(), torch.tensor(0.0), torch.tensor(1.0), method=method, rtol=tolerance, atol=tolerance
    )
    times = torch.tensor([[0.0, 0.7], [0.123, 1.0]], dtype=torch.float64)
    found = dense(times)
    assert found.shape == (2, 2, 2, 2)
    exact = torchdiffeq.odeint(Field(), states(), times.reshape(-1).sort().values, rtol=1e-12, atol=1e-13)
    order = times.reshape(-1).argsort()
    torch.testing.assert_close(found.reshape(4, 2, 2)[order], exact, rtol=100 * tolerance, atol=100 * tolerance)
