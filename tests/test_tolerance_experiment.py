"""What notebook 05 measures on a trained network, on networks whose answer is known."""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from neural_ode import solve
from neural_ode.errors import InvalidArgumentError
from neural_ode.gradients import Backsolve
from reproduction.data.mnist import Split, load_splits
from reproduction.experiments import tolerance
from reproduction.experiments.tolerance import SOLVERS, evaluations_at, path, path_of
from reproduction.experiments.tolerance.answers import error_solved
from reproduction.experiments.tolerance.backward import backward_sweep, there_and_back
from reproduction.experiments.tolerance.digits import per_digit, times_of_their_own
from reproduction.experiments.tolerance.sharing import sharing
from reproduction.experiments.tolerance.solves import Forward, backward_scales, forward_sweep
from reproduction.experiments.tolerance.stiffness import STIFF_SOLVERS, attracted, stiff_sweep
from reproduction.models.mnist import ConvDynamics, MnistNet, mnist_net
from reproduction.training.mnist import load_classifier
from reproduction.training.weights import WeightsError, save_run
from reproduction.workspace import Workspace


class Brightness(nn.Module):
    """`dz/dt = -k z` with a rate that is the mean brightness of the image: bright ones need more steps."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(60.0))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        rate = self.scale * z[:, :1].mean((1, 2, 3), keepdim=True)
        change = -rate * z
        return torch.cat([torch.zeros_like(z[:, :1]), change[:, 1:]], 1)


def network(seed: int = 0, **how) -> MnistNet:
    torch.manual_seed(seed)
    model = mnist_net("ODE-Net", **{"rtol": 1e-3, "atol": 1e-3, **how})
    assert isinstance(model, MnistNet)
    return model.eval()


def examples(n: int = 6) -> Split:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (n, 1, 28, 28), generator=generator).to(torch.uint8)
    return Split(images, torch.randint(10, (n,), generator=generator))


class Lift(nn.Module):
    """The image's brightness in the first channel, ones in the second; 6 x 6 pixels."""

    def forward(self, x: Tensor) -> Tensor:
        bright = x.mean((1, 2, 3), keepdim=True).expand(-1, 1, 6, 6)
        return torch.cat([bright, torch.ones_like(bright)], 1)


