"""`solve` and the names of torchdiffeq go one way: what one honours all honour, and nothing is done twice."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import neural_ode.methods
from neural_ode import (
    METHODS,
    Direct,
    IntegralController,
    InvalidArgumentError,
    NeuralODEWarning,
    odeint,
    odeint_adjoint,
    odeint_dense,
    solve,
)
from neural_ode.errors import MaxStepsError, SolverError
from neural_ode.problem.initial_value import InitialValueProblem
from neural_ode.problem.layout import StateLayout
from neural_ode.solution import Statistics
from neural_ode.stepping.settings import SolverSettings, Trajectory
from neural_ode.torchdiffeq_options import _ADAPTIVE, _FIXED

Y0 = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
T = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)


class Field(nn.Module):
    """Writes down when it was evaluated."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(2, 2).double()
        self.times: list[float] = []

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.times.append(float(t))
        return 3 * torch.tanh(self.linear(y)) * torch.cos(9 * t)


def grid(t: Tensor) -> Tensor:
    return torch.linspace(t[0].item(), t[-1].item(), 14, dtype=t.dtype)


def largest(y: Tensor) -> Tensor:
    return y.abs().max()


def configured(method: str, **options: Any) -> dict[str, Any]:
    return {"method": METHODS[method].configured(**options)}


OPTIONS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "first_step": ("dopri5", {"first_step": 0.01}, {"first_step": 0.01}),
    "min_step": ("dopri5", {"min_step": 0.2}, {"min_step": 0.2}),
    "max_step": ("dopri5", {"max_step": 0.01}, {"max_step": 0.01}),
    "max_num_steps": ("dopri5", {"max_num_steps": 2}, {"max_steps": 2}),
    "step_t": ("dopri5", {"step_t": torch.tensor([0.33])}, {"step_t": torch.tensor([0.33])}),
    "jump_t": ("dopri5", {"jump_t": torch.tensor([0.33])}, {"jump_t": torch.tensor([0.33])}),
    "norm": ("dopri5", {"norm": largest}, {"norm": largest}),
    "safety": ("dopri5", {"safety": 0.5}, {"controller": IntegralController(safety=0.5)}),
    "ifactor": ("dopri5", {"ifactor": 1.5}, {"controller": IntegralController(ifactor=1.5)}),
    "dfactor": (
        "dopri5",
        {"dfactor": 0.9, "first_step": 1.0},
        {"controller": IntegralController(dfactor=0.9), "first_step": 1.0},
    ),
    "step_size": ("rk4", {"step_size": 0.1}, {"step_size": 0.1}),
    "grid_constructor": ("rk4", {"grid_constructor": lambda f, y0, t: grid(t)}, {"grid": grid}),
    "interp": ("rk4", {"step_size": 0.3, "interp": "cubic"}, {"step_size": 0.3, "interpolation": "cubic"}),
    "perturb": ("rk4", {"perturb": True}, {"perturb": True}),
    "max_order": (
        "explicit_adams",
        {"max_order": 5, "step_size": 0.05},
        {**configured("explicit_adams", max_order=5), "step_size": 0.05},
    ),
    "max_iters": ("kvaerno5", {"max_iters": 2}, configured("kvaerno5", max_iters=2)),
    "solver": ("scipy_solver", {"solver": "RK45"}, configured("scipy_solver", solver="RK45")),
}
"""For each option of torchdiffeq: a method that has it, options, and the same said to `solve`."""

OF_SCIPY = {"first_step", "min_step", "max_step", "max_steps"}


def test_no_option_is_left_out() -> None:
    single = {name for method in METHODS.values() for name in getattr(method, "options", ())}
    assert OPTIONS.keys() == ({*_ADAPTIVE, *_FIXED} | single) - (OF_SCIPY - _ADAPTIVE.keys()) - {"dtype"}


def dense(f: nn.Module, y0: Tensor, t: Tensor, **how: Any) -> Tensor:
    states = odeint_dense(f, y0, t[0], t[-1], **how)
    return torch.stack([states(time) for time in t])


def run(entry: Callable[..., Any], **how: Any) -> tuple[list[float], list[float]]:
    """When `f` was evaluated, and the states; where the solve cannot be finished those that were found."""
    f = Field()
    try:
        solution = entry(f, Y0, T, **{"rtol": 1e-4, "atol": 1e-4} | how)
    except SolverError as error:
        solution = error.partial
    return f.times, getattr(solution, "y", solution).flatten().tolist()


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_is_honoured_by_every_entry(option: str) -> None:
    """The same evaluations and the same numbers; without the option they are others."""
    method, options, keywords = OPTIONS[option]
    expected = run(solve, **{"method": method} | keywords)
    assert run(odeint, method=method, options=options) == expected
    without = {name: value for name, value in options.items() if name != option}
    assert run(odeint, method=method, options=without) != expected
    if option != "max_iters":  # the steps of implicit methods differ where autograd looks on
        assert run(odeint_adjoint, method=method, options=options) == expected
    if method == "dopri5" and option != "max_num_steps":
        assert run(dense, method=method, options=options)[0] == run(solve, dense=True, **keywords)[0]


