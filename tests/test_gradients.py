"""Gradients against closed forms, finite differences in float64, and torchdiffeq."""

import math

import numpy as np
import pytest
import torch
import torchdiffeq
from torch import Tensor, nn

from neural_ode import (
    Backsolve,
    Callbacks,
    InvalidArgumentError,
    Statistics,
    StepSizeUnderflowError,
    odeint,
    odeint_adjoint,
    solve,
)
from neural_ode.methods import get_method

GRADIENTS = ["direct", "recursive_checkpoint", "backsolve", "interpolating", "reversible"]
METHODS = {name: get_method(name) for name in ("euler", "midpoint", "rk4", "dopri5")}


class Net(nn.Module):
    """A small non-linear field that depends on the time, with a parameter that it does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()
        self.unused = nn.Parameter(torch.ones(2, dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(torch.cat([y, torch.sin(3 * t).expand_as(y[..., :1])], dim=-1))


class Linear(nn.Module):
    """y' = a y, so y(t) = y0 exp(a (t - t0)) and every gradient is known."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate, dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.rate * y


def problem() -> tuple[Net, Tensor, Tensor, Tensor]:
    """A field, initial states, times and the weights of a loss on all outputs."""
    f = Net()
    y0 = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.1, 0.4, 0.9, 1.3], dtype=torch.float64, requires_grad=True)
    return f, y0, t, torch.randn(4, 4, 2, dtype=torch.float64)


