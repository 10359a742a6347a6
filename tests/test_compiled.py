"""Compiled steps: the numbers of plain ones, nothing compiled twice, plain steps where it cannot be done."""

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from neural_ode import Backsolve, NeuralODEWarning, odeint, odeint_adjoint, solve


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
    """Other steps, tolerances, times, batch sizes and parameter values need no compilation."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error", NeuralODEWarning)
        for batch in (8, 5):  # the second size makes the graph one for all sizes
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


def test_evaluations_are_still_counted_by_the_module(field: Field) -> None:
    field.nfe = 0
    with torch.no_grad():
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