@pytest.mark.parametrize("option", sorted(OPTIONS.keys() - {"norm", "interp", "max_iters"}))
def test_an_option_is_honoured_by_the_backward_solve(option: str) -> None:
    """Evaluations at other times than without it, or other numbers. Backwards no output lies inside of a step."""
    method, options, _ = OPTIONS[option]
    found = []
    for chosen in (options, {name: value for name, value in options.items() if name != option}):
        f, y0 = Field(), Y0.clone().requires_grad_()
        y = odeint_adjoint(f, y0, T, rtol=1e-4, atol=1e-4, adjoint_method=method, adjoint_options=chosen)
        f.times.clear()
        with suppress(MaxStepsError):
            y.sum().backward()
        found.append((f.times, y0.grad))
    assert found[0][0] != found[1][0] or not torch.equal(found[0][1], found[1][1])


def test_options_of_the_backward_solve_are_checked_at_once() -> None:
    with pytest.raises(InvalidArgumentError, match="first_step must be a positive number, got -1"):
        odeint_adjoint(Field(), Y0, T, adjoint_options={"first_step": -1.0})


@pytest.mark.parametrize(
    ("entry", "how", "methods"),
    [
        (solve, {}, 1),
        (solve, {"gradient": "backsolve"}, 1),
        (odeint, {"options": {"first_step": 0.1}}, 1),
        (odeint_adjoint, {"options": {"first_step": 0.1}}, 1),
        (odeint_adjoint, {"method": "bosh3", "adjoint_method": "dopri5"}, 2),
        (dense, {}, 1),
    ],
)
@pytest.mark.parametrize("as_tuple", [False, True])
def test_nothing_is_done_twice(
    entry: Callable[..., Any], how: dict[str, Any], methods: int, as_tuple: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state is laid out once, and every method looked up once, the backward pass included."""
    counts = {"layouts": 0, "methods": 0}
    lay_out = StateLayout.__init__

    def counting(self: StateLayout, *arguments: Any) -> None:
        counts["layouts"] += 1
        lay_out(self, *arguments)

    class Counting(dict):
        def __getitem__(self, name: str) -> Any:
            counts["methods"] += 1
            return super().__getitem__(name)

    monkeypatch.setattr(StateLayout, "__init__", counting)
    monkeypatch.setattr(neural_ode.methods, "METHODS", Counting(METHODS))
    f, y0 = Field(), Y0.clone().requires_grad_()
    if as_tuple and entry is not dense:
        field = nn.Module()
        field.f, field.forward = f, lambda t, y: (f(t, y[0]), -y[1])
        solution = entry(field, (y0, y0[0]), T, **how)
    else:
        solution = entry(f, y0, T, **how)
    states = getattr(solution, "y", solution)
    sum(part.sum() for part in (states if isinstance(states, tuple) else (states,))).backward()
    assert counts == {"layouts": 1, "methods": methods}


class Own:
    """A way to differentiate that says nothing of itself."""

    def __call__(self, problem: InitialValueProblem, settings: SolverSettings, stats: Statistics) -> Trajectory:
        return Direct()(problem, settings, stats)


def test_a_gradient_may_say_nothing_of_itself() -> None:
    assert torch.equal(solve(Field(), Y0, T, gradient=Own()).y, solve(Field(), Y0, T).y)
    assert torch.equal(odeint(Field(), Y0, T, gradient=Own()), odeint(Field(), Y0, T))
    with pytest.raises(InvalidArgumentError, match=r"batched=True needs .*; got <.*Own object"):
        solve(Field(), Y0, T, gradient=Own(), batched=True)
    with pytest.raises(InvalidArgumentError, match="dense=True needs gradient='direct'"):
        solve(Field(), Y0, T, gradient=Own(), dense=True)


class Told(Field):
    """Has a callback that a method on a grid never calls, and a tensor that no gradient reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = [torch.ones(1, dtype=torch.float64, requires_grad=True).exp()]

    def callback_accept_step(self, t: Tensor, y: Tensor, h: Tensor) -> None: ...

    callback_accept_step_adjoint = callback_accept_step

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return super().forward(t, y) * self.scale[0]


@pytest.mark.parametrize(
    ("entry", "how", "texts"),
    [
        (solve, {"gradient": "backsolve"}, ["computes no gradient"]),
        (solve, {"method": "kvaerno5", "compile": True}, ["compile=True is for"]),
        (solve, {"gradient": "reversible", "params": (), "compile": True}, ["compile=True has no effect"]),
        (odeint, {"method": "rk4", "options": {"first_step": 0.1}}, ["option 'first_step'", "callback"]),
        (odeint, {"method": "kvaerno5", "compile": True}, ["compile=True is for"]),
        (odeint, {"gradient": "backsolve"}, ["computes no gradient"]),
        (
            odeint_adjoint,
            {"adjoint_method": "rk4", "adjoint_options": {"first_step": 0.1}},
            ["option 'first_step'", "callback 'callback_accept_step_adjoint'", "computes no gradient"],
        ),
    ],
)
def test_warnings_point_to_the_call(entry: Callable[..., Any], how: dict[str, Any], texts: list[str]) -> None:
    with pytest.warns(NeuralODEWarning) as caught:
        entry(Told(), Y0, T, **how)
    for text in texts:
        assert [warning.filename for warning in caught if text in str(warning.message)] == [__file__], text
