"""Graphs as one function in C++: every operation against PyTorch, what is refused, and solves made so."""

import contextlib
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from benchmarks.larger_problems import brusselator
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from neural_ode import IntegralController, MaxStepsError, solve
from neural_ode.compiled import clear, compiler
from neural_ode.compiled.cache import CACHE
from neural_ode.compiled.compiler import call, compiled_so_far, while_loop
from neural_ode.compiled.native import Unsupported, native_function
from neural_ode.compiled.plan import Plan

F64, F32, I64 = torch.float64, torch.float32, torch.int64


def same(function: Callable[..., Any], *inputs: Tensor, tolerance: float = 1e-13) -> None:
    """A function, traced and translated, against itself."""
    expected = function(*inputs)
    graph = make_fx(function, decomposition_table=compiler._decompositions())(*inputs)
    found = native_function(graph, inputs)(list(inputs))
    expected = expected if isinstance(expected, tuple) else (expected,)
    assert len(found) == len(expected)
    for x, y in zip(found, expected, strict=True):
        assert x is not None
        if y.dtype == F32:
            tolerance = 2e-6
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance, equal_nan=True)


def values(*size: int, dtype: torch.dtype = F64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*size, generator=generator, dtype=F64).to(dtype)


AWKWARD = torch.tensor([0.0, -0.0, 1.0, -1.0, 0.3, -2.7, 1e-300, 1e300, math.inf, -math.inf, math.nan], dtype=F64)

ONE = {
    name: getattr(torch, name)
    for line in (
        "abs acos acosh asin asinh atan atanh ceil cos cosh erf erfc exp exp2 expm1 floor lgamma log log10",
        "log1p log2 neg reciprocal relu round rsqrt sigmoid sign sin sinh sqrt square tan tanh trunc isnan isinf",
        "isfinite logical_not",
    )
    for name in line.split()
}


@pytest.mark.parametrize("name", ONE)
def test_functions_of_one_number(name: str) -> None:
    same(ONE[name], AWKWARD, tolerance=1e-12)
    same(ONE[name], values(37, dtype=F32))


TWO = {
    name: getattr(torch, name)
    for name in [
        "add",
        "sub",
        "mul",
        "div",
        "maximum",
        "minimum",
        "atan2",
        "hypot",
        "fmod",
        "remainder",
        "copysign",
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
        "pow",
    ]
}


@pytest.mark.parametrize("name", TWO)
def test_functions_of_two_numbers(name: str) -> None:
    """Of awkward ones, of two shapes, of two dtypes, and with a number."""
    f = TWO[name]
    numbers = values(11) if name in ("fmod", "remainder") else AWKWARD  # of awkward ones PyTorch's are not exact
    same(f, numbers[:, None], numbers.flip(0)[None])
    same(f, values(3, 1, 4).abs(), values(2, 1, seed=1).abs())
    same(f, values(5, dtype=F32).abs(), torch.tensor(0.7, dtype=F64))
    if name not in ("atan2", "hypot", "copysign", "maximum", "minimum"):
        same(lambda x: f(x, 2.5), values(9).abs())
    if name not in ("atan2", "hypot", "copysign", "fmod", "remainder", "pow"):
        same(f, torch.tensor([3, -3, 7]), torch.tensor([2, 2, -2]).abs())


@pytest.mark.parametrize("exponent", [2, 3, 1, 0.5, -1, -0.2, 7, 0])
def test_powers(exponent: float) -> None:
    same(lambda x: x**exponent, values(9).abs())


def test_numbers_that_an_operation_may_be_given() -> None:
    x, y = values(6), values(6, seed=1)
    same(lambda x, y: torch.add(x, y, alpha=0.3), x, y)
    same(lambda x, y: torch.sub(x, y, alpha=-2), x, y)
    same(lambda x: torch.rsub(x, 2.0), x)
    same(lambda x, y: torch.addcmul(x, x, y, value=0.7), x, y)
    same(lambda x: x.clamp(-0.5, 0.5), AWKWARD)
    same(lambda x: x.clamp(max=0.5), AWKWARD)
    same(lambda x: x.clamp(min=0.5), AWKWARD)
    same(lambda x: x.clamp_min(0.1).clamp_max(0.2), AWKWARD)
    same(lambda x, y: torch.where(x > y, x, 3.0), x, y)
    same(lambda x: torch.nn.functional.elu(x), x.float())
    same(lambda x: torch.nn.functional.softplus(x), x)


