"""Notebook 14: the disc and the ring, networks with further dimensions, and how they are trained."""

import io
import math
from pathlib import Path

import pandas as pd
import pytest
import torch

from reproduction.data.annuli import annuli
from reproduction.experiments.augmentation import seen_by_the_head
from reproduction.models.augmented import Augmented, PointDynamics, on_pixels, on_points
from reproduction.training.augmented import held_out, pixels_run, points_run

ROOT = Path(__file__).parents[1]
SOLVER = {"method": "dopri5", "rtol": 1e-3, "atol": 1e-3}
CPU = torch.device("cpu")


def test_a_disc_and_a_ring() -> None:
    points, classes = annuli(30_000, seed=0)
    radius = points.norm(dim=1)
    inside = classes == -1
    assert int(inside.sum()) == 10_000
    assert radius[inside].max() < 0.5
    assert radius[~inside].min() > 1
    assert radius[~inside].max() < 1.5
    # Spread evenly: half of the area lies below these radii.
    assert (radius[inside] < 0.5 / math.sqrt(2)).double().mean().item() == pytest.approx(0.5, abs=0.02)
    assert (radius[~inside] < math.sqrt((1 + 2.25) / 2)).double().mean().item() == pytest.approx(0.5, abs=0.02)
    assert points.mean(0).abs().max() < 0.02
    assert not inside[:10_000].all()


def test_data_are_those_of_a_seed() -> None:
    (first, _), (again, _), (other, _) = annuli(50, 3), annuli(50, 3), annuli(50, 4)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(held_out(50, 3)[0], first)


class Rotation(torch.nn.Module):
    """Of the plane (x, a), a quarter turn from t = 0 to 1; y stays."""

    def forward(self, t: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        x, y, a = z.unbind(1)
        return math.pi / 2 * torch.stack([-a, torch.zeros_like(y), x], 1)


def test_the_zeros_are_part_of_the_state() -> None:
    """A quarter turn takes the first coordinate to the further one, which the head then sees."""
    head = torch.nn.Linear(3, 1)
    torch.nn.init.zeros_(head.bias)
    head.weight.data = torch.tensor([[0.0, 0.0, 2.0]])
    network = Augmented(Rotation(), 1, head, rtol=1e-6, atol=1e-6)
    x = torch.tensor([[0.3, 7.0], [-1.0, 2.0]])
    torch.testing.assert_close(network(x), 2 * x[:, :1], rtol=0, atol=1e-4)
    assert network.start(x).tolist() == [[pytest.approx(0.3), 7.0, 0.0], [-1.0, 2.0, 0.0]]
    assert network.stats.nfe > 0
    # Seen from the head: the first coordinate, which is turned away, and the further one.
    seen = seen_by_the_head(network, x, [0.0, 1.0])
    torch.testing.assert_close(seen[0], torch.stack([x[:, 0], torch.zeros(2)], 1))
    torch.testing.assert_close(seen[1], torch.stack([torch.zeros(2), x[:, 0]], 1), rtol=0, atol=1e-4)


def test_without_further_dimensions_the_plane_is_seen() -> None:
    network = on_points(0, 8, **SOLVER)
    x = annuli(20, 0)[0]
    states = seen_by_the_head(network, x, [0.0, 0.5, 1.0])
    assert torch.equal(states[0], x)
    assert torch.equal(states, network.states(x, [0.0, 0.5, 1.0]))


def test_a_flow_of_the_plane_keeps_inside_what_is_inside() -> None:
    """The image of the circle r = 0.75 still winds once round that of a point of the disc, whatever the weights."""
    torch.manual_seed(0)
    angle = torch.linspace(0, 2 * math.pi, 4001)[:-1]
    circle = 0.75 * torch.stack([angle.cos(), angle.sin()], 1)
    for _ in range(3):
        f = PointDynamics(2, 16)
        for weights in f.parameters():
            weights.data *= 3
        network = Augmented(f, 0, torch.nn.Identity(), rtol=1e-6, atol=1e-6)
        with torch.no_grad():
            moved = network(torch.cat([circle, torch.tensor([[0.1, -0.2]])]))
        around = moved[:-1] - moved[-1]
        turns = torch.atan2(around[:, 1], around[:, 0]).diff(append=torch.atan2(around[:1, 1], around[:1, 0]))
        wound = torch.atan2(turns.sin(), turns.cos()).sum().item() / (2 * math.pi)
        assert wound == pytest.approx(1, abs=1e-4)


def test_shapes_of_images() -> None:
    network = on_pixels(2, 4, **SOLVER)
    images = torch.rand(3, 1, 28, 28)
    assert network(images).shape == (3, 10)
    start = network.start(images)
    assert start.shape == (3, 3, 28, 28)
    assert torch.equal(start[:, :1], images)
    assert not start[:, 1:].any()


def run(extra: int, tmp_path: Path, epochs: int = 12) -> tuple[pd.DataFrame, dict[str, bytes]]:
    made = points_run(
        extra=extra,
        seed=0,
        points=400,
        hidden=16,
        training={"epochs": epochs, "batch_size": 64, "lr": 1e-2},
        solver=SOLVER,
        device=CPU,
        checkpoints=tmp_path,
    )
    return pd.read_csv(io.BytesIO(made[".csv"])), made


def test_training_learns_and_further_dimensions_help(tmp_path: Path) -> None:
    (plain, _), (augmented, _) = run(0, tmp_path), run(2, tmp_path)
    for history in (plain, augmented):
        assert list(history["epoch"]) == list(range(1, 13))
        assert history["test_loss"].iloc[-1] < history["test_loss"].iloc[0]
        assert history["wrong"].between(0, 1).all()
        assert (history["nfe_forward"] >= 14).all()
    assert augmented["test_loss"].iloc[-1] < plain["test_loss"].iloc[-1] / 2


def test_the_same_training_gives_the_same_weights(tmp_path: Path) -> None:
    (_, first), (_, again) = run(1, tmp_path / "a", 2), run(1, tmp_path / "b", 2)
    assert first[".safetensors"] == again[".safetensors"]


def test_pixels_are_trained_and_tested(tmp_path: Path) -> None:
    made = pixels_run(
        extra=1,
        seed=0,
        filters=4,
        train_size=64,
        test_size=50,
        training={"epochs": 2, "batch_size": 32, "lr": 1e-2},
        solver=SOLVER,
        data=ROOT / "data" / "mnist",
        device=CPU,
        checkpoints=tmp_path,
    )
    history = pd.read_csv(io.BytesIO(made[".csv"]))
    assert list(made) == [".csv"]
    assert history["loss"].is_monotonic_decreasing
    assert history["test_error"].between(0, 100).all()
