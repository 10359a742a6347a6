"""Notebook 14: ODE networks on the input itself, and with further dimensions (Dupont et al. 2019)."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from neural_ode.errors import needs
from reproduction.models.augmented import Augmented, on_points
from reproduction.training.augmented import pixels_run, points_run
from reproduction.workspace import Workspace, choose_device

with needs("notebooks"):
    import pandas as pd

__all__ = ["Results", "results", "seen_by_the_head"]


class Results(NamedTuple):
    """What notebook 14 shows.

    Attributes:
        points: a row for each epoch of each training on the disc and the ring: `extra` dimensions, `seed`, and what
            `points_run` records.
        pixels: the same on MNIST; see `pixels_run`.
        networks: on points, of the first seed, by `extra`.
    """

    points: pd.DataFrame
    pixels: pd.DataFrame
    networks: dict[int, Augmented]


def results(
    work: Workspace,
    *,
    extra: Sequence[int],
    seeds: Sequence[int],
    points: int,
    hidden: int,
    points_training: Mapping[str, float],
    pixels_extra: Sequence[int],
    pixels_seeds: Sequence[int],
    filters: int,
    train_size: int,
    test_size: int,
    pixels_training: Mapping[str, float],
    tolerance: float,
    device: str,
) -> Results:
    """Train every network; what is there is read.

    Args:
        work: of the notebook.
        extra, pixels_extra: further dimensions, or channels.
        seeds, pixels_seeds: of the trainings.
        points, hidden, points_training: see `reproduction.training.augmented.points_run`.
        filters, train_size, test_size, pixels_training: see `reproduction.training.augmented.pixels_run`.
        tolerance: of the solves, relative and absolute.
        device: where to train.
    """
    solver = {"method": "dopri5", "rtol": tolerance, "atol": tolerance}
    how: dict[str, Any] = {"device": choose_device(device), "checkpoints": work.store.checkpoints}
    common = {"points": points, "hidden": hidden, "training": _whole(points_training), "solver": solver}
    grid = {f"points-{p}-{seed}": (p, seed) for p in extra for seed in seeds}
    asked = {name: {"extra": p, "seed": seed, **common} for name, (p, seed) in grid.items()}
    trained = work.store.obtain(points_run, asked, label="disc and ring", **how)

    images: dict[str, Any] = {"filters": filters, "train_size": train_size, "test_size": test_size}
    images |= {"training": _whole(pixels_training), "solver": solver}
    cells = {f"pixels-{p}-{seed}": (p, seed) for p in pixels_extra for seed in pixels_seeds}
    wanted = {name: {"extra": p, "seed": seed, **images} for name, (p, seed) in cells.items()}
    learned = work.store.obtain(pixels_run, wanted, label="MNIST", data=work.root / "data" / "mnist", **how)

    networks = {}
    for p in extra:
        networks[p] = on_points(p, hidden, **solver)
        trained[f"points-{p}-{seeds[0]}"].load(networks[p])
    return Results(
        pd.concat([trained[name].table().assign(extra=p, seed=seed) for name, (p, seed) in grid.items()]),
        pd.concat([learned[name].table().assign(extra=p, seed=seed) for name, (p, seed) in cells.items()]),
        networks,
    )


@torch.no_grad()
def seen_by_the_head(network: Augmented, x: Tensor, times: Sequence[float]) -> Tensor:
    """Where points are on their way, in two coordinates: the first one, and along the normal of the linear map.

    Along it the network tells the classes apart, so in a network with further dimensions it shows what they are
    used for. Of a network without any, the two coordinates of the plane.

    Args:
        network: as `on_points` makes it.
        x: points, shape (n, 2).
        times: from 0 on.

    Returns:
        Shape (len(times), n, 2).
    """
    states = network.states(x, times)
    if network.extra == 0:
        return states
    head = network.head
    assert isinstance(head, torch.nn.Linear)
    normal = head.weight[0] / head.weight[0].norm()
    return torch.stack([states[..., 0], states @ normal], -1)


def _whole(training: Mapping[str, float]) -> dict[str, float]:
    """The training with whole numbers where they are meant."""
    return {**training, **{name: int(training[name]) for name in ("epochs", "batch_size")}}