def test_whole_numbers_and_truth_values() -> None:
    a, b = torch.tensor([1, 5, -3]), torch.tensor([True, False, True])
    same(lambda a, b: (a + b, a * 2, a.to(F64) / 2, -a, ~b, b & (a > 0), b | (a > 0), b ^ (a > 0)), a, b)
    same(lambda a, b: (torch.logical_and(a, b), torch.logical_or(a, b), b.to(F32), a.bool(), (a / 2).to(I64)), a, b)


def test_bounds_that_are_no_numbers() -> None:
    x, low = values(3), torch.tensor([math.nan, 0.0, 1.0], dtype=F64)
    same(lambda x, low: (torch.clamp(x, min=low), torch.clamp(x, max=low), torch.clamp(x, low, low + 1)), x, low)
    same(lambda x, low: (torch.clamp_min(x, low), torch.clamp_max(x, low), x.clamp(min=math.nan)), x, low)
    same(lambda x: (x.abs() ** math.inf, x.abs() ** -math.inf), x)


def test_means_and_questions_about_truth_values() -> None:
    x = values(2, 3)
    same(lambda x: ((x > 0).to(F64).mean(), (x > 0).double().mean(0), torch.mean(x > 0, dtype=F64)), x)
    same(lambda x: (torch.any(x > 0, dim=()), torch.all(x > 0, dim=()), torch.any(x > 0, dim=(0, 1))), x)


def test_views() -> None:
    x = values(4, 3, 2)
    same(lambda x: x[1] + x[-1], x)
    same(lambda x: (x[:, ::2].transpose(0, 2) * 2).contiguous(), x)
    same(lambda x: x.permute(2, 0, 1).reshape(8, 3) + 1, x)
    same(lambda x: x.unbind(1)[2] - x.split(2, 0)[1].sum(1)[0], x)
    same(lambda x: x[..., None].expand(4, 3, 2, 5).sum(-1), x)
    same(lambda x: (x.exp(), x.exp()[0]), x)
    same(lambda x: x.as_strided((3, 2), (2, 1), 6) * 2, x)
    same(lambda x: x * torch.arange(9, 12)[:, None], x)


def reduced(dims: Any, x: Tensor) -> tuple[Tensor, ...]:
    every = () if dims is None else dims
    return x.sum(dims), x.mean(dims), x.amax(every), x.amin(every)


@pytest.mark.parametrize("size", [(2, 3), (5, 70), (70, 5), (3, 4, 50)])
def test_sums(size: tuple[int, ...]) -> None:
    x = values(*size)
    for dims in [None, 0, -1, (0, 1)]:
        same(partial(reduced, dims), x)
    same(lambda x: (x.sum(0, keepdim=True), x.prod(-1), (x > 0).any(), (x > -9).all(), (x > 2).any(0)), x)
    same(lambda x: (x > 0).sum(-1), x)
    same(lambda x: x.transpose(0, 1).sum(-1), x)
    hurt = x.clone()
    hurt.view(-1)[3] = math.nan
    same(lambda x: (x.amax(), x.amin(-1)), hurt)
    same(lambda x: torch.linalg.vector_norm(x), x.float())


SIZES = [1, 2, 7, 9, 33, 65]


@pytest.mark.parametrize("inner", SIZES)
def test_products(inner: int) -> None:
    """In every order of memory that a product, or its gradient, meets."""
    for rows in SIZES:
        for columns in SIZES:
            a, b = values(rows, inner), values(inner, columns, seed=1)
            a_turned, b_turned = a.T.contiguous().T, b.T.contiguous().T
            taken = rows * inner * columns <= 2**18  # larger ones are left to the other compiler
            if taken and (rows + inner + columns) % 3 == 0:  # a third of them: each is a program to build
                same(lambda a, b, c, d: (a @ b, c @ b, a @ d, c @ d), a, b, a_turned, b_turned)
    same(lambda x, w, b: torch.nn.functional.linear(x, w, b), values(9, inner), values(5, inner), values(5))


