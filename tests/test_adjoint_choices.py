"""The choices that solve the adjoint equation: what they keep, what they repair, what they save."""

import math
import sys
import weakref
from collections import Counter
from pathlib import Path
from types import FrameType

import pytest
import torch
from torch import Tensor, nn

import neural_ode
from neural_ode import Backsolve, Interpolating, InvalidArgumentError, solve
from neural_ode.control.tolerance import Tolerance
from neural_ode.gradients.augmented import AugmentedSystem, Quadrature
from neural_ode.methods import get_method
from neural_ode.methods.tableaus.explicit import DOPRI5
from neural_ode.problem.norms import rms_norm
from neural_ode.solution import Made, Segment
from neural_ode.stepping.settings import SolverSettings
from reproduction.measure.memory import bytes_kept

CHOICES = {
    "backsolve": Backsolve(),
    "restarted": Backsolve(checkpoints=3),
    "quadrature": Backsolve(quadrature=True),
    "interpolating": Interpolating(),
    "interpolating, quadrature": Interpolating(quadrature=True),
}


class Field(nn.Module):
    """A non-linear field that depends on the time, for real or complex states."""

    def __init__(self, dtype: torch.dtype = torch.float64):
        super().__init__()
        self.first = nn.Linear(3, 5, dtype=dtype)
        self.second = nn.Linear(5, 2, dtype=dtype)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        inputs = torch.cat([y, torch.sin(3 * t).to(y.dtype).expand_as(y[..., :1])], dim=-1)
        return 2 * self.second(torch.tanh(self.first(inputs)))


class Decay(nn.Module):
    """y' = -k (y - cos t): going back, errors grow like exp(k t)."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate, dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return -self.rate * (y - torch.cos(t))


def compared(f: nn.Module, choice: object, y0: Tensor, t: Tensor, **how) -> list[tuple[Tensor, Tensor]]:
    """Gradients of y0, the times and the parameters, by `direct` and by another choice."""
    found = []
    for gradient in ("direct", choice):
        solution = solve(f, y0, t, gradient=gradient, **how)
        y = solution.y
        weights = torch.linspace(0.2, 1.5, y.numel(), dtype=torch.float64).reshape(y.shape)
        loss = (y * weights).abs().square().sum() + (solution.t[-1] if solution.event is not None else 0)
        found.append(torch.autograd.grad(loss, [y0, t, *f.parameters()]))
    return list(zip(*found, strict=True))


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize(
    "how",
    [
        {"rtol": 1e-9, "atol": 1e-9},
        {"rtol": 1e-9, "atol": 1e-9, "reverse": True},
        {"rtol": 1e-9, "atol": 1e-9, "dtype": torch.complex128},
        {"rtol": 1e-9, "atol": 1e-9, "event": lambda t, y: t + 0.1 * y.sum() - 0.8},
        {"method": "tsit5", "step_size": 0.005},
    ],
    ids=["forward", "reverse", "complex", "event", "grid"],
)
def test_agrees_with_direct(choice: str, how: dict) -> None:
    how = dict(how)
    torch.manual_seed(1)
    dtype = how.pop("dtype", torch.float64)
    y0 = torch.randn(3, 2, dtype=dtype, requires_grad=True)
    times = [0.1, 0.35, 0.4, 1.0, 1.2]
    t = torch.tensor(times[::-1] if how.pop("reverse", False) else times, dtype=torch.float64, requires_grad=True)
    for a, b in compared(Field(dtype), CHOICES[choice], y0, t, **how):
        torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-6 * float(a.abs().max()))


class Switch(nn.Module):
    """y' = k y (1 - y), which forgets where it came from once it is at 1, and the integral of y²."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate, dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([self.rate * y[0] * (1 - y[0]), y[0].square()])


def test_checkpoints_repair_a_reverse_trajectory_that_diverges() -> None:
    """Going back, errors grow by exp(40) over the whole interval; the adjoint along the lost state is wrong."""
    f = Switch(40.0)
    y0 = torch.tensor([0.01, 0.0], dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)

    def error(choice: object) -> float:
        found = compared(f, choice, y0, t, rtol=1e-7, atol=1e-9)
        return max(float((b - a).abs().max() / a.abs().max()) for a, b in found)

    assert error(Backsolve()) > 0.5
    assert error(Backsolve(checkpoints=16)) < 0.1
    assert error(Backsolve(checkpoints=100)) < 1e-4
    assert error(Interpolating()) < 1e-4
    assert error(Interpolating(quadrature=True)) < 1e-4


