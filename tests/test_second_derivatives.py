"""Derivatives of gradients, forward mode, and the transforms of `torch.func`."""

import math

import pytest
import torch
from torch import Tensor, nn

from neural_ode import Backsolve, InvalidArgumentError, RecursiveCheckpoint, solve

CHOICES = {
    "direct": "direct",
    "recursive_checkpoint": "recursive_checkpoint",
    "with 2 checkpoints": RecursiveCheckpoint(2),
    "backsolve": "backsolve",
    "seminorm": Backsolve(norm="seminorm"),
    "restarted": Backsolve(checkpoints=2),
    "quadrature": Backsolve(quadrature=True),
    "interpolating": "interpolating",
    "reversible": "reversible",
}
DISCRETE = ["direct", "recursive_checkpoint", "with 2 checkpoints", "reversible"]


class Field(nn.Module):
    """A small field that depends on state, time and parameters, none of them linearly."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[0.3, -0.8], [0.9, 0.2]], dtype=torch.float64))
        self.bias = nn.Parameter(torch.tensor([0.1, -0.4], dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.sin(y @ self.weight + self.bias * t)


def run(choice: str, method: str = "dopri5", **how):
    """A solve as a function of everything it can be differentiated by."""

    def states(y0: Tensor, t: Tensor, *params: Tensor) -> Tensor:
        def field(time: Tensor, y: Tensor) -> Tensor:
            return torch.sin(y @ params[0] + params[1] * time)

        return solve(field, y0, t, params=params, gradient=CHOICES[choice], method=method, **how).y

    return states


def inputs() -> tuple[Tensor, ...]:
    torch.manual_seed(3)
    y0 = torch.randn(2, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64, requires_grad=True)
    return y0, t, *Field().parameters()


@pytest.mark.parametrize("choice", CHOICES)
def test_second_derivatives_by_finite_differences(choice: str) -> None:
    """With respect to y0, all times and the parameters; the steps of the discrete choices stay where they are."""
    discrete = choice in DISCRETE
    how = {"step_size": 0.2} if discrete else {"rtol": 1e-9, "atol": 1e-10}
    y0, t, *params = inputs()
    if discrete:  # moving t[-1] changes the number of steps
        t.requires_grad_(False)
    states = run(choice, **how)
    assert torch.autograd.gradgradcheck(states, (y0, t, *params), atol=1e-6, rtol=1e-5, fast_mode=True)


def test_times_on_a_grid_that_moves_with_them() -> None:
    for choice in DISCRETE:
        assert torch.autograd.gradgradcheck(run(choice, method="rk4"), inputs(), fast_mode=True)


@pytest.mark.parametrize("choice", CHOICES)
def test_hessian_vector_product(choice: str) -> None:
    """Of a loss on all outputs, against that of `direct` in float64 at a tight tolerance."""
    y0, t, *params = inputs()
    torch.manual_seed(0)
    vectors = [torch.randn_like(x) for x in (y0, *params)]

    def product(choice: str) -> list[Tensor]:
        loss = run(choice, rtol=1e-10, atol=1e-11)(y0, t, *params).pow(3).sum()
        first = torch.autograd.grad(loss, [y0, *params], create_graph=True)
        along = sum((g * v).sum() for g, v in zip(first, vectors, strict=True))
        return list(torch.autograd.grad(along, [y0, *params]))

    for a, b in zip(product(choice), product("direct"), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("choice", ["backsolve", "recursive_checkpoint", "interpolating"])
def test_third_derivative_in_closed_form(choice: str) -> None:
    """y' = k y: the derivatives of y0 exp(k t) with respect to k are t, t² and t³ times it."""
    k = torch.tensor(-0.7, dtype=torch.float64, requires_grad=True)
    y0 = torch.tensor(1.3, dtype=torch.float64)
    how = {"rtol": 1e-9, "atol": 1e-10, "params": (k,), "gradient": choice}
    y = solve(lambda t, y: k * y, y0, [0.0, 1.5], **how).y[-1]
    exact = 1.3 * math.exp(-0.7 * 1.5)
    for order in (1, 2, 3):
        (y,) = torch.autograd.grad(y, k, create_graph=True)
        assert y.item() == pytest.approx(1.5**order * exact, rel=1e-6)


@pytest.mark.parametrize("choice", ["backsolve", "recursive_checkpoint", "interpolating", "reversible"])
def test_third_derivative_with_respect_to_the_state(choice: str) -> None:
    """y' = y²: y0 / (1 - y0 t), whose derivatives are n! tⁿ⁻¹ / (1 - y0 t)ⁿ⁺¹."""
    y0 = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    y = solve(lambda t, y: y**2, y0, [0.0, 0.5], rtol=1e-9, atol=1e-10, params=(), gradient=choice).y[-1]
    for order in (1, 2, 3):
        (y,) = torch.autograd.grad(y, y0, create_graph=True)
        assert y.item() == pytest.approx(math.factorial(order) * 0.5 ** (order - 1) / 0.6 ** (order + 1), rel=1e-6)