def test_joined_and_written() -> None:
    x, y = values(3, 2), values(3, 4, seed=1)

    def written(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        out = y.clone()
        out[1] = 7.0
        out[:, 1:3] += x
        other = torch.zeros_like(y)
        other[0, ::2] = x[:2, 0]
        return out, other, y

    same(lambda x, y: torch.cat([x, y, x * 2], dim=1), x, y)
    same(lambda x, y: torch.stack([x, y[:, :2]], dim=-1), x, y)
    same(torch.func.functionalize(written), x, y)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("function", [torch.exp, torch.expm1, torch.tanh, torch.sigmoid])
def test_functions_made_of_the_exponential(function: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    """In units of the last place, from the smallest results to the largest."""
    end = 103.0 if dtype == F32 else 745.0
    if function is torch.sigmoid:  # beyond, its denominator is no number of the format
        end = 88.0 if dtype == F32 else 708.0
    x = torch.cat([torch.linspace(-end, end, 20_001, dtype=F64), values(9_999), values(999) * 1e-5]).to(dtype)
    (found,) = native_function(make_fx(function)(x), [x])([x])
    assert found is not None
    exact = function(x.double())
    unit = torch.finfo(dtype).eps * exact.abs().clamp_min(torch.finfo(dtype).tiny)
    overflow = exact.abs() > torch.finfo(dtype).max
    assert torch.equal(found.isinf(), overflow)
    assert ((found - exact).abs() / unit)[~overflow].max() < 4


def test_many_numbers_of_slow_functions_are_left_to_the_other_compiler() -> None:
    for size, refused in ((2**10, False), (2**10 + 1, True)):
        x = values(size)
        graph = make_fx(torch.sin)(x)
        with pytest.raises(Unsupported, match="sin of many") if refused else contextlib.nullcontext():
            native_function(graph, [x])


@pytest.mark.parametrize("size", [(100_000,), (10_000, 13), (40_000, 3), (3, 9_999, 2), (130, 250, 3), (200, 1300)])
def test_long_sums_keep_their_digits(size: tuple[int, ...]) -> None:
    x = values(*size, dtype=F32).abs()
    graph = make_fx(lambda x: (x.sum(), x.sum(0), x.sum(-1), x.amax(0)))(x)
    for found, exact in zip(native_function(graph, [x])([x]), graph(x.double()), strict=True):
        assert found is not None
        torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=0)


def test_rows_found_by_their_number() -> None:
    x, rows = values(5, 3), torch.tensor([4, 0, -1, 0])
    same(lambda x, i: (x[i], x[:, i[1:].abs()], x.index_select(0, i[:2])), x, rows)
    same(lambda x, i: torch.index_put(x, (i,), x[:4], accumulate=True), x, rows)
    same(lambda x, i: x.index_copy(0, i[:2], x[:2] * 3), x, rows)


def test_a_row_out_of_range() -> None:
    graph = make_fx(lambda x, i: x[i])(values(3, 2), torch.tensor([0]))
    run = native_function(graph, [values(3, 2), torch.tensor([0])])
    for wrong in (3, -4):
        with pytest.raises(IndexError):
            run([values(3, 2), torch.tensor([wrong])])
    (found,) = run([values(3, 2), torch.tensor([-3])])
    torch.testing.assert_close(found, values(3, 2)[:1], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("function", "inputs"),
    [
        (lambda x: x.sort().values, values(3)),
        (lambda x: x * 2, values(3).half()),
        (lambda x: x * 2, values(3).to(torch.complex64)),
        (lambda x: x * 2, values(2**17 + 1)),
        (lambda x: x @ x, values(128, 128)),
        (lambda x: x[x > 0], values(3)),
        (lambda x: torch.round(x, decimals=1), values(3)),
        (lambda x: torch.div(x, 2, rounding_mode="floor"), values(3)),
        (lambda x: x[:0], values(3)),
        (lambda x: x.view(I64) + 1, values(3)),
        (lambda x: torch._neg_view(x) * 1, values(3)),
        (lambda x: (x.T * 2).as_strided((6,), (1,)) * 1, values(2, 3)),
        (lambda x: x**39, torch.tensor([3])),
        (lambda x: x % 3, torch.tensor([3])),
    ],
)
def test_what_is_left_to_the_other_compiler(function: Callable[[Tensor], Tensor], inputs: Tensor) -> None:
    with pytest.raises((Unsupported, RuntimeError)) as error:  # make_fx itself refuses shapes that depend on values
        native_function(make_fx(function, tracing_mode="fake")(inputs), [inputs])
    assert isinstance(error.value, Unsupported) or "data-dependent" in str(error.value)


def swapping(n: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loops whose turns hand their states on crosswise, one inside the other, with records written by both."""
    log = a.new_zeros((8, 2))

    def inner(k: Tensor, c: Tensor, d: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        log.index_copy_(0, k.reshape(1), (c + k)[None])
        return k + 1, d.clone(), c + 1

    def outer(n: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        _, c, d = while_loop(lambda k, c, d: k < 3, inner, (torch.zeros_like(n), a.clone(), b.clone()))
        log.index_copy_(0, n.reshape(1) + 4, d[None])
        return n - 1, d, c

    _, a, b = while_loop(lambda n, a, b: n > 0, outer, (n.clone(), a.clone(), b.clone()))
    return a, b, log


def test_loops_inside_of_loops() -> None:
    a, b, log = values(2), values(2, seed=1), torch.zeros(8, 2, dtype=F64)
    found = call(swapping, ("swapping",), a, torch.tensor(3), a, b)
    for n in (3, 2, 1):
        c, d = a, b
        for k in range(3):
            log[k] = c + k
            c, d = d, c + 1
        log[n + 4] = d
        a, b = d, c
    assert torch.equal(found[0], a)
    assert torch.equal(found[1], b)
    assert torch.equal(found[2], log)


class Pair(nn.Module):
    """A small network; counts nothing, keeps nothing."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(3, 9), nn.Tanh(), nn.Linear(9, 3)).double()

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        slope: Tensor = self.layers(y) + torch.sin(3 * t).reshape(-1, *[1] * (y.dim() - 1)).reshape(
            t.shape + (1,) * (y.dim() - t.dim())
        )
        return slope


TIMES = torch.linspace(0, 9, 1300, dtype=F64)  # many in a step


@pytest.mark.parametrize("direction", [1, -1])
def test_outputs_of_many_steps_and_many_of_a_step(direction: int) -> None:
    f, y0, t = Pair(), values(4, 3), 5 * direction * TIMES  # more steps than are recorded at once
    both = [solve(f, y0, t, rtol=1e-11, atol=1e-11, compile=compile) for compile in (False, True)]
    assert both[1].stats.compiled == "solve"
    torch.testing.assert_close(both[1].y, both[0].y, rtol=1e-8, atol=1e-8)
    assert both[1].stats.accepted == len(both[1].stats.step_sizes) > 512
    assert both[1].stats.nfe == pytest.approx(both[0].stats.nfe, rel=0.01)  # rounding decides some steps
    assert sum(both[1].stats.step_sizes) == pytest.approx(float(t[-1]))
    loss = [(x.y**2).sum() for x in both]
    for found, expected in zip(
        *(torch.autograd.grad(x, list(f.parameters())) for x in reversed(loss)), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("own", [False, True])
def test_outputs_of_rows_with_steps_of_their_own(own: bool) -> None:
    f, y0 = Pair(), values(4, 3)
    t = 5 * TIMES
    if own:
        t = t * torch.tensor([1.0, 3.0, 0.1, 2.0], dtype=F64)[:, None]
    both = [solve(f, y0, t, rtol=1e-11, atol=1e-11, batched=True, compile=compile) for compile in (False, True)]
    assert both[1].stats.compiled == "solve"
    torch.testing.assert_close(both[1].y, both[0].y, rtol=1e-8, atol=1e-8)
    rows = [x.stats.per_sample for x in both]
    assert rows[0] is not None
    assert rows[1] is not None
    torch.testing.assert_close(rows[0].accepted.double(), rows[1].accepted.double(), rtol=0.02, atol=0)
    loss = [(x.y**2).sum() for x in both]
    for found, expected in zip(
        *(torch.autograd.grad(x, list(f.parameters())) for x in reversed(loss)), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("batched", [False, True])
def test_most_steps_between_two_outputs(batched: bool) -> None:
    """The limit counts from output to output, for rows in all: at the number that eager needs, and one less."""
    f, y0, t = Pair(), values(1, 3), torch.tensor([0.0, 1.0, 1.1, 6.0], dtype=F64)
    settings: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-6, "batched": batched}

    def fails(most: int, compile: bool) -> bool:
        try:
            solve(f, y0, t, max_steps=most, compile=compile, **settings)
        except MaxStepsError:
            return True
        return False

    needed = next(most for most in range(1, 200) if not fails(most, False))
    assert needed > 5
    assert not fails(needed, True)
    assert fails(needed - 1, True)


def test_an_output_at_the_end_of_a_step_is_the_state_there() -> None:
    found = solve(lambda t, y: -y, values(2), [0.0, 0.5, 1.0], first_step=0.5, rtol=1, atol=1, compile=True)
    exact = solve(lambda t, y: -y, values(2), [0.0, 0.5, 1.0], first_step=0.5, rtol=1, atol=1)
    assert found.stats.step_sizes == exact.stats.step_sizes == [0.5, 0.5]
    torch.testing.assert_close(found.y, exact.y, rtol=1e-15, atol=0)


def newly_compiled(f: Any, size: int) -> int:
    """How many graphs a solve of so many rows compiles; its numbers are those of the loop in Python."""
    before, y0 = compiled_so_far(), values(size, 3)
    with torch.no_grad():
        found, exact = (solve(f, y0, [0.0, 1.0], rtol=1e-4, atol=1e-4, compile=c) for c in (True, False))
    assert found.stats.compiled == "solve"
    torch.testing.assert_close(found.y, exact.y, rtol=1e-10, atol=1e-10)
    return compiled_so_far() - before


def test_graphs_for_the_first_sizes_of_a_batch_then_one_for_all() -> None:
    clear()
    f = Pair()
    first = [newly_compiled(f, size) for size in (4, 5, 6, 4, 6, 5)]
    assert all(first[:3])
    assert first[3:] == [0, 0, 0]
    later = [newly_compiled(f, size) for size in (7, 8, 9, 10, 4)]
    assert all(later[:2])  # the second of them shows that the size varies
    assert later[2:] == [0, 0, 0]


def test_functions_that_only_the_other_compiler_knows() -> None:
    """They compile once more than the first time: not once for each size of a batch."""
    clear()

    def f(t: Tensor, y: Tensor) -> Tensor:
        return -y.sort(dim=-1).values * torch.cumsum(y, -1).cos()

    assert [newly_compiled(f, size) for size in (3, 4, 5, 6)][2:] == [0, 0]
    assert all(not own for sizes in CACHE.sizes.values() for own in sizes.values())


def test_dynamics_that_join_and_write() -> None:
    """A grid with a border, written part by part."""
    problem = brusselator(small=True)
    y0, t = problem.parts[0], problem.t
    found, exact = (solve(problem.f, y0, t, rtol=1e-6, atol=1e-6, compile=c) for c in (True, False))
    assert found.stats.compiled == "solve"
    torch.testing.assert_close(found.y, exact.y, rtol=1e-9, atol=1e-9)


def test_memory_that_is_looked_at_in_other_ways() -> None:
    """What lies elsewhere in a translated graph than PyTorch would have it is left to PyTorch."""
    bits = torch.tensor([1.0, 2.0, 3.0], dtype=F64)
    for f in (
        lambda t, y: -y * (y.view(I64) >> 52) / 1000,  # the exponents
        lambda t, y: -(y[:, None] * bits).T.mul(0.5).as_strided((3,), (1,)),
        lambda t, y: -y * torch.mean(y > 0, dtype=F64),
    ):
        with torch.no_grad():
            found, exact = (solve(f, bits, [0.0, 0.1], first_step=0.1, rtol=9, compile=c) for c in (True, False))
        assert found.stats.compiled is not None
        torch.testing.assert_close(found.y, exact.y, rtol=1e-12, atol=1e-12)


def test_states_stay_as_they_were_and_results_are_apart() -> None:
    y0 = values(3)
    before = y0.clone()
    one = solve(lambda t, y: -y, y0, [0.0, 1.0], compile=True)
    two = solve(lambda t, y: -y, y0 * 2, [0.0, 1.0], compile=True)
    assert torch.equal(y0, before)
    torch.testing.assert_close(two.y, 2 * one.y, rtol=1e-7, atol=1e-9)


def test_the_loop_reads_outputs_where_calls_in_it_cost_little() -> None:
    reads: list[bool] = []
    real = vars(Plan)["reads"].fget

    def noted(self: Plan) -> bool:
        reads.append(real(self))
        return reads[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Plan, "reads", property(noted))
        solve(lambda t, y: -y, values(3), [0.0, 1.0], compile=True, controller=IntegralController())
        t = torch.tensor([0.0, 1.0], dtype=F64, requires_grad=True)
        solve(lambda t, y: -y, values(3), t, compile=True)
        solve(lambda t, y: -y, values(2**15 + 1), [0.0, 1.0], compile=True)
    assert reads[0]
    assert not any(reads[i] for i in (-1,))
    assert {True, False} == set(reads)


def test_a_graph_is_traced_once() -> None:
    """Numbers that are tensors of shape () in a graph made PyTorch trace it again."""
    rate, scale = 0.7, torch.tensor(1.3, dtype=F64)
    clear()
    before = compiled_so_far()
    with torch.no_grad():
        found = solve(lambda t, y: -rate * scale * y, values(3, 2), [0.0, 1.0], compile=True)
    assert found.stats.compiled == "solve"
    assert compiled_so_far() == before + 1