class Sums(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return torch.stack([z[:, 1].mean((1, 2)), *[torch.zeros(len(z)).to(z) for _ in range(9)]], 1)


def bright_network() -> MnistNet:
    model = network()
    model.stem, model.head = Lift(), Sums()
    model.body.f = Brightness()
    return model


def shades(*levels: int) -> Split:
    images = torch.stack([torch.full((1, 28, 28), level, dtype=torch.uint8) for level in levels])
    return Split(images, torch.zeros(len(levels), dtype=torch.int64))


def test_forward_sweep_finds_the_error_of_each_solve() -> None:
    rows = forward_sweep(bright_network().double(), [shades(20, 200), shades(100)], [1e-3, 1e-6], repeats=2)
    assert len(rows) == 2 * 2 * len(SOLVERS)
    for row in rows:
        levels = torch.tensor([20.0, 200.0] if row.batch == 0 else [100.0], dtype=torch.float64) / 255
        y0 = torch.stack([levels, torch.ones_like(levels)], 1)[:, :, None, None].expand(-1, -1, 6, 6)
        exact = torch.stack([levels, torch.exp(-60 * levels)], 1)[:, :, None, None].expand(-1, -1, 6, 6)
        how = {"method": SOLVERS[row.solver], "rtol": row.tolerance, "atol": row.tolerance}
        with torch.no_grad():
            solution = solve(Brightness().double(), y0.clone(), (0.0, 1.0), **how)
        expected = (solution.y[-1] - exact).norm() / exact.norm()
        # The sweep's own reference is a hundred times tighter than 1e-6, not exact.
        assert row.error == pytest.approx(expected.item(), rel=0.05, abs=1e-8)
        assert row.nfe == solution.stats.nfe
        assert row.seconds > 0
        assert (row.seminorm_nfe is None) == (row.solver == "VODE" or row.batch > 0)
        assert (row.backward_nfe is None) == (row.batch > 0)
    for solver in SOLVERS:
        loose, tight = [r for r in rows if r.solver == solver and r.batch == 0]
        assert tight.error < loose.error / 5
        assert tight.nfe > loose.nfe


def test_a_larger_loss_costs_more_backward() -> None:
    rows = backward_scales(network().double(), examples(1), [1.0, 1e3], 1e-3, {"dopri5": "dopri5"})
    assert [row.scale for row in rows] == [1.0, 1e3]
    assert rows[1].ratio > 1.5 * rows[0].ratio


def test_there_and_back_counts_what_the_solvers_ask_for() -> None:
    model, split = network().double(), examples(2)
    block, calls = model.body, []
    block.f.register_forward_pre_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        state = model.stem(split.images.double() / 255)
    stats = there_and_back(
        model, state, split.labels, Backsolve(), {"method": "dopri5", "rtol": 1e-3, "atol": 1e-3}
    )
    assert len(calls) == stats.nfe + stats.backward.nfe
    assert all(parameter.grad is None for parameter in model.parameters())


def test_both_losses_are_solved_back_for_every_batch() -> None:
    model, split = network().double(), examples(60)
    parts = [Split(*(x[k : k + 30] for x in split)) for k in (0, 30)]
    rows = backward_sweep(model, parts, 1e-3)
    assert [(row.solver, row.batch, row.loss) for row in rows] == [
        (solver, batch, loss)
        for solver in ("VODE", "adams", "dopri5")
        for batch in (0, 1)
        for loss in ("mean", "sum")
    ]
    for mean, summed in zip(rows[::2], rows[1::2], strict=True):
        assert mean.forward_nfe == summed.forward_nfe
        # The sum is what a scale of 30 makes of the mean.
        (scaled,) = backward_scales(model, parts[mean.batch], [30.0], 1e-3, {mean.solver: SOLVERS[mean.solver]})
        assert summed.backward_nfe == round(scaled.ratio * summed.forward_nfe)
    assert sum(row.backward_nfe for row in rows[1::2]) > sum(row.backward_nfe for row in rows[::2])


@pytest.mark.parametrize("k", [0.5, 20.0])
def test_the_attracted_solution(k: float) -> None:
    assert attracted(k, 0.0) == pytest.approx(1)
    step = 1e-5
    slope = (attracted(k, 0.7 + step) - attracted(k, 0.7 - step)) / (2 * step)
    assert slope == pytest.approx(-k * (attracted(k, 0.7) - math.cos(0.7)), abs=1e-7)


@pytest.mark.parametrize("name", STIFF_SOLVERS)
def test_stiff_solves_are_right(name: str) -> None:
    rows = stiff_sweep(name, STIFF_SOLVERS[name], [1.0, 30.0, 300.0], 1e-6)
    assert [(row.solver, row.stiffness) for row in rows] == [(name, 1.0), (name, 30.0), (name, 300.0)]
    assert all(row.error < 2e-5 for row in rows)


def test_stiffness_costs_methods_without_newtons_only() -> None:
    def growth(name: str) -> float:
        few, many = stiff_sweep(name, STIFF_SOLVERS[name], [100.0, 1000.0], 1e-6)
        return many.nfe / few.nfe

    assert {name for name in STIFF_SOLVERS if growth(name) > 4} == {"VODE, Adams", "adams", "dopri5"}
    # The stability of dopri5 ends where the product of step and k is 3.3; a step takes six evaluations.
    (row,) = stiff_sweep("dopri5", "dopri5", [1000.0], 1e-6)
    assert row.nfe == pytest.approx(6 * 2 * 1000 / 3.3, rel=0.1)


def test_evaluations_at_an_error_lie_on_the_curve() -> None:
    def row(error: float, nfe: int) -> Forward:
        return Forward("x", 0, 0.1, error, 1.0, nfe, 1, None)

    rows = [row(1e-2, 10), row(1e-4, 1000), row(1e-6, 4000)]
    assert evaluations_at(rows, 1e-3) == pytest.approx(100)
    assert evaluations_at(rows, 1e-5) == pytest.approx(2000)
    assert evaluations_at(rows, 1e-1) is None
    assert evaluations_at(rows, 1e-7) is None
    assert evaluations_at(list(reversed(rows)), 1e-3) == pytest.approx(100)


def test_dynamics_with_times_of_their_own() -> None:
    torch.manual_seed(0)
    f = ConvDynamics(8).double()
    z, t = torch.randn(5, 8, 6, 6, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    expected = torch.cat([f(time, row[None]) for time, row in zip(t, z, strict=True)])
    assert torch.allclose(times_of_their_own(f)(t, z), expected, atol=1e-12)


def test_every_digit_has_its_own_count() -> None:
    split = shades(5, 50, 250, 5)
    found = per_digit(bright_network(), split, 1e-5, "dopri5", batch_size=3)
    assert found.nfe[0] < found.nfe[1] < found.nfe[2]
    assert found.nfe[0] == found.nfe[3]
    levels = np.array([5, 50, 250, 5]) / 255
    expected = np.log(np.exp(np.exp(-60 * levels)) + 9) - np.exp(-60 * levels)
    assert found.loss == pytest.approx(expected, abs=1e-4)
    assert not found.wrong.any()


def test_steps_on_the_way_of_an_image() -> None:
    found = path_of(bright_network().double(), shades(100).images[0], "dopri5", 1e-4)
    assert found.nodes[[0, -1]].tolist() == [0, 1]
    assert len(found.nodes) == found.stats.accepted + 1
    exact = np.exp(-60 * 100 / 255 * found.nodes)  # the second channel; the first one stays
    assert found.at_nodes[:, -1] == pytest.approx(exact, abs=1e-3)
    assert found.z[-1, -1] == pytest.approx(exact[-1], abs=1e-6)
    tighter = path_of(bright_network().double(), shades(100).images[0], "dopri5", 1e-6)
    assert tighter.stats.nfe > found.stats.nfe
    assert tighter.error < found.error < 1e-4


def test_a_slider_does_not_solve_tightly_again() -> None:
    model, image = bright_network().double(), shades(100).images[0]
    path_of(model, image, "dopri5", 1e-4)
    before = path._tight.cache_info().misses
    first = path_of(model, image, "dopri5", 1e-2)
    assert path._tight.cache_info().misses == before
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.5)
    assert np.abs(path_of(model, image, "dopri5", 1e-2).z - first.z).max() > 0.01


def test_joint_steps_over_separate_ones() -> None:
    model, split = bright_network(), shades(5, 250, 250, 250)
    alone = per_digit(model, split, 1e-5, "dopri5")
    rows = sharing(model, split, alone.nfe, [1, 2, 4], 2, 1e-5, "dopri5")
    assert [row["size"] for row in rows] == [1, 1, 2, 2, 4]
    assert all(row["shared"] == row["worst"] == 1 for row in rows[:2])
    # Half of the work of the first pair is one image's, but both have to make it.
    assert rows[2]["worst"] == pytest.approx(alone.nfe[1] / alone.nfe[:2].mean(), rel=0.15)
    assert rows[2]["shared"] <= rows[2]["worst"]


def test_another_solver_for_the_test_only() -> None:
    model, split = network(), examples(20)
    before = model.body.how
    found = error_solved(model, split, {"method": "euler", "step_size": 1.0})
    assert model.body.how is before
    x = split.images.float() / 255
    with torch.no_grad():
        z = model.stem(x)
        logits = model.head(z + model.body.f(torch.tensor(0.0), z))
    wrong = (logits.argmax(1) != split.labels).double()
    assert found == pytest.approx(100 * wrong.mean().item())


def test_networks_without_a_block_are_refused() -> None:
    resnet = mnist_net("ResNet-1")
    assert isinstance(resnet, MnistNet)
    with pytest.raises(InvalidArgumentError, match="needs an ODE block, got Sequential"):
        error_solved(resnet, examples(), {})


def test_weights_come_back(tmp_path) -> None:
    model = network(3)
    file = tmp_path / "net.safetensors"
    save_run(model, [], tmp_path, "net")
    loaded = load_classifier("ODE-Net", file, rtol=1e-3, atol=1e-3)
    x = torch.rand(2, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(model(x), loaded(x))
    with pytest.raises(WeightsError, match="does not hold the weights of this MnistNet"):
        load_classifier("ResNet", file)
    file.write_bytes(b"damaged")
    with pytest.raises(WeightsError, match=r"is damaged.*restore it"):
        load_classifier("ODE-Net", file)
    assert math.isfinite(sum(p.sum().item() for p in loaded.parameters()))


SMALL: dict[str, Any] = {
    "networks": ["ODE-Net-0", "ODE-Net-1"],
    "training_tolerance": 1e-2,
    "images": 2,
    "batches": 2,
    "tolerances": [1e-1, 3e-2],
    "repeats": 1,
    "loss_scales": [1.0, 10.0],
    "backward": {"images": 2, "batches": 2},
    "test_size": 6,
    "further_size": 4,
    "tight_tolerance": 1e-3,
    "sizes": [1, 2],
    "stiffness": [1.0, 50.0],
    "coarse_seeds": {"Euler, 1 step": [0, 2]},
    "coarse_train_size": 16,
    "coarse_epochs": 1,
    "coarse_batch_size": 8,
    "coarse_peak_lr": 0.1,
    "device": "cpu",
}


def made(folder: Path) -> dict[str, int]:
    """When the tables of the runs were written, by name."""
    return {str(x.relative_to(folder).with_suffix("")): x.stat().st_mtime_ns for x in folder.rglob("*.csv")}


def test_results_are_measured_once(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tolerance.solves, "BACKWARD_STEPS", 5)
    module = sys.modules[tolerance.results.__module__]
    monkeypatch.setattr(module, "SOLVERS", {"dopri5": "dopri5"})
    monkeypatch.setattr(module, "COARSE", {"Euler, 1 step": {"method": "euler", "step_size": 1.0}})
    monkeypatch.setattr(module, "VALIDATION_SIZE", 8)
    monkeypatch.setattr(module, "SINGLE", 5e-2)
    given = tmp_path / "results" / "quick" / "04_mnist"
    save_run(network(3), [], given, "ODE-Net-0")
    save_run(network(5), [], given, "ODE-Net-1")

    work = Workspace("05_tolerance", "quick", root, tmp_path)
    found = tolerance.results(work, **SMALL)
    folder = tmp_path / "results" / "quick" / "05_tolerance"
    before = made(folder)
    again = tolerance.results(Workspace("05_tolerance", "quick", root, tmp_path), **SMALL)
    assert made(folder) == before
    for name in ("forward", "scales", "backward", "sharing", "stiff", "matrix"):
        assert getattr(again, name).equals(getattr(found, name))
    assert again.errors == found.errors

    test = load_splits(root / "data" / "mnist", [None, None, 6]).test
    model = network(3)
    assert list(found.errors) == [1e-1], "single precision does not go further"
    assert found.errors[1e-1] == error_solved(model, test, {"method": "dopri5", "rtol": 1e-1, "atol": 1e-1})
    rows = [("Euler, 1 step", 0), ("Euler, 1 step", 2), ("dopri5, 0.01", 0), ("dopri5, 0.01", 1)]
    assert list(found.matrix.groupby(["trained", "seed"], sort=False).groups) == rows
    columns = ["Euler, 1 step", "Euler, 32 steps", "dopri5, 0.01", "dopri5, 1e-05"]
    assert list(found.matrix["tested"].unique()) == columns
    assert len(found.matrix) == 4 + 2 + 4 + 2, "further seeds: with their own solver and a tight one"
    assert list(found.digits) == [(name, x) for name in SMALL["networks"] for x in (1e-2, 1e-3)]
    further = load_splits(root / "data" / "mnist", [None, None, 4]).test
    for (name, at), digits in found.digits.items():
        other, split = (model, test) if name == "ODE-Net-0" else (network(5), further)
        expected = per_digit(other, split, at, "dopri5")
        assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(digits, expected, strict=True))
        rows = sharing(other, split, digits.nfe, [1, 2], 10, at, "dopri5")
        mine = (found.sharing["network"] == name) & (found.sharing["tolerance"] == at)
        assert found.sharing[mine][["size", "shared", "worst"]].to_dict("records") == rows
    solved = set(zip(found.backward["network"], found.backward["solver"], strict=True))
    assert solved == {("ODE-Net-1", "VODE"), *(("ODE-Net-0", solver) for solver in ("VODE", "adams", "dopri5"))}
    assert set(found.stiff["solver"]) == set(STIFF_SOLVERS)
    batches = [Split(test.images[k : k + 2], test.labels[k : k + 2]) for k in (0, 2)]
    sweep = forward_sweep(model.double(), batches, [1e-1, 3e-2], 1, {"dopri5": "dopri5"})
    columns = ["solver", "batch", "tolerance", "error", "nfe"]
    assert found.forward[columns].to_dict("records") == [{c: getattr(r, c) for c in columns} for r in sweep]
    assert list(found.scales["scale"]) == [1.0, 10.0]

    tolerance.results(work, **{**SMALL, "loss_scales": [1.0], "tight_tolerance": 1e-4})
    after = made(folder)
    assert {name for name in after if after[name] != before.get(name)} == {
        "scales/dopri5",
        *(f"{kind}/{name}-0.0001" for kind in ("digits", "sharing") for name in SMALL["networks"]),
    }

    save_run(network(4), [], given, "ODE-Net-0")
    tolerance.results(work, **SMALL)
    later = made(folder)
    kept = {name for name in before if later[name] == before[name]}
    of_others = {
        name for name in before if "ODE-Net-0" not in name and name.split("/")[0] not in ("forward", "scales")
    }
    assert kept == of_others
