"""Step-wise recomputation: the gradient of `direct`, with as many states in memory as one likes."""

import gc
import math
import weakref
from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from neural_ode import METHODS, InvalidArgumentError, RecursiveCheckpoint, Solution, solve
from neural_ode.gradients.checkpoints import Checkpoints, Snapshot, first_part
from neural_ode.methods import Method
from neural_ode.stepping.step_records import Again
from reproduction.measure.memory import bytes_kept

ADAPTIVE = [name for name, method in METHODS.items() if isinstance(method, Method) and method.adaptive]
FIXED = [name for name, method in METHODS.items() if isinstance(method, Method) and not method.own_steps]
BUDGETS = [None, 1, 3, "log"]


class Field(nn.Module):
    """A non-linear field that depends on the time, for real or complex states."""

    def __init__(self, dtype: torch.dtype = torch.float64):
        super().__init__()
        self.first = nn.Linear(3, 5, dtype=dtype)
        self.second = nn.Linear(5, 2, dtype=dtype)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        inputs = torch.cat([y, torch.sin(3 * t).to(y.dtype).expand_as(y[..., :1])], dim=-1)
        return 2 * self.second(torch.tanh(self.first(inputs)))


class Jumping(Field):
    """Another sign after t = 0.5."""

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return super().forward(t, y) * torch.where(t < 0.5, 1.0, -1.5)


def both(field: nn.Module, gradient: object, moving: bool = True, dtype=torch.float64, **how):
    """The gradients by `direct` and by `gradient`, of the same weighted sum of all outputs."""
    torch.manual_seed(1)
    y0 = torch.randn(3, 2, dtype=dtype, requires_grad=True)
    start = how.pop("t", [0.1, 0.35, 0.4, 1.0, 1.2])
    t = torch.tensor(start, dtype=torch.float64, requires_grad=moving)
    found: list[list[Tensor]] = []
    solutions: list[Solution] = []
    for choice in ("direct", gradient):
        solution = solve(field, y0, t, gradient=choice, **how)
        y = solution.y
        weights = torch.linspace(0.2, 1.5, y.numel(), dtype=torch.float64).reshape(y.shape)
        loss = (y * weights).abs().square().sum()
        if solution.event is not None:
            loss = loss + solution.t[-1]
        inputs = [y0, *((t,) * moving), *field.parameters()]
        found.append(list(torch.autograd.grad(loss, inputs)))
        solutions.append(solution)
    return *found, *solutions


def assert_same(field: nn.Module, gradient: object, tolerance: float = 1e-6, **how) -> Solution:
    direct, other, one, two = both(field, gradient, rtol=tolerance, atol=tolerance, **how)
    torch.testing.assert_close(one.y, two.y, rtol=1e-12, atol=1e-12)
    for a, b in zip(direct, other, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9 * float(a.abs().max()))
    return two


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("method", ADAPTIVE)
def test_is_the_gradient_of_direct_with_error_control(method: str, budget: object) -> None:
    tolerance = 10.0 ** -(METHODS[method].order + 2)
    solution = assert_same(Field(), RecursiveCheckpoint(budget), method=method, tolerance=tolerance)
    assert solution.stats.accepted > 4
    assert solution.stats.backward is not None
    assert solution.stats.backward.accepted >= solution.stats.accepted


@pytest.mark.filterwarnings("ignore::neural_ode.errors.NeuralODEWarning")
@pytest.mark.parametrize("moving", [False, True])
@pytest.mark.parametrize("method", FIXED)
def test_is_the_gradient_of_direct_on_a_grid(method: str, moving: bool) -> None:
    how = {"method": method, "moving": moving}
    if not METHODS[method].adaptive:
        assert_same(Field(), RecursiveCheckpoint(), **how)
    assert_same(Field(), RecursiveCheckpoint(), step_size=0.07, interpolation="cubic", **how)
    assert_same(Field(), RecursiveCheckpoint(2), step_size=0.07, perturb=True, **how)


def test_rejected_attempts_of_adams() -> None:
    """They change the order and may drop points of the history."""
    how = {"method": "adams", "t": [0.0, 0.1, 3.0]}
    solution = assert_same(Jumping(), RecursiveCheckpoint(), **how)
    assert solution.stats.rejected > 3
    assert_same(Jumping(), RecursiveCheckpoint(5), **how)


def test_grid_of_the_user_moves_with_the_times() -> None:
    def grid(t: Tensor) -> Tensor:
        inner = t[0] + (t[-1] - t[0]) * torch.linspace(0, 1, 9, dtype=t.dtype)[1:-1] ** 2
        return torch.cat([t[:1], inner, t[-1:]])

    for method in ("midpoint", "dopri5", "explicit_adams"):
        assert_same(Field(), RecursiveCheckpoint(), method=method, grid=grid)


@pytest.mark.parametrize("method", ["dopri5", "adams", "kvaerno5"])
@pytest.mark.parametrize("budget", [None, 2])
def test_jumps(method: str, budget: object) -> None:
    solution = assert_same(Jumping(), RecursiveCheckpoint(budget), method=method, jump_t=[0.5])
    assert solution.stats.accepted > 4