def test_checkpoints_are_as_many_states_as_asked_for() -> None:
    f, y0 = Field(), torch.randn(20, 2, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.0, 4.0], dtype=torch.float64)
    known = [y0, *f.parameters()]

    def kept(k: int) -> int:
        choice = Backsolve(checkpoints=k)
        return bytes_kept(lambda: solve(f, y0, t, gradient=choice, rtol=1e-8, atol=1e-8).y.sum(), known)

    state = y0.numel() * 8
    for k in (1, 4, 9):
        assert max(k // 2, 1) * state <= kept(k) - kept(0) <= k * state


def test_checkpoints_give_their_states_away() -> None:
    """To the backward pass, which autograd frees: whoever keeps the solution does not keep them twice."""
    settings = SolverSettings(get_method("dopri5"), Tolerance(1e-3, 1e-3, rms_norm))
    memory = Backsolve(checkpoints=3).memory(settings)
    states = [torch.ones(2) * number for number in range(4)]
    references = [weakref.ref(y) for y in states]
    for number, y in enumerate(states):
        assert memory.record is not None
        memory.record(Segment(Made(number, 0.1 * number, 0.0, 0.1, 1, True, None, None), y, None, ()))
    times, found = memory.rows([0.0])
    assert times == pytest.approx([0.1, 0.2, 0.3])
    assert [float(y[0]) for y in found] == [1, 2, 3]
    del states, y, found
    assert [reference() for reference in references] == [None] * 4


def test_interpolating_keeps_the_slopes_and_no_activations() -> None:
    f, y0 = Field(), torch.randn(20, 2, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.0, 4.0], dtype=torch.float64)
    solutions = []

    def forward() -> Tensor:
        solutions.append(solve(f, y0, t, gradient="interpolating", rtol=1e-8, atol=1e-8))
        return solutions[-1].y.sum()

    kept = bytes_kept(forward, [y0, *f.parameters()])
    steps = solutions[0].stats.accepted
    # Of each step of dopri5 the state and seven slopes, one of which it shares with the next step.
    assert kept == pytest.approx((7 * steps + 2) * y0.numel() * 8, rel=0.05)


