"""Gradients of tensors that were computed from others before the solve, and of tensors that nobody named."""

import math
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from neural_ode import (
    GRADIENTS,
    Backsolve,
    InvalidArgumentError,
    NeuralODEWarning,
    RecursiveCheckpoint,
    odeint,
    odeint_adjoint,
    solve,
)

DOUBLE = torch.float64
Y0 = torch.tensor([1.0, 2.0], dtype=DOUBLE)
TIMES = torch.tensor([0.0, 1.0], dtype=DOUBLE)
TIGHT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}
CHOICES: dict[str, Any] = {
    **{name: name for name in GRADIENTS if name != "direct"},
    "quadrature": Backsolve(quadrature=True),
    "few states": RecursiveCheckpoint("log"),
}
W = 0.7


def field(v: Tensor, w: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """y' = -v y (1 + w sin t): y(1) = y0 exp(-v (1 + w (1 - cos 1)))."""
    return lambda t, y: -v * y * (1 + w * torch.sin(t))


def exact(w: Tensor) -> Tensor:
    return 3 * torch.exp(-softplus(w) * (1 + w * (1 - math.cos(1))))


def derivatives(loss: Tensor, w: Tensor) -> tuple[float, float]:
    (first,) = torch.autograd.grad(loss, w, create_graph=True)
    (second,) = torch.autograd.grad(first, w, retain_graph=True)
    return first.item(), second.item()


def weight() -> Tensor:
    return torch.tensor(W, dtype=DOUBLE, requires_grad=True)


@pytest.mark.parametrize("named", ["w", "v and w", "w and v", "w twice"])
@pytest.mark.parametrize("choice", CHOICES)
def test_two_derivatives_where_one_tensor_was_computed_from_the_other(choice: str, named: str) -> None:
    """Naming both, or one twice, counts nothing twice (in torchdiffeq it does)."""
    w = weight()
    v = softplus(w)
    params = {"w": (w,), "v and w": (v, w), "w and v": (w, v), "w twice": (w, w)}[named]
    y = solve(field(v, w), Y0, TIMES, gradient=CHOICES[choice], params=params, **TIGHT).y
    found = derivatives(y[-1].sum(), w)
    assert found == pytest.approx(derivatives(exact(w), w), rel=1e-6)


@pytest.mark.parametrize("choice", CHOICES)
def test_a_chain_of_three(choice: str) -> None:
    """u from v from w, all named, with gradients for each of them."""
    w = weight()
    v = softplus(w)
    u = v * w
    y = solve(
        lambda t, y: -(u + v) * y * w, Y0, TIMES, gradient=CHOICES[choice], params=(w, u, v), **TIGHT
    ).y  # fmt: skip
    found = torch.autograd.grad(y[-1].sum(), (u, v, w), retain_graph=True)
    loss = 3 * torch.exp(-(u + v) * w)
    right = torch.autograd.grad(loss, (u, v, w))
    torch.testing.assert_close(found, right, rtol=1e-6, atol=1e-8)


class Prepared(nn.Module):
    """A rate that is positive: prepared before the solve, as weights of a hypernetwork or splines are."""

    def __init__(self) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.tensor(W, dtype=DOUBLE))

    def prepare(self) -> "Prepared":
        self.rate = softplus(self.raw)
        return self

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return -self.rate * y


@pytest.mark.filterwarnings("ignore:compile=True.*AugmentedSystem:neural_ode.NeuralODEWarning")
@pytest.mark.parametrize(
    ("choice", "compiled"),
    [(name, compiled) for name in CHOICES for compiled in (False, True) if not (compiled and name == "reversible")],
)
def test_a_module_that_prepares_its_weights(choice: str, compiled: bool) -> None:
    f = Prepared().prepare()
    y = solve(f, Y0, [0.0, 0.5, 1.0], gradient=CHOICES[choice], compile=compiled, **TIGHT).y
    found = derivatives(y[-1].sum(), f.raw)
    raw = weight()
    assert found == pytest.approx(derivatives(3 * torch.exp(-softplus(raw)), raw), rel=1e-6)


def test_the_names_of_torchdiffeq() -> None:
    f = Prepared().prepare()
    odeint_adjoint(f, Y0, TIMES, **TIGHT)[-1].sum().backward()
    slope = -3 * math.exp(-math.log1p(math.exp(W))) / (1 + math.exp(-W))
    assert f.raw.grad is not None
    assert f.raw.grad.item() == pytest.approx(slope, rel=1e-8)
    w = weight()
    v = softplus(w)
    odeint_adjoint(field(v, w), Y0, TIMES, adjoint_params=(v, w), **TIGHT)[-1].sum().backward()
    assert w.grad is not None
    assert w.grad.item() == pytest.approx(_slope(), rel=1e-8)
    for choice in ("recursive_checkpoint", "backsolve", "interpolating"):
        w = weight()
        v = softplus(w)
        odeint(field(v, w), Y0, TIMES, gradient=choice, **TIGHT)[-1].sum().backward()
        assert w.grad is not None
        assert w.grad.item() == pytest.approx(_slope(), rel=1e-6)


def _slope() -> float:
    w = weight()
    (slope,) = torch.autograd.grad(exact(w), w)
    return slope.item()


@pytest.mark.parametrize("choice", [name for name in GRADIENTS if name != "direct"])
def test_what_would_get_no_gradient_is_named(choice: str) -> None:
    class Careless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rate = nn.Parameter(torch.tensor(W, dtype=DOUBLE))
            self.offset = torch.zeros(2, dtype=DOUBLE, requires_grad=True)

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return -self.rate * y + self.offset

    with pytest.warns(NeuralODEWarning, match="no gradient for offset,"):
        solve(Careless(), Y0, TIMES, gradient=choice)
    if choice == "backsolve":
        with pytest.warns(NeuralODEWarning, match="no gradient for offset,"):
            odeint_adjoint(Careless(), Y0, TIMES)
    w, unnamed = weight(), weight()
    with pytest.warns(NeuralODEWarning, match="no gradient for unnamed,"):
        solve(lambda t, y: -w * y * unnamed, Y0, TIMES, gradient=choice, params=(w,))