def all_gradients(f: Net, y0: Tensor, t: Tensor, weights: Tensor, **how) -> dict[str, Tensor]:
    loss = (solve(f, y0, t, **how).y * weights).sum()
    inputs = {"y0": y0, "t": t, **{n: p for n, p in f.named_parameters() if n != "unused"}}
    return dict(zip(inputs, torch.autograd.grad(loss, list(inputs.values())), strict=True))


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("end", [1.7, -1.1])
def test_closed_form(gradient: str, end: float) -> None:
    """Gradients of y(t1) with respect to state, parameter and both times, forward and reverse in time."""
    f = Linear(-0.8)
    y0 = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.3, end], dtype=torch.float64, requires_grad=True)
    y = solve(f, y0, t, gradient=gradient, rtol=1e-10, atol=1e-12).y
    by_y0, by_t, by_rate = torch.autograd.grad(y[-1].sum(), [y0, t, f.rate])
    growth = math.exp(-0.8 * (end - 0.3))
    torch.testing.assert_close(by_y0, torch.full_like(y0, growth))
    assert by_rate.item() == pytest.approx(3 * (end - 0.3) * growth, rel=1e-8)
    assert by_t.tolist() == pytest.approx([0.8 * 3 * growth, -0.8 * 3 * growth], rel=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_direct_is_the_gradient_of_the_discrete_solve(method: str) -> None:
    """Finite differences of the solve itself, to their own accuracy, for state, parameters and times."""
    torch.manual_seed(1)
    f = Net().net
    y0 = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64, requires_grad=True)

    def run(y0: Tensor, t: Tensor, *params: Tensor) -> Tensor:
        def field(time: Tensor, y: Tensor) -> Tensor:
            w1, b1, w2, b2 = params
            inputs = torch.cat([y, torch.sin(3 * time).expand_as(y[..., :1])], dim=-1)
            return torch.tanh(inputs @ w1.T + b1) @ w2.T + b2

        # One step size for all perturbed solves: the adaptive method's steps count as constants.
        return solve(field, y0, t, method=method, step_size=0.1 if method == "dopri5" else None).y

    params = [p.detach().requires_grad_() for p in f.parameters()]
    if method == "dopri5":  # a fixed grid is cut at the end, which moves with t; the adaptive one is tested below
        t.requires_grad_(False)
    assert torch.autograd.gradcheck(run, (y0, t, *params), atol=1e-7)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_gradients_agree_with_finite_differences_of_an_accurate_solve(gradient: str) -> None:
    f, y0, t, weights = problem()
    found = all_gradients(f, y0, t, weights, gradient=gradient, rtol=1e-11, atol=1e-12)

    def loss() -> float:
        with torch.no_grad():
            return (solve(f, y0, t, rtol=1e-12, atol=1e-13).y * weights).sum().item()

    step = 1e-5
    inputs = {"y0": y0, "t": t, **dict(f.named_parameters())}
    for name, gradient_found in found.items():
        flat = inputs[name].data.view(-1)
        for i in range(0, len(flat), max(1, len(flat) // 4)):
            middle = flat[i].item()
            flat[i] = middle + step
            above = loss()
            flat[i] = middle - step
            below = loss()
            flat[i] = middle
            difference = (above - below) / (2 * step)
            assert gradient_found.view(-1)[i].item() == pytest.approx(difference, rel=1e-6, abs=1e-7), (name, i)


@pytest.mark.parametrize("method", METHODS)
def test_both_ways_agree(method: str) -> None:
    """They differ by discretisation only: less, the finer the steps. 0.4 and 0.9 are points of the grid."""
    f, y0, t, weights = problem()
    how = {"method": method, "interpolation": "cubic", "step_size": 0.002 if METHODS[method].order < 3 else 0.02}
    direct = all_gradients(f, y0, t, weights, gradient="direct", **how)
    adjoint = all_gradients(f, y0, t, weights, gradient="backsolve", **how)
    tolerance = {1: 2e-2, 2: 1e-4, 4: 1e-6, 5: 1e-8}[METHODS[method].order]
    for name in direct:
        difference = (direct[name] - adjoint[name]).norm() / direct[name].norm()
        assert difference < tolerance, name


def test_error_of_backsolve_follows_the_tolerance() -> None:
    f, y0, t, weights = problem()
    exact = all_gradients(f, y0, t, weights, gradient="direct", rtol=1e-12, atol=1e-13)
    tolerances = [1e-3, 1e-5, 1e-7, 1e-9]
    errors = []
    for tolerance in tolerances:
        found = all_gradients(f, y0, t, weights, gradient="backsolve", rtol=tolerance, atol=tolerance)
        errors.append(max(((found[n] - exact[n]).norm() / exact[n].norm()).item() for n in exact))
    slope = np.polyfit(np.log(tolerances), np.log(errors), 1)[0]
    assert 0.7 < slope < 1.4
    assert errors[-1] < 1e-7


@pytest.mark.parametrize(
    ("ours", "theirs"), [(odeint, torchdiffeq.odeint), (odeint_adjoint, torchdiffeq.odeint_adjoint)]
)
@pytest.mark.parametrize("method", METHODS)
def test_agrees_with_torchdiffeq(ours, theirs, method: str) -> None:
    f, y0, t, weights = problem()
    f.unused.requires_grad_(False)

    def gradients(ode) -> list[Tensor]:
        y = ode(f, y0, t, rtol=1e-10, atol=1e-10, method=method)
        return list(torch.autograd.grad((y * weights).sum(), [y0, t, *f.net.parameters()]))

    # The adjoint's gradient for t[0] is a quadrature there and a product here: equal up to discretisation.
    limit = {"rtol": 1e-6, "atol": 1e-7} if METHODS[method].adaptive else {"rtol": 1e-9, "atol": 1e-9}
    for name, a, b in zip(
        ["y0", "t", *dict(f.net.named_parameters())], gradients(ours), gradients(theirs), strict=True
    ):
        first = 1 if name == "t" and ours is odeint_adjoint and not METHODS[method].adaptive else 0
        torch.testing.assert_close(a[first:], b[first:], **limit, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_tuple_states(gradient: str) -> None:
    """The gradient of a tuple state is the gradient of the same numbers in one tensor, with the same norm."""
    f, y0, t, weights = problem()

    def largest(parts: tuple[Tensor, ...]) -> Tensor:
        return torch.cat([part.flatten() for part in parts]).abs().max()

    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = f

        def forward(self, t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            out = self.f(t, torch.cat(y))
            return out[:1], out[1:]

    tight = {"gradient": gradient, "rtol": 1e-10, "atol": 1e-11}
    expected = all_gradients(f, y0, t, weights, norm=lambda y: y.abs().max(), **tight)
    first, second = solve(Halves(), (y0[:1], y0[1:]), t, norm=largest, **tight).y
    loss = (torch.cat([first, second], dim=1) * weights).sum()
    found = torch.autograd.grad(loss, [y0, t, *f.net.parameters()])
    for a, b in zip(found, expected.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_backsolve_keeps_states_at_the_outputs_only() -> None:
    f, y0, t, _ = problem()
    saved = []

    def pack(x: Tensor) -> Tensor:
        saved.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        solve(f, y0, t, gradient="backsolve", params=())
    assert sorted(x.numel() for x in saved) == [4, 4 * 4 * 2]  # t and y(t)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_unused_parameters_get_zero_or_none(gradient: str) -> None:
    f, y0, t, weights = problem()
    (solve(f, y0, t, gradient=gradient).y * weights).sum().backward()
    assert f.unused.grad is None or not f.unused.grad.any()
    assert f.net[0].weight.grad is not None
    assert f.net[0].weight.grad.any()


def test_dynamics_without_any_dependence() -> None:
    """f depends on neither state nor parameters: the gradient of y0 is the one of the loss."""
    y0 = torch.ones(3, dtype=torch.float64, requires_grad=True)
    y = solve(lambda t, y: torch.ones_like(y), y0, [0.0, 1.0], gradient="backsolve", params=()).y
    (gradient,) = torch.autograd.grad(y[-1].sum(), y0)
    assert torch.equal(gradient, torch.ones_like(y0))


def test_only_what_requires_gradients_gets_them() -> None:
    f, y0, t, weights = problem()
    f.net[0].requires_grad_(False)
    y = solve(f, y0.detach(), t.detach(), gradient="backsolve").y
    (y * weights).sum().backward()
    assert f.net[0].weight.grad is None
    assert f.net[2].weight.grad is not None
    with torch.no_grad():
        assert not solve(f, y0, t, gradient="backsolve").y.requires_grad


@pytest.mark.parametrize("moving", [False, True])
def test_backward_statistics_and_own_settings(moving: bool) -> None:
    f, y0, t, weights = problem()
    t.requires_grad_(moving)
    solution = solve(f, y0, t, rtol=1e-4, atol=1e-4, gradient=Backsolve(rtol=1e-9, atol=1e-9))
    assert solution.stats.backward is None
    calls = 0
    forward = f.forward

    def counting(t: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return forward(t, y)

    f.forward = counting  # type: ignore[method-assign]
    (solution.y * weights).sum().backward()
    assert isinstance(solution.stats.backward, Statistics)
    assert solution.stats.backward.nfe == calls
    assert solution.stats.backward.nfe > 3 * solution.stats.nfe
    # One evaluation at the start of each of three intervals, another to choose the first step of all, six of dopri5
    # for a step; and f at each of the four times, for their gradients.
    steps = solution.stats.backward.accepted + solution.stats.backward.rejected
    assert calls == 3 + 1 + 6 * steps + 4 * moving
    assert all(h < 0 for h in solution.stats.backward.step_sizes)


def test_norm_of_the_backward_solve_gets_the_parts() -> None:
    f, y0, t, weights = problem()
    shapes = set()

    def state_only(z: Tensor, a: Tensor, gradients: tuple[Tensor, ...]) -> Tensor:
        shapes.add(tuple(tuple(part.shape) for part in (z, a, *gradients)))
        return torch.stack([z, a]).abs().max()

    (solve(f, y0, t, gradient=Backsolve(norm=state_only)).y * weights).sum().backward()
    assert shapes == {((4, 2), (4, 2), *(tuple(p.shape) for p in f.parameters()))}


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_backward_twice_and_retained_graph(gradient: str) -> None:
    """The same gradient each time, and the statistics of the last time."""
    f, y0, t, weights = problem()
    solution = solve(f, y0, t, gradient=gradient)
    found, nfe = [], []
    for _ in range(2):
        found += torch.autograd.grad((solution.y * weights).sum(), y0, retain_graph=True)
        nfe.append(None if solution.stats.backward is None else solution.stats.backward.nfe)
    assert torch.equal(*found)
    assert nfe[0] == nfe[1]
    assert (nfe[0] is None) == (gradient == "direct")


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_nothing_to_solve(gradient: str) -> None:
    f, y0 = Linear(-0.8), torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    y = solve(f, y0, [0.3], gradient=gradient).y
    by_y0, by_rate = torch.autograd.grad(y.sum(), [y0, f.rate], allow_unused=True)
    assert torch.equal(by_y0, torch.ones_like(y0))
    assert by_rate is None or by_rate == 0


def test_second_derivatives_of_direct() -> None:
    f, _, _, _ = problem()
    y0 = torch.randn(1, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda y: solve(f, y, [0.0, 0.5], method="rk4", step_size=0.25).y, y0)


def test_backward_solve_without_absolute_tolerance() -> None:
    """The parameters' gradient starts at zero, where a relative tolerance alone allows no error."""
    f = Linear(-0.8)
    y0 = torch.ones(1, dtype=torch.float64)
    y = solve(f, y0, [0.0, 1.0], rtol=1e-6, atol=1e-12, gradient=Backsolve(rtol=1e-6, atol=0.0)).y
    with pytest.raises(StepSizeUnderflowError, match="atol"):
        y[-1].sum().backward()


def test_a_backward_method_of_its_own_does_not_inherit_the_step() -> None:
    f = Linear(-0.8)
    errors = []
    for tolerance in (1e-2, 1e-9):
        back = Backsolve(method="dopri5", rtol=tolerance, atol=tolerance)
        solution = solve(f, torch.ones(1).double(), [0.0, 5.0], method="rk4", step_size=0.01, gradient=back)
        f.rate.grad = None
        solution.y[-1].sum().backward()
        assert f.rate.grad is not None
        errors.append(abs(f.rate.grad.item() - 5 * math.exp(-4)))
    assert errors[1] < 1e-7 < errors[0]


@pytest.mark.parametrize("back", [{"method": "dopri5", "rtol": 1e-9, "atol": 1e-9}, {"step_size": 0.01}])
def test_backward_steps_of_ones_own_replace_a_grid(back: dict) -> None:
    """The grid of the forward solve has four steps in all, between which nothing may be lost on the way back."""
    f, y0 = Linear(-0.8), torch.ones(1, dtype=torch.float64)
    grid = {"method": "rk4", "grid": lambda t: torch.linspace(float(t[0]), float(t[-1]), 5, dtype=t.dtype)}
    solution = solve(f, y0, [0.0, 5.0], gradient=Backsolve(**back), **grid)
    solution.y[-1].sum().backward()
    assert solution.stats.backward is not None
    assert solution.stats.backward.accepted > 10
    assert f.rate.grad is not None
    # Along the adjoint exp(-0.8 (5 - t)) with the state that the forward solve ended at.
    assert f.rate.grad.item() == pytest.approx(5 * solution.y[-1].item(), rel=1e-6)


def test_the_backward_solve_chooses_its_own_first_step() -> None:
    f, y0 = Linear(-0.8), torch.ones(1, dtype=torch.float64)
    solution = solve(f, y0, [0.0, 5.0], first_step=1e-6, gradient="backsolve", rtol=1e-5, atol=1e-5)
    solution.y[-1].sum().backward()
    assert solution.stats.step_sizes[0] == 1e-6
    assert solution.stats.backward is not None
    assert solution.stats.backward.step_sizes[0] < -1e-3


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_callbacks_are_those_of_the_forward_solve(gradient: str) -> None:
    seen: list[float] = []
    calls = Callbacks(accept=lambda t, y, h: seen.append(float(t)))
    solution = solve(Linear(-0.8), torch.ones(1).double(), [0.0, 1.0], gradient=gradient, callbacks=calls)
    assert len(seen) == solution.stats.accepted
    solution.y[-1].sum().backward()
    assert len(seen) == solution.stats.accepted


def test_max_steps_counts_each_solve_by_itself() -> None:
    f = Linear(-0.8)
    times = torch.linspace(0, 10, 101)
    solution = solve(f, torch.ones(1).double(), times, rtol=1e-6, atol=1e-6, max_steps=60, gradient="backsolve")
    solution.y.sum().backward()
    assert solution.stats.backward is not None
    assert solution.stats.backward.accepted >= 100


def test_backward_solve_keeps_autocast() -> None:
    f = nn.Linear(8, 8)
    seen = []

    class Field(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = f

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            seen.append(torch.is_autocast_enabled("cpu"))
            return torch.tanh(self.f(y)).float()

    with torch.autocast("cpu", torch.bfloat16):
        y = solve(Field(), torch.rand(4, 8), [0.0, 1.0], rtol=1e-2, atol=1e-2, gradient="backsolve").y
    seen.clear()
    y.sum().backward()
    assert all(seen)
    assert seen


def test_parameters_of_another_dtype() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
            self.linear = nn.Linear(3, 3)

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return self.scale * torch.tanh(self.linear(y))

    f, y0 = Scaled(), torch.rand(2, 3)
    found = []
    for gradient in GRADIENTS:
        loss = solve(f, y0, [0.0, 1.0], rtol=1e-5, atol=1e-6, gradient=gradient).y[-1].sum()
        found.append(torch.autograd.grad(loss, list(f.parameters())))
    assert [g.dtype for g in found[1]] == [p.dtype for p in f.parameters()]
    for direct, *others in zip(*found, strict=True):
        for other in others:
            torch.testing.assert_close(other, direct, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("field", ["rtol", "atol", "step_size"])
def test_bad_settings_of_the_backward_solve(field: str) -> None:
    with pytest.raises(InvalidArgumentError, match=field):
        Backsolve(**{field: -1.0})


@pytest.mark.gpu
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_gpu_agrees_with_cpu(gradient: str, device: torch.device) -> None:
    f, y0, t, weights = problem()
    expected = all_gradients(f, y0, t, weights, gradient=gradient, rtol=1e-9, atol=1e-9)
    f = f.to(device)
    y0 = y0.detach().to(device).requires_grad_()
    found = all_gradients(f, y0, t, weights.to(device), gradient=gradient, rtol=1e-9, atol=1e-9)
    for name in expected:
        torch.testing.assert_close(found[name].cpu(), expected[name], rtol=1e-7, atol=1e-8)