@pytest.mark.parametrize("budget", [None, 2])
@pytest.mark.parametrize(
    "how",
    [{"method": "dopri5"}, {"method": "adams"}, {"method": "rk4", "step_size": 0.05}],
    ids=lambda how: how["method"],
)
def test_events(how: dict, budget: object) -> None:
    def event(t: Tensor, y: Tensor) -> Tensor:
        return t + 0.1 * y.sum() - 0.8

    for t in ([0.1, 0.3, 0.5, math.inf], [0.1, 0.3, 5.0]):
        solution = assert_same(Field(), RecursiveCheckpoint(budget), event=event, t=t, **how)
        assert solution.event == 0


def test_reverse_time_complex_and_tuple_states() -> None:
    assert_same(Field(), RecursiveCheckpoint(), t=[1.2, 0.7, 0.1])
    assert_same(Field(torch.complex128), RecursiveCheckpoint(), dtype=torch.complex128)

    class Halves(Field):
        def forward(self, t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            slope = super().forward(t, torch.cat(y))
            return slope[:1], slope[1:]

    f, y0 = Halves(), torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    found = []
    for gradient in ("direct", "recursive_checkpoint"):
        first, second = solve(f, (y0[:1], y0[1:]), [0.0, 1.0], gradient=gradient).y
        found.append(torch.autograd.grad(first.sum() + second.square().sum(), [y0, *f.parameters()]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-10, atol=1e-12)


def test_one_time_and_an_event_at_the_start() -> None:
    f = Field()
    y0 = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    for how in ({"t": [0.0]}, {"t": [0.0, 1.0], "event": lambda t, y: t}):
        y = solve(f, y0, gradient="recursive_checkpoint", **how).y
        (gradient,) = torch.autograd.grad(y.sum(), y0)
        assert torch.equal(gradient, torch.full_like(y0, len(y)))


def test_backward_twice_with_a_retained_graph() -> None:
    f, y0 = Field(), torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    loss = solve(f, y0, [0.0, 1.0], gradient=RecursiveCheckpoint(2)).y.square().sum()
    (first,) = torch.autograd.grad(loss, y0, retain_graph=True)
    (second,) = torch.autograd.grad(loss, y0)
    assert torch.equal(first, second)


@pytest.mark.parametrize("budget", [None, 1, 5, "log"])
def test_bytes_kept(budget: object) -> None:
    """(steps + outputs) states, or k."""
    f, y0 = Field(), torch.randn(50, 2, dtype=torch.float64, requires_grad=True)
    t = torch.linspace(0, 4, 7, dtype=torch.float64)
    known = [y0, *f.parameters()]
    solutions = []

    def forward() -> Tensor:
        solutions.append(solve(f, y0, t, gradient=RecursiveCheckpoint(budget), rtol=1e-9, atol=1e-9))
        return solutions[-1].y.sum()

    kept = bytes_kept(forward, known)
    steps = solutions[0].stats.accepted
    states = {None: steps, 1: 1, 5: 5, "log": 1 + math.log2(steps + 1)}[budget]
    assert steps > 30
    assert kept <= (states + len(t)) * 50 * 2 * 8
    direct = bytes_kept(lambda: solve(f, y0, t, rtol=1e-9, atol=1e-9).y.sum(), known)
    assert kept < direct / 20


# The order of recomputation ------------------------------------------------------------------------------------


class Counting:
    """Steps of a chain whose states are their numbers; counts how many are made, and held at once."""

    def __init__(self) -> None:
        self.made = 0

    def again(self, made: int, y: Tensor, carry: object, then: object, collect: bool = True) -> Again:
        assert int(y) == made
        self.made += 1
        return Again(y + 1, None, slice(0), None)


@cache
def fewest(length: int, snapshots: int) -> int:
    """How many steps have to be made in advance to get through a chain backwards, by trying every schedule."""
    if length == 1:
        return 0
    if snapshots == 1:
        return length * (length - 1) // 2
    return min(m + fewest(length - m, snapshots - 1) + fewest(m, snapshots) for m in range(1, length))


@pytest.mark.parametrize("snapshots", [1, 2, 3, 5])
@pytest.mark.parametrize("length", [1, 2, 7, 20, 41])
def test_no_schedule_needs_fewer_steps(length: int, snapshots: int) -> None:
    chain, trail = Counting(), Checkpoints(snapshots)
    start = [(0, Snapshot(torch.tensor(0), None))]
    order = [(number, int(snapshot.y)) for number, snapshot in trail.backwards(range(length), start, chain)]
    assert order == [(number, number) for number in reversed(range(length))]
    assert chain.made == fewest(length, snapshots)


def test_states_are_thinned_while_the_number_of_steps_is_unknown() -> None:
    for budget in (1, 2, 3, 8, "log", None):
        trail = Checkpoints(budget)
        for number in range(300):
            trail.offer(number, Snapshot(torch.tensor(number), None))
            numbers = [number for number, _ in trail.kept]
            capacity = trail.capacity(number + 1)
            assert numbers[0] == 0
            assert min(number + 1, capacity // 2) <= len(numbers) <= capacity
            assert len({b - a for a, b in pairwise(numbers)}) <= 1
        chain = Counting()
        order = [(n, int(s.y)) for n, s in trail.backwards(range(300), trail.kept, chain)]
        assert order == [(n, n) for n in reversed(range(300))]
        if budget == "log":
            assert chain.made < 5 * 300


def test_first_part_leaves_no_part_empty() -> None:
    for length in range(2, 200):
        for snapshots in range(2, 12):
            assert 0 < first_part(length, snapshots) < length


@pytest.mark.parametrize("checkpoints", [0, -1, 1.5, True, "sqrt"])
def test_bad_budgets(checkpoints: object) -> None:
    with pytest.raises(InvalidArgumentError, match="checkpoints must be"):
        RecursiveCheckpoint(checkpoints)


def test_needs_to_see_the_steps_and_the_parameters() -> None:
    with pytest.raises(InvalidArgumentError, match="use gradient='backsolve'"):
        solve(
            Field(), torch.zeros(3, 2).double(), [0.0, 1.0], method="scipy_solver", gradient="recursive_checkpoint"
        )
    with pytest.raises(InvalidArgumentError, match="recursive_checkpoint has to know"):
        solve(lambda t, y: -y, torch.ones(1), [0.0, 1.0], gradient="recursive_checkpoint")


# With steps of their own for each row --------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [None, 3])
@pytest.mark.parametrize("method", ["dopri5", "adaptive_heun"])
def test_rows_with_steps_of_their_own(method: str, budget: object) -> None:
    """Rows of very different speeds, with common times and with their own."""
    f = Rows()
    y0 = torch.tensor([[0.5, 0.1], [1.2, -1.0], [0.0, 1.0]], dtype=torch.float64, requires_grad=True)
    common = torch.tensor([0.0, 0.3, 0.35, 1.0], dtype=torch.float64)
    own = torch.stack([common, 2 * common, common - 1])
    for times in (common, own, -own):
        t = times.clone().requires_grad_()
        found = []
        for gradient in ("direct", RecursiveCheckpoint(budget)):
            solution = solve(f, y0, t, method=method, gradient=gradient, batched=True, rtol=1e-3, atol=1e-3)
            weights = torch.linspace(0.2, 1.5, solution.y.numel(), dtype=torch.float64).view_as(solution.y)
            found.append(torch.autograd.grad((solution.y * weights).square().sum(), [y0, t, *f.parameters()]))
        assert solution.stats.per_sample is not None
        assert len(set(solution.stats.per_sample.accepted.tolist())) > 1
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9 * float(a.abs().max()))


class Rows(nn.Module):
    """Each row turns as fast as it is far out."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.0, 3.0], dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        speed = y.square().sum(-1, keepdim=True) + torch.cos(t)[:, None]
        return speed * self.scale * torch.stack([y[:, 1], -y[:, 0]], dim=1)


def test_rows_differentiated_twice() -> None:
    f, y0 = Rows(), torch.tensor([[0.5, 0.1], [1.5, -1.0]], dtype=torch.float64, requires_grad=True)
    found = []
    for gradient in ("direct", "recursive_checkpoint"):
        y = solve(f, y0, [0.0, 0.5], gradient=gradient, batched=True, rtol=1e-5, atol=1e-5).y
        (first,) = torch.autograd.grad(y.square().sum() + y[-1].sum(), y0, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), [y0, *f.parameters()]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("gradient", ["recursive_checkpoint", "reversible", "backsolve", "interpolating"])
def test_memory_is_freed_with_the_solution(gradient: str) -> None:
    """By reference counting: a cycle through the graph would wait for the garbage collector."""
    f, y0 = Field(), torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    gc.collect()
    gc.disable()
    try:
        solution = solve(f, y0, [0.0, 1.0], gradient=gradient, rtol=1e-4, atol=1e-4)
        states = weakref.ref(solution.y)
        solution.y.sum().backward()
        del solution
        assert states() is None
    finally:
        gc.enable()


def test_a_hundredth_of_what_direct_keeps() -> None:
    """The problem of the benchmarks: 2-50-2 tanh network, batch of 128, 50 outputs."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 2))

    class Dynamics(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return self.net(y**3)

    f, y0, t = Dynamics(), torch.randn(128, 2, requires_grad=True), torch.linspace(0.0, 1.0, 50)
    kept, found = {}, {}
    for gradient in ("direct", "recursive_checkpoint"):

        def loss(gradient: str = gradient) -> Tensor:
            return solve(f, y0, t, rtol=1e-6, atol=1e-6, gradient=gradient).y.square().mean()

        kept[gradient] = bytes_kept(loss, [y0, *f.parameters()])
        found[gradient] = torch.autograd.grad(loss(), [y0, *f.parameters()])
    # The loss keeps the outputs for its own gradient, however they were found.
    outputs = 50 * 128 * 2 * 4
    assert kept["recursive_checkpoint"] - outputs <= (kept["direct"] - outputs) / 100
    for one, other in zip(found["recursive_checkpoint"], found["direct"], strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()