def test_first_derivative_is_the_same_with_a_graph() -> None:
    y0, t, *params = inputs()
    for choice in CHOICES:
        loss = run(choice, rtol=1e-9, atol=1e-10)(y0, t, *params).pow(2).sum()
        plain = torch.autograd.grad(loss, [y0, t, *params], retain_graph=True)
        graphed = torch.autograd.grad(loss, [y0, t, *params], create_graph=True)
        for a, b in zip(plain, graphed, strict=True):
            torch.testing.assert_close(a, b.detach(), rtol=1e-6, atol=1e-7)


# Forward mode and the transforms of torch.func -----------------------------------------------------------------

GRIDS = [{}, {"method": "rk4", "step_size": 0.1}, {"method": "adams"}]


def field_of(weight: Tensor, y0: Tensor, **how) -> Tensor:
    return solve(lambda t, y: torch.tanh(y @ weight) * torch.cos(t), y0, [0.0, 0.3, 1.0], **how).y


@pytest.mark.parametrize("how", GRIDS, ids=["adaptive", "grid", "adams"])
def test_forward_mode_of_direct(how: dict) -> None:
    """Against central differences; the steps of the adaptive solves hardly matter at this tolerance."""
    torch.manual_seed(2)
    weight, y0 = torch.randn(2, 2, dtype=torch.float64), torch.randn(2, dtype=torch.float64)
    along = torch.randn_like(weight), torch.randn_like(y0)
    how = {"rtol": 1e-11, "atol": 1e-12} | how
    y, tangent = torch.func.jvp(lambda w, y: field_of(w, y, **how), (weight, y0), along)
    h = 1e-5
    above = field_of(weight + h * along[0], y0 + h * along[1], **how)
    below = field_of(weight - h * along[0], y0 - h * along[1], **how)
    torch.testing.assert_close(tangent, (above - below) / (2 * h), rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(y, field_of(weight, y0, **how))


@pytest.mark.parametrize("how", GRIDS, ids=["adaptive", "grid", "adams"])
def test_transforms_of_direct_agree_with_autograd(how: dict) -> None:
    torch.manual_seed(2)
    weight, y0 = torch.randn(2, 2, dtype=torch.float64), torch.randn(2, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda w: field_of(w, y0, **how), weight)
    total = torch.func.grad(lambda w: field_of(w, y0, **how).sum())(weight)
    torch.testing.assert_close(total, jacobian.sum((0, 1)))
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(transform(lambda w: field_of(w, y0, **how))(weight), jacobian)


OTHERS = ["recursive_checkpoint", "backsolve", "interpolating", "reversible"]


@pytest.mark.parametrize("gradient", OTHERS)
def test_what_other_choices_cannot_do_is_said(gradient: str) -> None:
    y0 = torch.randn(2, dtype=torch.float64)
    weight = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)

    def run(w: Tensor, y: Tensor) -> Tensor:
        return field_of(w, y, gradient=gradient, params=(w,))

    with pytest.raises(InvalidArgumentError, match="use gradient='direct'"):
        torch.func.grad(lambda w: run(w, y0).sum())(weight)
    with pytest.raises(InvalidArgumentError, match="gradient='direct'"):
        torch.func.jvp(lambda y: run(weight, y), (y0,), (y0,))
    with pytest.raises(InvalidArgumentError, match="forward mode needs"), torch.autograd.forward_ad.dual_level():
        run(weight, torch.autograd.forward_ad.make_dual(y0, y0))


@pytest.mark.parametrize("how", [{}, {"method": "rk4", "step_size": 0.1}], ids=["adaptive", "grid"])
def test_vmap_says_what_to_do_instead(how: dict) -> None:
    weight, y0 = torch.randn(2, 2, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    for function in (
        lambda y: field_of(weight, y, **how),
        torch.func.grad(lambda y: field_of(weight, y, **how).sum()),
    ):
        with pytest.raises(InvalidArgumentError, match="batched=True"):
            torch.func.vmap(function)(y0)
    with pytest.raises(InvalidArgumentError, match="explicit method"):
        torch.func.grad(lambda y: field_of(weight, y, method="kvaerno5").sum())(y0)


def test_many_cotangents_at_once() -> None:
    """The discrete choices take them; a solve of its own for the gradient decides by values, and says so."""
    y0, weight = torch.randn(2, dtype=torch.float64), torch.randn(2, 2, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian
    for gradient in ("recursive_checkpoint", "reversible"):

        def run(w: Tensor, gradient: str = gradient) -> Tensor:
            return field_of(w, y0, gradient=gradient, params=(w,))

        torch.testing.assert_close(jacobian(run, weight, vectorize=True), jacobian(run, weight))
    for gradient in ("backsolve", "interpolating"):
        with pytest.raises(InvalidArgumentError, match="one cotangent at a time"):
            jacobian(lambda w, g=gradient: field_of(w, y0, gradient=g, params=(w,)), weight, vectorize=True)