@pytest.mark.parametrize("choice", [name for name in GRADIENTS if name != "direct"])
def test_no_warning_where_nothing_is_lost(choice: str) -> None:
    w, unnamed = weight(), weight()
    v = softplus(w)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solve(lambda t, y: -v * y, Y0, TIMES, gradient=choice, params=(w,))
        solve(lambda t, y: -unnamed * y, Y0, TIMES, gradient=choice, params=())
        solve(Prepared().prepare(), Y0, TIMES, gradient=choice)
        with torch.no_grad():
            solve(lambda t, y: -w * y * unnamed, Y0, TIMES, gradient=choice, params=(w,))


def euler(f: Any, y0: Tensor, t: Tensor, rtol: Any, atol: Any) -> Tensor:
    states = [y0]
    for start, end in pairwise(t):
        y, h = states[-1], (end - start) / 500
        for step in range(500):
            y = y + h * f(start + step * h, y)
        states.append(y)
    return torch.stack(states)


@pytest.mark.parametrize("method", [euler, "scipy_solver"])
def test_a_black_box_has_gradients_by_default(method: Any) -> None:
    """Of the start, of the parameters of a module, and of what a function refers to."""
    k, y0 = weight(), Y0.clone().requires_grad_()
    module = nn.Linear(2, 2, bias=False, dtype=DOUBLE)
    nn.init.zeros_(module.weight)
    runs = [
        solve(lambda t, y: -k * y + module(y), y0, TIMES, method=method).y,
        odeint(lambda t, y: -k * y + module(y), y0, TIMES, method=method),
    ]
    for y in runs:
        by_k, by_y0, by_weight = torch.autograd.grad(y[-1].sum(), (k, y0, module.weight))
        assert by_k.item() == pytest.approx(-3 * math.exp(-W), rel=2e-3)
        torch.testing.assert_close(by_y0, torch.full((2,), math.exp(-W), dtype=DOUBLE), rtol=2e-3, atol=0)
        right = math.exp(-W) * Y0.expand(2, 2)
        torch.testing.assert_close(by_weight, right, rtol=2e-3, atol=0)


@pytest.mark.parametrize("method", [euler, "scipy_solver"])
def test_direct_gradients_of_a_black_box_are_refused(method: Any) -> None:
    for call in (
        lambda: solve(lambda t, y: -y, Y0, TIMES, method=method, gradient="direct"),
        lambda: odeint(lambda t, y: -y, Y0, TIMES, method=method, gradient="direct"),
    ):
        with pytest.raises(InvalidArgumentError, match=r"gradient='direct' goes back.*use gradient='backsolve'"):
            call()


@pytest.mark.parametrize("compiled", [False, True])
def test_a_start_that_depends_on_the_parameters(compiled: bool) -> None:
    """Second derivatives where y0 was computed from what f uses: y(1) = w² exp(-w)."""
    f = nn.Linear(1, 1, bias=False, dtype=DOUBLE)
    nn.init.constant_(f.weight, -W)

    class Field(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = f

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return self.inner(y)

    for choice in GRADIENTS:
        if compiled and choice == "reversible":
            continue
        y0 = f.weight.reshape(1) ** 2
        y = solve(Field(), y0, TIMES, gradient=choice, compile=compiled, **TIGHT).y[-1].sum()
        (first,) = torch.autograd.grad(y, f.weight, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), f.weight)
        w = torch.tensor(-W, dtype=DOUBLE)
        assert first.item() == pytest.approx(((2 * w + w**2) * w.exp()).item(), rel=1e-6)
        assert second.item() == pytest.approx(((2 + 4 * w + w**2) * w.exp()).item(), rel=1e-5)


class Model(nn.Module):
    """Dynamics that are a part of a larger module, by a function that refers to all of it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(2, 2, dtype=DOUBLE)
        self.net = nn.Linear(2, 2, dtype=DOUBLE)
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        z = self.encoder(x)
        y = odeint_adjoint(lambda t, y: self.net(y), z, TIMES, adjoint_params=tuple(self.net.parameters()))
        self.last = y
        return y[-1]


def test_what_f_refers_to_and_does_not_use_is_not_missed() -> None:
    model = Model()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            model(Y0).sum().backward()
    assert model.encoder.weight.grad is not None


def test_looking_for_what_is_missing_draws_no_random_numbers() -> None:
    w, unnamed = weight(), weight()

    def f(t: Tensor, y: Tensor) -> Tensor:
        return -w * y + 0 * unnamed * torch.rand_like(y)

    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    with pytest.warns(NeuralODEWarning, match="no gradient for unnamed"):
        solve(f, Y0, [0.0], gradient="backsolve", params=(w,))
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_dynamics_that_are_compiled_already(gradient: str) -> None:
    """The backward pass of a compiled function gives its memory away: its graph cannot be kept."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    found = []
    for inner in (net, torch.compile(net)):

        class Field(nn.Module):
            def __init__(self, inner: Any) -> None:
                super().__init__()
                self.inner = inner

            def forward(self, t: Tensor, y: Tensor) -> Tensor:
                return self.inner(y)

        y0 = torch.ones(4, 2, dtype=DOUBLE, requires_grad=True)
        y = solve(Field(inner), y0, TIMES, gradient=gradient).y[-1].square().sum()
        found.append(torch.autograd.grad(y, [y0, *net.parameters()]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-8, atol=1e-10)
