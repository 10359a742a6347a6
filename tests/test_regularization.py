"""Models and trainings of notebook 13: costs that count, the same data with and without them."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from neural_ode.nn import ContinuousFlow, OdeBlock
from reproduction.experiments.regularization import step_times_run
from reproduction.models.regularized import Digits, flow, latent, penalty
from reproduction.training.regularized import flow_run, latent_run

BOTH = {"kinetic energy": 0.5, "Jacobian": 0.25}
COARSE = {"rtol": 1e-3, "atol": 1e-3}


def test_the_penalty_is_a_mean_for_each_dimension() -> None:
    costs = {"kinetic energy": torch.tensor([1.0, 3.0]), "Jacobian": torch.tensor([8.0, 8.0])}
    assert penalty(costs, BOTH, 4) == (0.5 * 2 + 0.25 * 8) / 4
    assert penalty({}, {}, 4) == 0


def test_without_weights_there_are_no_costs() -> None:
    assert type(flow(4, 8, {})) is ContinuousFlow
    assert type(Digits(8, {}).block) is OdeBlock
    assert Digits(8, {}).penalty() == 0


@pytest.mark.parametrize("name", ["digits", "latent"])
def test_costs_change_no_prediction(name: str) -> None:
    """The same weights give the same output, with and without costs, in training and in eval mode."""
    torch.manual_seed(0)
    z, images = torch.randn(6, 4), torch.rand(6, 1, 28, 28)
    found = []
    for weights in ({}, {"R2": 0.1}):
        torch.manual_seed(1)
        if name == "digits":
            net: Any = Digits(8, weights, **COARSE)
            found.append((net(images), net.stats.nfe, net.eval()(images)))
        else:
            net, times = latent(0.1, weights, **COARSE), torch.tensor([0.0, 0.5, 1.0])
            found.append((net.trajectory(z, times), net.stats.nfe, net.eval().trajectory(z, times)))
    (plain, steps, rest), (with_costs, same, rest_with_costs) = found
    torch.testing.assert_close(with_costs, plain, rtol=1e-4, atol=1e-5)
    assert steps == same
    torch.testing.assert_close(rest_with_costs, rest, rtol=1e-6, atol=1e-6)


def test_the_penalty_of_a_latent_ode_reaches_its_dynamics() -> None:
    torch.manual_seed(0)
    net = latent(0.1, {"R3": 1.0}, **COARSE)
    net.trajectory(torch.randn(6, 4), torch.tensor([0.0, 1.0]))
    total = penalty(net.costs, net.weights, 4)
    assert isinstance(total, torch.Tensor)
    torch.autograd.backward(total)
    weights = [p for p in net.dynamics.parameters() if p.dim() == 2]
    assert len(weights) == 2
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in weights)


HOW: dict[str, Any] = {"device": torch.device("cpu")}
FLOW = {"points_of": "two moons", "units": 8, "hidden": 8, "held_out": 100, "compiled": False}
FLOW |= {"training": {"epochs": 2, "steps": 40, "batch_size": 64, "lr": 1e-2}, "solver": COARSE}


def test_a_heavy_weight_stops_a_flow(tmp_path: Path) -> None:
    """With it the paths of the data hardly move; without it they do."""
    lengths = []
    for weights in ({"kinetic energy": 100.0}, {}):
        files = flow_run(weights=weights, seed=0, checkpoints=tmp_path, **FLOW, **HOW)
        (tmp_path / "history.csv").write_bytes(files[".csv"])
        history = pd.read_csv(tmp_path / "history.csv")
        assert list(history["epoch"]) == [1, 2]
        assert {"log_likelihood", "nfe_0.001", "nfe_1e-05"} <= set(history)
        paths = torch.tensor(json.loads(files[".json"])["paths"])
        assert paths.shape == (11, 60, 2)
        lengths.append((paths[-1] - paths[0]).norm(dim=1).mean())
    assert lengths[0] < 0.5 * lengths[1]


def test_a_run_is_the_same_again(tmp_path: Path) -> None:
    settings = {"series": 20, "test_series": 10, "observations": 20, "solver": COARSE}
    settings |= {"training": {"epochs": 2, "steps": 4, "batch_size": 10, "lr": 1e-2}}
    first, second = (
        latent_run(weights={"R2": 0.1}, seed=0, checkpoints=tmp_path / str(i), **settings, **HOW)[".csv"]
        .decode()
        .splitlines()
        for i in (0, 1)
    )
    assert [line.rpartition(",")[0] for line in first] == [line.rpartition(",")[0] for line in second]


def test_times_are_of_each_choice(tmp_path: Path) -> None:
    choices = {"none": {}, "energy + Jacobian": BOTH}
    files = step_times_run(choices=choices, channels=8, batch_size=8, solver=COARSE, repeats=2)
    (tmp_path / "times.csv").write_bytes(files[".csv"])
    times = pd.read_csv(tmp_path / "times.csv").set_index("choice")["seconds"]
    assert list(times.index) == list(choices)
    assert times["energy + Jacobian"] > times["none"] > 0
