"""Models and trainings of notebook 16."""

import io
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from neural_ode.gradients import GRADIENTS, Backsolve, RecursiveCheckpoint
from reproduction.experiments.gradients import last_tested
from reproduction.models.attracted import Attracted, Curve, Paths, curve
from reproduction.models.dense_digits import DenseDigits
from reproduction.training.gradient_choices import WAYS, curve_run, digits_run, flow_run

CURVE: dict[str, Any] = {"seed": 0, "hidden": 8, "starts": 4, "training": {"epochs": 2, "steps": 8, "lr": 0.02}}
CURVE |= {"solver": {"rtol": 1e-3, "atol": 1e-3, "max_steps": 300}, "device": torch.device("cpu")}


def table(files: Any) -> pd.DataFrame:
    return pd.read_csv(io.BytesIO(files[".csv"]))


def test_every_choice_of_the_library_is_trained_with() -> None:
    names = {way if isinstance(way, str) else getattr(way, "name", None) for way in WAYS.values()}
    assert names == set(GRADIENTS)
    assert WAYS["backsolve, 4 checkpoints"] == Backsolve(checkpoints=4)
    assert WAYS["backsolve, seminorm"] == Backsolve(norm="seminorm")
    assert WAYS["recursive_checkpoint, log n"] == RecursiveCheckpoint(checkpoints="log")


@pytest.mark.parametrize("way", WAYS)
def test_every_way_has_the_gradient_of_direct(way: str) -> None:
    """Not its direction alone, which is all that Adam would notice."""
    found = []
    for gradient in (WAYS["direct"], WAYS[way]):
        torch.manual_seed(0)
        net = DenseDigits(6, 8, rtol=1e-8, atol=1e-8, gradient=gradient).double()
        torch.autograd.backward(net(torch.rand(4, 1, 28, 28, dtype=torch.float64)).square().sum())
        found.append(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]))
    expected, ours = found
    assert (ours - expected).norm() < 2e-3 * expected.norm()  # not closer: ReLU has kinks


def test_trajectories_are_drawn_to_the_curve_at_the_rate() -> None:
    """From near it: the distance falls like `exp(-k g² t)`; far from the start it is of order 1/k."""
    k, at = 1000.0, torch.tensor(1.0, dtype=torch.float64)
    f = Attracted(lambda t: at, k)
    y = at.clone().requires_grad_()
    assert f(at, y) == 0
    (jacobian,) = torch.autograd.grad(f(at, y), y)
    assert jacobian == -k
    y0 = torch.tensor([1.001], dtype=torch.float64)
    (_, end) = Paths(f, [0.0, 0.003], rtol=1e-9, atol=1e-12)(y0)
    assert end.item() - 1 == pytest.approx(0.001 * torch.e**-3, rel=0.01)
    moving = Paths(Attracted(curve, k), [0.0, 2.0], method="kvaerno5", rtol=1e-8, atol=1e-8)
    (_, end) = moving(torch.tensor([0.7, 1.8], dtype=torch.float64))
    assert (end - curve(2 * at)).abs().max() < 10 / k


def test_paths_tell_what_they_cost() -> None:
    paths = Paths(Attracted(Curve(4), 1.0), [0.0, 0.5, 1.0], gradient="backsolve")
    y = paths(torch.ones(3, dtype=torch.float64))
    assert y.shape == (3, 3)
    torch.autograd.backward(y.sum())
    assert paths.stats.nfe > 0
    assert paths.stats.backward is not None
    assert all(p.grad is not None for p in paths.parameters())


def test_all_ways_learn_the_same_where_nothing_is_stiff(tmp_path: Path) -> None:
    rows = table(curve_run(ways=list(WAYS), rate=1.0, checkpoints=tmp_path, **CURVE))
    assert set(rows["name"]) == set(WAYS)
    start, end = rows[rows["epoch"] == 0], rows[rows["epoch"] == 2].set_index("name")
    assert start["test_error"].nunique() == 1
    assert not rows["given up"].any()
    direct = end.loc["direct"]
    assert direct["test_error"] < start["test_error"].iloc[0]
    assert direct["backward"] == 0 < direct["forward"]
    for way in WAYS:
        assert end.loc[way, "test_error"] == pytest.approx(direct["test_error"], rel=0.02)
        assert way == "direct" or end.loc[way, "backward"] > 0
    assert end.loc["recursive_checkpoint", "test_error"] == pytest.approx(direct["test_error"], rel=1e-9)


def test_a_stiff_state_that_is_solved_backwards_is_given_up(tmp_path: Path) -> None:
    rows = table(curve_run(ways=["interpolating", "backsolve"], rate=100.0, checkpoints=tmp_path, **CURVE))
    given_up = last_tested(rows.assign(seed=0))["given up"].droplevel("seed")
    assert given_up["backsolve"]
    assert not given_up["interpolating"]


def test_a_flow_fits_better_with_every_way(tmp_path: Path) -> None:
    training = {"epochs": 1, "steps": 4, "batch_size": 32, "lr": 1e-2}
    rows = table(
        flow_run(
            ways=list(WAYS),
            seed=0,
            points_of="two moons",
            units=8,
            hidden=8,
            held_out=100,
            training=training,
            solver={"rtol": 1e-4, "atol": 1e-4},
            device=torch.device("cpu"),
            checkpoints=tmp_path,
        )
    )
    fit = rows.pivot_table("log_likelihood", "name", "epoch")
    assert (fit[1] > fit[0]).all()
    assert fit[1].max() - fit[1].min() < 1e-3


def test_digits_are_learned(tmp_path: Path, root: Path) -> None:
    rows = table(
        digits_run(
            ways=["direct", "backsolve"],
            seed=0,
            dimensions=16,
            hidden=16,
            train_size=512,
            test_size=200,
            training={"epochs": 2, "batch_size": 32, "lr": 1e-2},
            solver={"rtol": 1e-3, "atol": 1e-3},
            data=root / "data" / "mnist",
            device=torch.device("cpu"),
            checkpoints=tmp_path,
        )
    )
    errors = rows.pivot_table("test_error", "epoch", "name")
    assert errors.loc[0, "direct"] == errors.loc[0, "backsolve"] > 70
    assert (errors.loc[2] < 45).all()
    assert (last_tested(rows.assign(seed=0))["steps"] == 32).all()


def test_the_last_row_counts_with_the_last_test() -> None:
    rows = [
        {"name": "fails", "seed": 1, "epoch": 1, "given up": True, "steps": 5, "test_error": None},
        {"name": "fails", "seed": 1, "epoch": 0, "given up": False, "steps": 0, "test_error": 0.5},
        {"name": "goes on", "seed": 1, "epoch": 2, "given up": False, "steps": 8, "test_error": 0.1},
        {"name": "goes on", "seed": 1, "epoch": 1, "given up": False, "steps": 4, "test_error": 0.2},
    ]
    last = last_tested(pd.DataFrame(rows))
    assert list(last["given up"]) == [True, False]
    assert list(last["steps"]) == [5, 8]
    assert list(last["test_error"]) == [0.5, 0.1]