def test_quadrature_keeps_parameters_out_of_the_error_control() -> None:
    """Like the seminorm, it makes no step for the parameters' sake; and it never makes a longer vector."""
    torch.manual_seed(0)
    f = Field()
    with torch.no_grad():
        f.second.bias.mul_(50)
    y0, t = torch.randn(3, 2, dtype=torch.float64), [0.0, 1.0]
    evaluations, gradients, sizes = {}, {}, {}
    choices = {"norm": Backsolve(), "seminorm": Backsolve(norm="seminorm"), "quad": Backsolve(quadrature=True)}
    for name, choice in choices.items():
        f.zero_grad()
        solution = solve(f, y0, t, gradient=choice, rtol=1e-6, atol=1e-6)
        solution.y[-1].square().sum().backward()
        assert solution.stats.backward is not None
        evaluations[name] = solution.stats.backward.nfe
        gradients[name] = [p.grad for p in f.parameters()]
        sizes[name] = solution.stats.backward.step_sizes
    assert sizes["quad"] == sizes["seminorm"]
    assert evaluations["quad"] <= evaluations["norm"]
    for a, b in zip(gradients["quad"], gradients["seminorm"], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_quadrature_of_a_linear_system_in_closed_form() -> None:
    f = Decay(0.8)
    y = solve(f, torch.ones(1).double(), [0.0, 2.0], gradient=Backsolve(quadrature=True), rtol=1e-10, atol=1e-10).y
    y[-1].sum().backward()

    def end(k: float) -> float:  # of y' = -k (y - cos t), y(0) = 1
        particular = (k * math.cos(2.0) + math.sin(2.0)) * k / (1 + k * k)
        return particular + (1 - k * k / (1 + k * k)) * math.exp(-2.0 * k)

    assert f.rate.grad is not None
    assert f.rate.grad.item() == pytest.approx((end(0.8 + 1e-5) - end(0.8 - 1e-5)) / 2e-5, rel=1e-8)


def test_tolerances_of_the_augmented_system() -> None:
    """Those of the state hold for the adjoint too, and the least of them for the parameters' gradients."""
    params = [torch.zeros(2, 2), torch.zeros(1)]
    system = AugmentedSystem(lambda t, y: y, torch.zeros(3), params)
    own = [1e-3, 1e-6, 1e-4]
    assert system.tolerance(1e-5) == 1e-5
    assert system.tolerance(torch.tensor(own)).tolist() == pytest.approx([*own, *own, *[1e-6] * 5])
    rows = AugmentedSystem(lambda t, y: y, torch.zeros(2, 3), params, Quadrature(params, DOPRI5), batched=True)
    assert rows.tolerance(torch.tensor(own)).tolist() == [pytest.approx([*own, *own])] * 2
    of_all = torch.logspace(-9, -3, 11)
    assert system.tolerance(of_all) is of_all


def test_the_backward_pass_makes_few_calls() -> None:
    """Of functions of the library, where these take longer than the arithmetic: for five steps on a small state."""
    f = Linear()
    y0 = torch.ones(4, 2, dtype=torch.float64, requires_grad=True)
    solution = solve(f, y0, [0.0, 1.0], gradient="backsolve", rtol=1e-5, atol=1e-5)
    loss, calls = solution.y[-1].sum(), Counter[str]()
    library = str(Path(neural_ode.__file__).parent)

    def count(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(library):
            calls[frame.f_code.co_qualname] += 1

    sys.setprofile(count)
    try:
        loss.backward()
    finally:
        sys.setprofile(None)
    backward = solution.stats.backward
    assert backward is not None
    assert (backward.accepted, backward.nfe) == (5, 32)
    assert calls["AugmentedSystem.products"] == 32
    assert sum(calls.values()) < 18 * 32, calls.most_common()


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.tensor([[-0.5, 1.0], [-1.0, -0.5]], dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return y @ self.matrix


def test_norm_gets_what_is_solved() -> None:
    f, y0 = Field(), torch.randn(3, 2, dtype=torch.float64)
    shapes = set()

    def norm(a: Tensor, gradients: tuple[Tensor, ...]) -> Tensor:
        shapes.add((tuple(a.shape), len(gradients)))
        return a.abs().max()

    solve(f, y0, [0.0, 1.0], gradient=Interpolating(norm=norm)).y.sum().backward()
    solve(f, y0, [0.0, 1.0], gradient=Interpolating(norm=norm, quadrature=True)).y.sum().backward()
    assert shapes == {((3, 2), 4), ((3, 2), 0)}


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"gradient": "interpolating", "method": "rk4", "step_size": 0.1}, "rk4 has none: use dopri5"),
        ({"gradient": "interpolating", "method": "scipy_solver"}, "scipy_solver has none"),
        ({"gradient": Backsolve(quadrature=True), "method": "kvaerno5"}, "explicit Runge-Kutta.*kvaerno5"),
        ({"gradient": Backsolve(quadrature=True, method="adams")}, "explicit Runge-Kutta.*adams"),
        ({"gradient": Backsolve(checkpoints=2), "method": "scipy_solver"}, "checkpoints=2 cannot be kept"),
    ],
)
def test_what_cannot_be(how: dict, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        solve(Field(), torch.zeros(3, 2).double(), [0.0, 1.0], **how)


@pytest.mark.parametrize("checkpoints", [-1, 1.5, True, "log"])
def test_bad_numbers_of_checkpoints(checkpoints: object) -> None:
    with pytest.raises(InvalidArgumentError, match="checkpoints must be"):
        Backsolve(checkpoints=checkpoints)


def test_options_of_the_backward_solve_may_be_left_empty_but_not_be_anything() -> None:
    y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
    for options in (None, {}, ()):
        solve(Linear(), y0, [0.0, 1.0], gradient=Backsolve(options=options)).y.sum().backward()
    with pytest.raises(InvalidArgumentError, match=r"options of the backward solve must be a dict"):
        Backsolve(options=["max_step"])


@pytest.mark.parametrize("method", ["midpoint", "scipy_solver"])
def test_second_derivatives_are_refused_where_the_backward_solve_has_none(method: str) -> None:
    y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
    step_size = 0.1 if method == "midpoint" else None
    y = solve(Linear(), y0, [0.0, 0.5, 1.0], gradient=Interpolating(method=method, step_size=step_size)).y
    with pytest.raises(InvalidArgumentError, match="needs the dense output"):
        torch.autograd.grad(y.sum(), y0, create_graph=True)
