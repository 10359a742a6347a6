"""The names of torchdiffeq take what torchdiffeq takes."""

import inspect

import pytest
import torch
import torchdiffeq
from torch import Tensor, nn

import neural_ode
from neural_ode import GRADIENTS, InvalidArgumentError, NeuralODEWarning, UnknownNameError, odeint, odeint_adjoint

Y0 = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
T = torch.linspace(0, 1, 5, dtype=torch.float64)


class Field(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2).double()

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(self.linear(y)) * torch.cos(t)


@pytest.mark.parametrize("name", ["odeint", "odeint_adjoint", "odeint_dense", "odeint_event"])
def test_arguments_and_defaults(name: str) -> None:
    """Every argument there exists here with the same name and default."""
    ours = inspect.signature(getattr(neural_ode, name)).parameters
    theirs = inspect.signature(getattr(torchdiffeq, name)).parameters
    # odeint_event hands them on to the solve.
    assert set(ours) - set(theirs) == (set() if name == "odeint_event" else {"gradient", "compile"})
    assert not set(theirs) - set(ours)
    for argument, parameter in ours.items():
        if argument in theirs and argument != "odeint_interface":
            assert parameter.default == theirs[argument].default, argument
            assert parameter.kind == theirs[argument].kind, argument


@pytest.mark.parametrize("ode", [odeint, odeint_adjoint])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        (None, None),
        ("dopri5", {"first_step": 0.01, "safety": 0.8, "ifactor": 5.0, "dfactor": 0.3, "max_num_steps": 500}),
        ("rk4", {"step_size": 0.1}),
        ("midpoint", {"step_size": 0.15, "interp": "cubic"}),
        ("euler", {}),
    ],
)
def test_options_mean_the_same(ode, method: str | None, options: dict | None) -> None:
    f = Field()
    theirs = torchdiffeq.odeint(f, Y0, T, method=method, options=options, rtol=1e-9, atol=1e-9)
    ours = ode(f, Y0, T, method=method, options=options, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-8)


def test_norm_gets_the_state_as_the_user_has_it() -> None:
    seen = []

    def norm(y: tuple[Tensor, Tensor]) -> Tensor:
        seen.append([part.shape for part in y])
        return y[0].abs().max()

    odeint(lambda t, y: (-y[0], y[1]), (torch.ones(3), torch.ones(2, 2)), T, options={"norm": norm})
    assert seen[0] == [(3,), (2, 2)]


@pytest.mark.parametrize(
    ("method", "option", "hint"),
    [("dopri5", "step_size", ""), ("rk4", "first_step", ""), ("dopri5", "first_stp", "did you mean 'first_step'")],
)
def test_options_without_effect_warn_by_name(method: str, option: str, hint: str) -> None:
    with pytest.warns(NeuralODEWarning, match=f"'{option}'.*'{method}'.*{hint}"):
        odeint(Field(), Y0, T, method=method, options={option: 0.1})


def test_adjoint_options_without_effect_warn_by_name() -> None:
    with pytest.warns(NeuralODEWarning, match="'stepsize'"):
        odeint_adjoint(Field(), Y0, T, adjoint_options={"stepsize": 0.1})


def test_adjoint_settings_reach_the_backward_solve() -> None:
    f = Field()
    calls = []
    f.register_forward_hook(lambda *_: calls.append(1))

    def backward_calls(**settings) -> int:
        y = odeint_adjoint(f, Y0.clone().requires_grad_(), T[[0, -1]], rtol=1e-4, atol=1e-4, **settings)
        calls.clear()
        y.sum().backward()
        return len(calls)

    assert backward_calls(adjoint_rtol=1e-10, adjoint_atol=1e-10) > backward_calls()
    assert backward_calls(adjoint_method="rk4", adjoint_options={"step_size": 0.01}) == 400


def test_norms_of_the_adjoint() -> None:
    """A norm gets the parts in torchdiffeq's order, and the seminorm leaves out the parameters."""
    f = Field()
    y0 = Y0.clone().requires_grad_()
    shapes = []

    def norm(parts: tuple[Tensor, ...]) -> Tensor:
        shapes.append([tuple(part.shape) for part in parts])
        return torch.maximum(parts[1].abs().max(), parts[2].abs().max())

    def gradient(ode, norm) -> Tensor:
        y = ode(f, y0, T, rtol=1e-8, atol=1e-8, adjoint_options={"norm": norm})
        return torch.autograd.grad(y.sum(), f.linear.weight)[0]

    ours, theirs = gradient(odeint_adjoint, norm), gradient(torchdiffeq.odeint_adjoint, norm)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert {tuple(seen) for seen in shapes} == {((), (1, 2), (1, 2), (2, 2), (2,))}
    ours, theirs = gradient(odeint_adjoint, "seminorm"), gradient(torchdiffeq.odeint_adjoint, "seminorm")
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    with pytest.raises(InvalidArgumentError, match="'seminorm', got 'semi'"):
        gradient(odeint_adjoint, "semi")


def test_dynamics_may_return_a_list() -> None:
    y = odeint(lambda t, y: [-y[0], y[1]], (torch.ones(3), torch.ones(2)), T)
    assert [part.shape for part in y] == [(5, 3), (5, 2)]


def test_adjoint_needs_parameters() -> None:
    with pytest.raises(InvalidArgumentError, match="adjoint_params"):
        odeint_adjoint(lambda t, y: -y, Y0, T)
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    odeint_adjoint(lambda t, y: -scale * y, Y0, T, adjoint_params=(scale,))[-1].sum().backward()
    assert scale.grad is not None
    assert scale.grad.item() == pytest.approx(-1.5 * torch.exp(torch.tensor(-2.0)).item(), rel=1e-6)


def test_misuse() -> None:
    with pytest.raises(InvalidArgumentError, match="t must be a tensor"):
        odeint(Field(), Y0, [0.0, 1.0])
    with pytest.raises(UnknownNameError, match="did you mean 'dopri5'"):
        odeint(Field(), Y0, T, method="dopri55")


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("solver", [odeint, odeint_adjoint])
def test_takes_every_gradient(solver, gradient: str) -> None:
    f = nn.Linear(2, 2).double()
    y0 = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    t = torch.linspace(0, 1, 3, dtype=torch.float64)
    y = solver(_Module(f), y0, t, gradient=gradient)
    exact = torch.matrix_exp(f.weight.detach()).sum(0).expand(3, 2)
    (found,) = torch.autograd.grad(y[-1].sum(), y0, retain_graph=True)
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-6)
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(y[-1].sum(), list(f.parameters())))


class _Module(nn.Module):
    def __init__(self, f: nn.Module):
        super().__init__()
        self.f = f

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.f(y)
