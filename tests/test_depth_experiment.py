"""What notebook 01 draws: layers, the field, and where a solver evaluates it."""

import math

import pytest
import torch
from torch import Tensor, nn

from neural_ode import solve
from reproduction.experiments.depth import DEPTH, Flow, Layers, euler_errors, inputs, stairs, trace, train


class Line(nn.Module):
    """`dh/dt = -h / 5`, so that the flow over five units shrinks by e."""

    def forward(self, x: Tensor) -> Tensor:
        return -x[:, :1] / DEPTH


def decay() -> Flow:
    flow = Flow()
    flow.f = Line()
    return flow


def test_stairs_increase() -> None:
    x = inputs(1001)
    assert (stairs(x).diff(dim=0) > 0).all()
    assert stairs(torch.tensor([-4.0, -2.0, 0.0, 2.0, 4.0])).tolist() == pytest.approx([-4, -2, 0, 2, 4], abs=1e-5)


def test_a_residual_network_makes_steps_of_length_one() -> None:
    torch.manual_seed(0)
    layers, h = Layers(), inputs(7)
    with torch.no_grad():
        states = layers.states(h)
        assert states.shape == (DEPTH + 1, 7, 1)
        for k in range(DEPTH):
            for t in (k, k + 0.7):
                assert torch.equal(states[k] + layers.field(torch.tensor(float(t)), states[k]), states[k + 1])
        assert torch.equal(layers(h), states[-1])


def test_a_flow_solves_its_field() -> None:
    h = inputs(5)
    with torch.no_grad():
        assert torch.allclose(decay()(h), h / math.e, rtol=1e-4)
        assert torch.allclose(decay().states(h, [0.0, 2.5, 5.0])[1], h / math.exp(0.5), rtol=1e-4)


def test_training_reduces_the_error_it_reports() -> None:
    torch.manual_seed(0)
    layers = Layers()
    with torch.no_grad():
        before = (layers(inputs(64)) - stairs(inputs(64))).square().mean().sqrt().item()
    error = train(layers, stairs, 60, "layers")
    with torch.no_grad():
        after = (layers(inputs(64)) - stairs(inputs(64))).square().mean().sqrt().item()
    assert error == after < before / 2


def test_the_trace_is_every_evaluation() -> None:
    how = {"method": "dopri5", "rtol": 1e-4, "atol": 1e-4}
    found = trace(decay(), 2.0, **how)
    y0 = torch.tensor([[2.0]], dtype=torch.float64)
    assert len(found) == solve(lambda t, h: -h / DEPTH, y0, (0.0, 5.0), **how).stats.nfe
    assert found[0] == (0.0, 2.0)
    assert all(0 <= e.t <= DEPTH for e in found)


def test_euler_steps_become_the_ode() -> None:
    steps = [10, 20, 40]
    root = inputs(64).square().mean().sqrt().item()
    expected = [root * abs((1 - 1 / n) ** n - 1 / math.e) for n in steps]
    assert euler_errors(decay(), steps) == pytest.approx(expected, rel=1e-6)
