"""Compiled steps: the numbers of plain ones, nothing compiled twice, plain steps where it cannot be done."""

import functools
import gc
import math
import warnings
import weakref
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.autograd import forward_ad

import neural_ode.compiled
import neural_ode.compiled.compiler
import neural_ode.compiled.plan
from neural_ode import (
    Backsolve,
    Callbacks,
    MaxStepsError,
    NeuralODEWarning,
    PIDController,
    RecursiveCheckpoint,
    Statistics,
    StepSizeUnderflowError,
    odeint,
    odeint_adjoint,
    solve,
)
from neural_ode.compiled import CannotCompile, compiled_adjoint, compiled_integrate
from neural_ode.compiled.cache import CACHE, Bounded
from neural_ode.compiled.compiler import compiled_so_far
from neural_ode.compiled.native import Unsupported
from neural_ode.compiled.plan import LARGE, Plan
from neural_ode.control.tolerance import Tolerance
from neural_ode.methods import get_method
from neural_ode.problem.norms import rms_norm
from neural_ode.stepping.integrate import integrate
from neural_ode.stepping.per_sample import per_sample
from neural_ode.stepping.settings import SolverSettings


class Field(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 2))
        self.nfe = 0

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.nfe += 1
        return self.net(y**3) * torch.cos(t)


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def start(batch: int = 8) -> Tensor:
    return torch.randn(batch, 2, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def field() -> Field:
    return Field()


def test_same_numbers_and_nothing_compiled_twice(field: Field) -> None:
    """Other steps, tolerances, times and parameter values need no compilation, nor do further sizes of a batch."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error", NeuralODEWarning)
        for batch in (8, 5, 13, 4, 3):  # three have graphs of their own, the next two make one for all sizes
            solve(field, start(batch), [0.0, 1.0], compile=True)
        before = graphs()
        for batch, tolerance, end in ((8, 1e-3, 1.0), (13, 1e-5, -2.0), (21, 1e-6, 0.3)):
            field.net[0].weight.mul_(1.1)
            how = {"rtol": tolerance, "atol": tolerance}
            compiled = solve(field, start(batch), [0.0, end / 3, end], compile=True, **how)
            plain = solve(field, start(batch), [0.0, end / 3, end], **how)
            torch.testing.assert_close(compiled.y, plain.y, rtol=1e-4, atol=1e-4)
            assert compiled.stats.nfe == plain.stats.nfe
            assert compiled.stats.accepted == plain.stats.accepted
        assert graphs() == before


@pytest.mark.parametrize("ode", [odeint, odeint_adjoint])
def test_gradients(field: Field, ode) -> None:
    found = []
    for compile in (False, True):
        y0 = start().requires_grad_()
        y = ode(field, y0, torch.tensor([0.0, 0.5, 1.0]), rtol=1e-5, atol=1e-5, compile=compile)
        found.append(torch.autograd.grad(y.square().sum(), [y0, *field.parameters()]))
    for plain, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=2e-3, atol=2e-3)


class Smooth(nn.Module):
    """Without side effects: such a solve is one graph."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(torch.cat([y, torch.sin(3 * t).expand(len(y), 1)], dim=1))


class Rows(nn.Module):
    """As `Smooth`, with a time for each row."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(torch.cat([y**3, torch.sin(3 * t)[:, None]], dim=1))


def settings(tolerance: float, **how: Any) -> SolverSettings:
    return SolverSettings(get_method("dopri5"), Tolerance(tolerance, tolerance, rms_norm), **how)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_whole_solve_in_one_graph(sign: int) -> None:
    """Same steps, states and gradients, also of the times, as the loop in Python."""
    f = Smooth()
    found = []
    for run in (integrate, compiled_integrate):
        y0 = start().double().requires_grad_()
        t = (sign * torch.tensor([0.0, 0.3, 1.0, 2.5], dtype=torch.float64)).requires_grad_()
        stats = Statistics()
        _, y, next_step, _ = run(f, y0, t, settings(1e-7), stats)
        gradients = torch.autograd.grad(
            (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum(), [y0, t, *f.parameters()]
        )
        found.append((stats, next_step, y, *gradients))
    (plain, then, *expected), (compiled, next_step, *values) = found
    assert (plain.nfe, plain.accepted, plain.rejected) == (compiled.nfe, compiled.accepted, compiled.rejected)
    assert next_step == pytest.approx(then, rel=1e-6)
    # Cut to a thirtieth at the end, a step is followed by one as long as was planned.
    *before, planned = plain.step_sizes[:4]
    end = torch.tensor([0.0, sum(before) + planned / 30], dtype=torch.float64)
    with torch.no_grad():
        cut = compiled_integrate(f, y0, end, settings(1e-7), Statistics())
    assert cut.next_step == pytest.approx(planned, rel=1e-6)
    assert compiled.step_sizes == pytest.approx(plain.step_sizes, rel=1e-6)
    for ours, theirs in zip(values, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("own_times", [False, True])
def test_a_solve_with_steps_for_each_row_in_one_graph(sign: int, own_times: bool) -> None:
    """Same outputs, counters and gradients as the loop in Python, for rows that need very different steps."""
    f = Rows()
    found = []
    for run in (per_sample, partial(compiled_integrate, batched=True)):
        y0 = (start(6).double() * torch.logspace(-2, 0.5, 6)[:, None]).requires_grad_()
        t = sign * torch.tensor([0.0, 0.3, 1.0, 2.5], dtype=torch.float64)
        if own_times:
            t = t * torch.linspace(0.5, 2, 6, dtype=torch.float64)[:, None]
        t.requires_grad_()
        stats = Statistics()
        y = run(f, y0, t, settings(1e-7), stats).y
        gradients = torch.autograd.grad(
            (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum(), [y0, t, *f.parameters()]
        )
        found.append((stats, y, *gradients))
    (plain, *expected), (compiled, *values) = found
    for name in ("nfe", "accepted", "rejected"):
        assert getattr(plain.per_sample, name).tolist() == getattr(compiled.per_sample, name).tolist()
    assert len(set(compiled.per_sample.nfe.tolist())) > 1
    assert plain.nfe == compiled.nfe
    with torch.no_grad(), pytest.raises(CannotCompile, match="too many steps"):
        compiled_integrate(f, y0, t, settings(1e-7, max_steps=3), Statistics(), batched=True)
    for ours, theirs in zip(values, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": get_method("rk4")}, "rk4"),
        ({"method": get_method("kvaerno5")}, "kvaerno5"),
        ({"step_size": 0.1}, "error control"),
        ({"controller": PIDController()}, "PIDController"),
        ({"step_t": (0.5,)}, "step_t"),
        ({"jump_t": (0.5,)}, "jump_t"),
        ({"callbacks": Callbacks(accept=print)}, "callbacks"),
    ],
)
def test_what_the_graph_does_not_do_is_left_to_the_loop(change: dict[str, Any], words: str) -> None:
    y0, t = start().double(), torch.tensor([0.0, 1.0], dtype=torch.float64)
    with pytest.raises(CannotCompile, match=words):
        compiled_integrate(Smooth(), y0, t, replace(settings(1e-7), **change), Statistics())


def test_dynamics_that_a_graph_would_get_wrong() -> None:
    """They draw random numbers, or have parameters that the backward pass would not know of; and autocast is on."""
    y0, t = start(), torch.tensor([0.0, 1.0], dtype=torch.float64)
    scale, f = torch.ones(2, requires_grad=True), nn.Linear(2, 2)
    for field, words in (
        (lambda t, y: -y + 0 * torch.randn_like(y), "random numbers"),
        (lambda t, y: scale * y, "require gradients"),
        (lambda t, y: scale * f(y), "require gradients"),
    ):
        with pytest.raises(CannotCompile, match=words):
            compiled_integrate(field, y0, t, settings(1e-3), Statistics())
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(CannotCompile, match="autocast"):
        compiled_integrate(lambda t, y: f(y), y0, t, settings(1e-3), Statistics())


def test_more_steps_than_one_graph_records() -> None:
    """Times, states and gradients go on from one record to the next, and back through all of them."""
    f, found = Smooth(), []
    for run in (integrate, compiled_integrate):
        y0 = start().double().requires_grad_()
        t = torch.tensor([0.0, 0.3, 1.0, 2.5], dtype=torch.float64, requires_grad=True)
        stats = Statistics()
        y = run(f, y0, t, settings(1e-7, max_step=0.015), stats).y
        assert stats.accepted > 2 * 64
        found.append([y, *torch.autograd.grad(y.square().sum(), [y0, t, *f.parameters()])])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_gradients_of_many_outputs() -> None:
    """Several in a step, and together so many numbers that they are gathered step by step."""
    f, times = Smooth(), torch.linspace(0, 1, 80, dtype=torch.float64)
    found = []
    for compile in (False, True):
        y0 = start(512).double().requires_grad_()
        solution = solve(f, y0, times, rtol=1e-6, atol=1e-6, compile=compile)
        assert solution.y[1:].numel() > neural_ode.compiled.plan.LARGE
        assert solution.stats.accepted < len(times) / 2
        weights = torch.linspace(-1, 1, solution.y.numel(), dtype=torch.float64).view_as(solution.y)
        found.append(torch.autograd.grad((solution.y * weights).sum(), [y0, *f.parameters()]))
    for ours, theirs in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_backward_solve_in_one_graph(sign: int) -> None:
    """All intervals between observations, with the numbers of the augmented system solved by the loop in Python."""
    f = Smooth()
    params = tuple(f.parameters())
    t = sign * torch.tensor([0.0, 0.3, 1.0, 2.5], dtype=torch.float64)
    with torch.no_grad():
        y = integrate(f, start().double(), t, settings(1e-9), Statistics()).y
    grad_y = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view_as(y)
    stats, plain = Statistics(), Statistics()
    by_loop = solve(f, y[0].clone(), t, rtol=1e-9, atol=1e-9, gradient=Backsolve(rtol=1e-7, atol=1e-7))
    torch.autograd.grad(by_loop.y, params, grad_y)
    counts = by_loop.stats.backward
    assert counts is not None
    # Enough from each observation to the next, too few for all intervals together.
    backward = settings(1e-7, max_steps=counts.accepted + counts.rejected - 1)

    def norm(parts: tuple[Tensor, ...]) -> Tensor:
        return torch.stack([rms_norm(part) for part in parts]).amax()

    a, gradients = compiled_adjoint(f, params, y, t, grad_y, backward, norm, stats)
    y0 = y[0].clone().requires_grad_()
    again = integrate(f, y0, t, settings(1e-12), plain).y
    expected = torch.autograd.grad(again, [y0, *params], grad_y)
    for ours, theirs in zip((a, *gradients), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert (stats.accepted, stats.rejected) == (counts.accepted, counts.rejected)
    assert stats.accepted > 3
    # Twice to begin, once for each interval.
    assert stats.nfe == 2 + 3 + 6 * (stats.accepted + stats.rejected)


def test_the_same_by_the_other_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large graphs, and those with operations that `native` does not know, are PyTorch's."""

    def refuse(*_: Any) -> Any:
        raise Unsupported("a test")

    monkeypatch.setattr(neural_ode.compiled.compiler, "_native", refuse)
    monkeypatch.setattr(Plan, "reads", False)
    neural_ode.compiled.clear()
    test_a_whole_solve_in_one_graph(1)
    test_a_solve_with_steps_for_each_row_in_one_graph(-1, True)
    test_the_backward_solve_in_one_graph(1)
    neural_ode.compiled.clear()


def test_recursive_checkpoint_keeps_states_only() -> None:
    """The gradient of `direct`, a small part of its bytes, and a backward pass that is counted."""
    f = Smooth()
    found = []
    for gradient, compile in (("direct", False), ("recursive_checkpoint", True)):
        y0 = start(64).double().requires_grad_()
        kept: set[int] = set()
        sizes = [0]

        def keep(x: Tensor, kept: set[int] = kept, sizes: list[int] = sizes) -> Tensor:
            if x.untyped_storage().data_ptr() not in kept:
                kept.add(x.untyped_storage().data_ptr())
                sizes[0] += x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            solution = solve(f, y0, [0.0, 1.0, 2.0], rtol=1e-6, atol=1e-6, gradient=gradient, compile=compile)
        gradients = torch.autograd.grad(solution.y[-1].square().sum(), [y0, *f.parameters()])
        found.append((solution, sizes[0], gradients))
    (_, large, expected), (solution, small, values) = found
    states = solution.stats.accepted + 2  # y0, and where each step starts and the last one ends
    assert small < 1.2 * (states * y0.nbytes + sum(p.nbytes for p in f.parameters()))
    assert small < large / 10
    assert solution.stats.backward is not None
    assert solution.stats.backward.nfe == 7 * solution.stats.accepted
    for ours, theirs in zip(values, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_gradients_compile_nothing_for_a_new_batch() -> None:
    f = Smooth()
    before = 0
    tolerances = {8: 1e-5, 5: 1e-5, 13: 1e-6, 4: 1e-4, 3: 1e-5, 21: 1e-6, 34: 1e-4}
    for batch, tolerance in tolerances.items():
        if batch == 21:  # three have graphs of their own, the next two have made one for all sizes
            before = graphs()
        for gradient in ("direct", "backsolve"):
            y0 = start(batch).double().requires_grad_()
            y = solve(f, y0, [0.0, 0.5, 1.0], rtol=tolerance, atol=tolerance, gradient=gradient, compile=True).y
            torch.autograd.grad(y.square().sum(), [y0, *f.parameters()])
    assert graphs() == before > 0


def test_second_derivatives_of_a_compiled_solve() -> None:
    f = Smooth()
    y0 = start(2).double().requires_grad_()

    def run(y0: Tensor, compile: bool) -> Tensor:
        y = solve(f, y0, [0.0, 0.5], rtol=1e-8, atol=1e-8, compile=compile).y[-1].square().sum()
        (first,) = torch.autograd.grad(y, y0, create_graph=True)
        return torch.autograd.grad(first.square().sum(), y0)[0]

    torch.testing.assert_close(run(y0, True), run(y0, False), rtol=1e-6, atol=1e-9)


def test_failures_are_those_of_the_plain_solve() -> None:
    y0 = torch.ones(3, 1, dtype=torch.float64)
    for compile in (False, True):
        with torch.no_grad(), pytest.raises(StepSizeUnderflowError, match=r"t = (0\.9999|1\.0000)"):
            solve(lambda t, y: y * y, y0, [0.0, 2.0], compile=compile)
        with torch.no_grad(), pytest.raises(MaxStepsError, match="3 steps"):
            solve(lambda t, y: y * y, y0, [0.0, 0.5], compile=compile, max_steps=3)


def test_tanh_in_the_graph_is_accurate() -> None:
    x = torch.linspace(-12, 12, 200_001)
    exact = torch.tanh(x.double())
    error = ((neural_ode.compiled.compiler.tanh(x) - exact) / exact).abs().nan_to_num().max()
    assert error < 4 * torch.finfo(torch.float32).eps


def test_expm1_in_the_graph_is_accurate() -> None:
    size = torch.logspace(-30, 1.9, 200_001)
    x = torch.cat([-size, size, torch.tensor([-float("inf"), -200.0, float("inf")])])
    exact = torch.expm1(x.double())
    found = neural_ode.compiled.compiler.expm1(x)
    error = ((found - exact) / exact)[exact.abs() < 1e30].abs().max()
    assert error < 4 * torch.finfo(torch.float32).eps
    assert torch.equal(found[-3:], torch.tensor([-1.0, -1.0, float("inf")]))


def test_elu_in_the_graph_is_that_of_pytorch() -> None:
    f = nn.Sequential(nn.Linear(2, 8), nn.ELU(), nn.Linear(8, 2))
    y0 = torch.randn(6, 2)
    with torch.no_grad():
        plain, compiled = (solve(lambda t, y: f(y), y0, [0.0, 2.0], compile=x) for x in (False, True))
    torch.testing.assert_close(compiled.y, plain.y, rtol=1e-5, atol=1e-6)


def test_evaluations_are_still_counted_by_the_module(field: Field) -> None:
    with torch.no_grad():
        solve(field, start(), [0.0, 1.0], compile=True)  # finds out that counting cannot be compiled as a whole
        field.nfe = 0
        solution = solve(field, start(), [0.0, 1.0], compile=True)
    assert field.nfe == solution.stats.nfe


def test_what_cannot_be_compiled_runs_with_one_warning() -> None:
    @torch.compiler.disable
    def stubborn(t: Tensor, y: Tensor) -> Tensor:
        return -y

    y0 = torch.ones(2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", NeuralODEWarning)
        y = solve(stubborn, y0, [0.0, 1.0], compile=True).y
        solve(stubborn, y0, [0.0, 1.0], compile=True)
    texts = [str(w.message) for w in caught if w.category is NeuralODEWarning]
    assert len(texts) == 1
    assert "stubborn cannot be compiled and runs as it is" in texts[0]
    torch.testing.assert_close(y[-1], torch.exp(torch.tensor([-1.0, -1.0])))


def test_methods_that_are_not_compiled_say_so() -> None:
    with pytest.warns(NeuralODEWarning, match="kvaerno5 runs as it is"):
        solve(lambda t, y: -y, torch.ones(1).double(), [0.0, 1.0], method="kvaerno5", compile=True)


def test_backsolve_with_a_method_of_its_own(field: Field) -> None:
    y0 = start().requires_grad_()
    y = solve(field, y0, [0.0, 1.0], compile=True, gradient=Backsolve(method="rk4", step_size=0.1)).y
    (gradient,) = torch.autograd.grad(y.sum(), y0)
    assert torch.isfinite(gradient).all()


@pytest.mark.gpu
@pytest.mark.parametrize("event", [None, lambda t, y: y[0, 0] - 10.0])
def test_on_a_gpu(event, device: torch.device) -> None:
    """As a whole and, with an event, by steps that are replayed as CUDA graphs."""
    f, y0 = Smooth().to(device), start().double().to(device)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", NeuralODEWarning)
        plain, compiled = (
            solve(f, y0, [0.0, 1.0, 2.0], rtol=1e-7, atol=1e-7, event=event, compile=c) for c in (False, True)
        )
    assert plain.stats.nfe == compiled.stats.nfe
    torch.testing.assert_close(compiled.y, plain.y, rtol=1e-9, atol=1e-9)


class WithItsOwnGradient(torch.nn.Module):
    """Dynamics that use `torch.func.vjp`, which cannot be run under hooks on saved tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        value, pull = torch.func.vjp(lambda z: torch.tanh(self.layer(z)), y)
        slope: Tensor = value + pull(torch.ones_like(value))[0]
        return slope


def test_dynamics_with_a_gradient_of_their_own() -> None:
    torch.manual_seed(0)
    f, y0, found = WithItsOwnGradient().double(), torch.randn(3, 2, dtype=torch.float64), []
    for compiled in (False, True):
        y = solve(f, y0, [0.0, 1.0], compile=compiled).y
        found.append([y[-1], *torch.autograd.grad(y[-1].sum(), list(f.parameters()))])
    torch.testing.assert_close(found[1], found[0])


class Tied(nn.Module):
    """Dynamics whose two layers share what `kind` says: the module itself, or its weight only."""

    def __init__(self, kind: str):
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Linear(2, 2)
        self.second = self.first if kind == "module" else nn.Linear(2, 2)
        self.second.weight = self.first.weight

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(y)))


@pytest.mark.parametrize("kind", ["module", "weight"])
@pytest.mark.parametrize("gradient", ["direct", "backsolve"])
def test_tied_weights(kind: str, gradient: str) -> None:
    """They get the gradients of an eager solve, and the module keeps its own parameters."""
    found = []
    for compiled in (False, True):
        field = Tied(kind).double()
        before = dict(field.named_parameters(remove_duplicate=False))
        how = {"compile": compiled, "gradient": gradient, "rtol": 1e-9, "atol": 1e-9}
        solution = solve(field, start().double(), [0.0, 1.0], **how)
        assert solution.stats.compiled == ("solve" if compiled else None)
        solution.y[-1].square().sum().backward()
        after = dict(field.named_parameters(remove_duplicate=False))
        assert after.keys() == before.keys()
        assert all(after[name] is before[name] for name in before)
        found.append({name: p.grad for name, p in field.named_parameters()})
    for name, gradient_of in found[0].items():
        torch.testing.assert_close(found[1][name], gradient_of, rtol=1e-6, atol=1e-9)


class Scaled(nn.Module):
    def __init__(self, k: float):
        super().__init__()
        self.k = k
        self.net = nn.Linear(2, 2, bias=False, dtype=torch.float64)
        nn.init.eye_(self.net.weight)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return -self.k * self.net(y)


def of_closure(k: float) -> Any:
    return lambda t, y: -k * y


def of_default(k: float) -> Any:
    def f(t: Tensor, y: Tensor, k: float = k) -> Tensor:
        return -k * y

    return f


def of_partial(k: float) -> Any:
    return functools.partial(lambda k, t, y: -k * y, k)


def of_method(k: float) -> Any:
    return Scaled(k).forward


class Callable:
    def __init__(self, k: float):
        self.k = k

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        return -self.k * y


def of_dictionary(k: float) -> Any:
    constants = {"rate": k, "others": [k, 2 * k]}
    return lambda t, y: -(constants["others"][1] - constants["rate"]) * y


MAKERS = [of_closure, of_default, of_partial, of_method, Scaled, Callable, of_dictionary]


@pytest.mark.parametrize("make", MAKERS)
def test_numbers_are_inputs(make: Any) -> None:
    """Another number compiles nothing and is not forgotten, neither forwards nor by any gradient."""
    counts = []
    for k in (0.5, 0.7, 0.9, 1.3):
        f = make(k)
        params = tuple(f.parameters()) if isinstance(f, nn.Module) else ()
        for gradient in ("direct", "backsolve") if make in (of_closure, Scaled) else ("direct",):
            y0 = torch.tensor([[1.0, 2.0]], dtype=torch.float64, requires_grad=True)
            y = solve(f, y0, [0.0, 1.0], compile=True, gradient=gradient, params=params).y[-1]
            torch.testing.assert_close(y, y0 * math.exp(-k), rtol=1e-6, atol=1e-6)
            (slope,) = torch.autograd.grad(y.sum(), y0)
            torch.testing.assert_close(slope, torch.full_like(y0, math.exp(-k)), rtol=1e-6, atol=1e-6)
        counts.append(compiled_so_far())
    assert counts[1:] == counts[:-1]


def of_a_function(k: float) -> Any:
    return lambda t, y: -y * math.exp(k)


def of_a_global(k: float) -> Any:
    global _rate
    _rate = math.exp(k)
    return lambda t, y: -_rate * y


_rate = 0.0


@pytest.mark.parametrize("make", [of_a_function, of_a_global])
def test_numbers_that_cannot_be_inputs_are_told_of_once(make: Any) -> None:
    y0 = torch.ones(2, dtype=torch.float64)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", NeuralODEWarning)
        for k in (0.1, 0.2, 0.3, 0.4):
            y = solve(make(k), y0, [0.0, 1.0], compile=True).y[-1]
            torch.testing.assert_close(y, y0 * math.exp(-math.exp(k)), rtol=1e-6, atol=1e-6)
    texts = [str(w.message) for w in caught if w.category is NeuralODEWarning]
    assert len(texts) == 1
    assert "compiled for 3 values of the numbers" in texts[0]


def test_a_number_where_an_operation_wants_one() -> None:
    """layer_norm takes no tensor for eps: the graph has it as a constant."""
    for eps in (1e-5, 1e-1):

        def f(t: Tensor, y: Tensor, eps: float = eps) -> Tensor:
            return nn.functional.layer_norm(y, (2,), eps=eps)

        y0 = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
        expected = solve(f, y0, [0.0, 1.0]).y
        torch.testing.assert_close(solve(f, y0, [0.0, 1.0], compile=True).y, expected, rtol=1e-6, atol=1e-6)


def test_what_was_compiled_is_forgotten_at_last() -> None:
    cache: Bounded[int, str] = Bounded(2)
    cache[1], cache[2] = "one", "two"
    assert cache[1] == "one"
    cache[3] = "three"
    assert sorted(cache) == [1, 3]


def test_all_that_was_compiled_can_be_forgotten() -> None:
    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.cos(t) - y

    def run() -> tuple[Tensor, int]:
        before = compiled_so_far()
        return solve(f, torch.ones(2).double(), [0.0, 1.0], compile=True).y, compiled_so_far() - before

    first, compiled = run()
    assert compiled > 0
    assert run()[1] == 0
    graphs = [weakref.ref(graph) for graph in CACHE.graphs.values() if not isinstance(graph, str)]
    neural_ode.compiled.clear()
    gc.collect()
    assert not [graph for graph in graphs if graph() is not None]
    again, compiled = run()
    assert compiled > 0
    assert torch.equal(again, first)


class Decay(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.ones(2, dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return -self.rate * y


@torch.compiler.disable
def left_alone(t: Tensor, y: Tensor) -> Tensor:
    return -y


SAID = {
    "not asked for": ({"compile": False}, None, None),
    "whole": ({}, "solve", None),
    "whole, rows": ({"batched": True}, "solve", None),
    "whole, recursive_checkpoint": ({"gradient": "recursive_checkpoint"}, "solve", None),
    "whole, backsolve": ({"gradient": "backsolve"}, "solve", None),
    "event": ({"event": lambda t, y: y[0, 0] - 0.5}, "steps", "event"),
    "event, backsolve": ({"gradient": "backsolve", "event": lambda t, y: y[0, 0] - 0.5}, "steps", "event"),
    "dense": ({"dense": True}, "steps", "dense=True"),
    "callbacks": ({"callbacks": Callbacks(accept=lambda *_: None)}, "steps", "callbacks"),
    "grid": ({"method": "rk4", "step_size": 0.25}, "steps", "rk4 is not an explicit method with error control"),
    "few states": ({"gradient": RecursiveCheckpoint(checkpoints=2)}, "steps", "checkpoints=2"),
    "stored": ({"gradient": "interpolating"}, "steps", "interpolating"),
    "kvaerno5": ({"method": "kvaerno5"}, None, "kvaerno5 is not an explicit Runge-Kutta method"),
    "reversible": ({"gradient": "reversible"}, None, "reversible"),
}


@pytest.mark.filterwarnings("ignore:compile=True:neural_ode.NeuralODEWarning")
@pytest.mark.parametrize("how", SAID)
def test_a_solve_says_how_it_ran(how: str) -> None:
    given, ran, words = SAID[how]
    y0 = torch.ones(3, 2, dtype=torch.float64)
    stats = solve(Decay(), y0, [0.0, 1.0], **{"compile": True, "rtol": 1e-4, "atol": 1e-4} | given).stats
    assert stats.compiled == ran
    assert (stats.not_compiled is None) == (words is None)
    assert (words or "") in (stats.not_compiled or "")


@pytest.mark.parametrize("how", [{}, {"dense": True}, {"batched": True}])
@pytest.mark.filterwarnings("ignore:compile=True:neural_ode.NeuralODEWarning")
def test_why_nothing_was_compiled(how: dict[str, Any]) -> None:
    """Also the second time, when it is not tried again."""
    for _ in range(2):
        stats = solve(left_alone, torch.ones(3, 2).double(), [0.0, 1.0], compile=True, **how).stats
        assert stats.compiled is None
        assert "disable" in (stats.not_compiled or "")


@pytest.mark.filterwarnings("ignore:compile=True:neural_ode.NeuralODEWarning")
@pytest.mark.parametrize(
    ("gradient", "how", "ran", "words"),
    [
        ("backsolve", {}, "solve", None),
        ("backsolve", {"batched": True}, None, "quadrature"),
        (Backsolve(method="rk4", step_size=0.25), {}, "steps", "rk4"),
        ("recursive_checkpoint", {}, "solve", None),
        (RecursiveCheckpoint(checkpoints=2), {}, "steps", "checkpoints=2"),
        ("interpolating", {}, None, "stored trajectory"),
    ],
)
def test_a_backward_pass_says_how_it_ran(
    gradient: Any, how: dict[str, Any], ran: str | None, words: str | None
) -> None:
    y0 = torch.ones(3, 2, dtype=torch.float64, requires_grad=True)
    given = {"rtol": 1e-4, "atol": 1e-4, "compile": True, "gradient": gradient}
    solution = solve(Decay(), y0, [0.0, 1.0], **given, **how)
    solution.y[-1].sum().backward()
    backward = solution.stats.backward
    assert backward is not None
    assert backward.compiled == ran
    assert (backward.not_compiled is None) == (words is None)
    assert (words or "") in (backward.not_compiled or "")


class Normalised(nn.Module):
    """The state with mean 0 and variance 1 in pairs of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, 4)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        slope: Tensor = self.norm(y)
        return slope


@pytest.mark.parametrize("gradient", ["direct", "backsolve"])
def test_large_normalised_states_run_as_they_are(gradient: str) -> None:
    """Without a warning: there is nothing that a user could do. Small ones are compiled."""
    f = Normalised()
    for rows, ran in ((4, "solve"), (LARGE // 4 + 1, None)):
        y0 = torch.randn(rows, 4, requires_grad=True)
        solution = solve(f, y0, [0.0, 0.1], rtol=1e-2, atol=1e-2, compile=True, gradient=gradient)
        solution.y[-1].sum().backward()
        stats = [solution.stats, *([solution.stats.backward] if solution.stats.backward else [])]
        assert [one.compiled for one in stats] == [ran] * len(stats)
        assert all(ran or "group norms" in (one.not_compiled or "") for one in stats)


class InForwardMode(nn.Module):
    """Dynamics that differentiate a view of the time, which PyTorch cannot trace."""

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        slope: Any = torch.func.jvp(lambda t: t.reshape(1).square(), (t,), (torch.ones_like(t),))
        return slope[1] - y


@pytest.mark.filterwarnings("ignore:compile=True:neural_ode.NeuralODEWarning")
def test_forward_mode_outlives_a_function_that_cannot_be_compiled() -> None:
    """`y' = 2t - y`; PyTorch left forward mode open, and nothing could enter it again."""
    exact = 2 * math.exp(-1)
    for _ in range(2):
        solution = solve(InForwardMode(), torch.zeros(3, 2).double(), [0.0, 1.0], compile=True)
        assert solution.stats.compiled is None
        torch.testing.assert_close(solution.y[-1], torch.full((3, 2), exact).double(), rtol=1e-6, atol=1e-6)
    x = torch.ones(2)
    assert torch.equal(torch.func.jvp(torch.square, (x,), (x,))[1], 2 * x)
    with forward_ad.dual_level():  # a level of the caller stays open
        y0 = forward_ad.make_dual(torch.zeros(3, 2).double(), torch.ones(3, 2).double())
        torch.testing.assert_close(forward_ad.unpack_dual(y0).tangent, torch.ones(3, 2).double())


def test_a_function_that_calls_itself() -> None:
    def nested(t: Tensor, y: Tensor, depth: int = 3) -> Tensor:
        return -y if depth == 0 else nested(t, y, depth - 1)

    y0 = torch.ones(2, dtype=torch.float64)
    for dense in (False, True):
        solution = solve(nested, y0, [0.0, 1.0], compile=True, dense=dense)
        torch.testing.assert_close(solution.y[-1], y0 * math.exp(-1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "f", [lambda t, y: -y.float(), lambda t, y: -y[None], lambda t, y: -y[:, None]], ids=["dtype", "row", "column"]
)
def test_torchdiffeq_s_derivatives_compiled(f: Any) -> None:
    """What `odeint` brings to the shape and dtype of the state, it does with compile=True too."""
    y0 = torch.tensor([1.0, 2.0], dtype=torch.float64)
    times = torch.tensor([0.0, 1.0], dtype=torch.float64)
    y = odeint(f, y0, times, rtol=1e-6, atol=1e-6, compile=True)
    torch.testing.assert_close(y[-1], y0 * math.exp(-1), rtol=1e-5, atol=1e-5)


def test_numbers_keep_their_digits() -> None:
    """Arithmetic among numbers is done in double precision, whatever the state is."""

    def make(a: float, b: float) -> Any:
        return lambda t, y: -(a - b) * y

    y = solve(make(100000001.0, 100000000.0), torch.ones(2), [0.0, 1.0], rtol=1e-5, atol=1e-5, compile=True).y[-1]
    torch.testing.assert_close(y, torch.full((2,), math.exp(-1)), rtol=1e-4, atol=0)
