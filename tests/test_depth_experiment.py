"""What notebook 01 draws: layers, the field, and where a solver evaluates it."""

import math
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from neural_ode import solve
from reproduction.experiments import depth
from reproduction.experiments.depth import euler_errors, trace
from reproduction.models.depth import DEPTH, DEPTH_NETWORKS, Flow, Layers
from reproduction.training.depth import TARGETS, inputs, stairs, train
from reproduction.workspace import Workspace


class Line(nn.Module):
    """`dh/dt = -h / 5`, so that the flow over five units shrinks by e."""

    def forward(self, x: Tensor) -> Tensor:
        return -x[:, :1] / DEPTH


class Cube(nn.Module):
    """`dh/dt = -h³`."""

    def forward(self, x: Tensor) -> Tensor:
        return -(x[:, :1] ** 3)


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
    assert found[0] == (0.0, 2.0, True)
    assert all(0 <= e.t <= DEPTH for e in found)


def test_the_trace_tells_points_of_the_solution_from_stages() -> None:
    """Of `h' = -h³`, whose solution is `h / √(1 + 2 h² t)`."""
    flow = Flow()
    flow.f = Cube()
    how = {"method": "dopri5", "rtol": 1e-7, "atol": 1e-7}
    found = trace(flow, 2.0, **how)
    stats = solve(lambda t, h: -(h**3), torch.tensor([2.0], dtype=torch.float64), (0.0, 5.0), **how).stats
    accepted = [e for e in found if e.accepted]
    assert len(accepted) == stats.accepted + 1
    assert [e.t for e in accepted] == pytest.approx([0.0, *accumulate(stats.step_sizes)])
    assert [e.h for e in accepted] == pytest.approx([2 / math.sqrt(1 + 8 * e.t) for e in accepted], rel=1e-5)
    stages = [e for e in found if not e.accepted]
    assert max(abs(e.h - 2 / math.sqrt(1 + 8 * e.t)) for e in stages) > 1e-3, "stages lie beside the solution"


def test_euler_steps_become_the_ode() -> None:
    steps = [10, 20, 40]
    root = inputs(64).square().mean().sqrt().item()
    expected = [root * abs((1 - 1 / n) ** n - 1 / math.e) for n in steps]
    assert euler_errors(decay(), steps) == pytest.approx(expected, rel=1e-6)


def test_results_are_computed_once(tmp_path: Path) -> None:
    def results(iterations: int, steps: list[int]) -> depth.Results:
        work = Workspace("01_depth", "quick", tmp_path, tmp_path)
        return depth.results(work, iterations=iterations, steps=steps, device="cpu")

    def made() -> dict[str, int]:
        folder = tmp_path / "results" / "quick" / "01_depth"
        return {x.relative_to(folder).as_posix(): x.stat().st_mtime_ns for x in folder.rglob("*.csv")}

    found = results(4, [5, 10])
    before = made()
    networks = {"ResNet.csv", "ODE-network.csv", "reflection/ResNet.csv", "reflection/ODE-network.csv"}
    assert set(before) == {*networks, "distances.csv"}
    again = results(4, [5, 10])
    assert made() == before
    assert again.distances.equals(found.distances)
    assert (again.errors, again.reflections) == (found.errors, found.reflections)

    best = inputs(64).square().mean().sqrt().item()
    for name, network in DEPTH_NETWORKS.items():
        for target, errors in (("stairs", found.errors), ("reflection", found.reflections)):
            torch.manual_seed(0)
            error = train(network(), TARGETS[target], 4, name)
            assert errors[name] == (error if target == "stairs" else error / best)
    with torch.no_grad():
        difference = found.layers(inputs(64)) - stairs(inputs(64))
    assert difference.square().mean().sqrt().item() == found.errors["ResNet"]
    assert list(found.distances["distance"]) == euler_errors(found.flow, [5, 10])

    results(4, [5, 20])
    assert {name for name, time in made().items() if time != before[name]} == {"distances.csv"}
