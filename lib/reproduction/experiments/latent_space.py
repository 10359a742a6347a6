"""What latent spaces of spirals look like: whether the directions lie apart in them, and what lies between."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reproduction.data.spirals import Spirals
from reproduction.measure.curves import largest_share, linear_accuracy, sign_changes, signed_area
from reproduction.measure.prediction import latent_ode_errors
from reproduction.models.latent_ode import LatentODE
from reproduction.results import csv_bytes
from reproduction.training.spirals import TEST, Setting, load_latent_ode, spirals_for

__all__ = ["Widest", "clusters_run", "encoded", "errors_run", "way", "way_run", "widest"]

FINE, TENTH = 400, 40
"""Steps of the way that is measured, and how many of them are a tenth: not those that a figure shows."""


class Widest(NamedTuple):
    """The two dimensions of a latent space in which series differ most.

    Attributes:
        first, second: which, the one with the larger variance first.
        variances: of all dimensions, over series, shape (latent,).
    """

    first: int
    second: int
    variances: Tensor

    @property
    def share(self) -> float:
        """Of the variance of all dimensions."""
        return float(self.variances[[self.first, self.second]].sum() / self.variances.sum())


@torch.no_grad()
def encoded(model: LatentODE, data: Spirals) -> Tensor:
    """The means of `q(z_t0 | x)`, shape (series, latent), on the CPU."""
    there = data.to(next(model.parameters()).device)
    mean: Tensor = model.recognition(there.times, there.values)[0]
    return mean.cpu()


def widest(start: Tensor) -> Widest:
    """The dimensions with the largest variances of `start`, shape (series, latent).

    Which dimensions are the first two is an accident of the initial weights. A dimension that the KL divergence has
    made useless has the prior for every series, so its means hardly vary.
    """
    variances = start.double().var(0)
    first, second = variances.argsort(descending=True)[:2].tolist()
    return Widest(first, second, variances)


@torch.no_grad()
def way(model: LatentODE, data: Spirals, steps: int) -> Tensor:
    """Windows decoded on the straight way between the mean `z_t0` of counter-clockwise and of clockwise series.

    Args:
        model: wherever it is.
        data: the series, on the CPU.
        steps: how many, all of the same length.

    Returns:
        Shape (steps + 1, points, 2), on the CPU.
    """
    start = encoded(model, data)
    first, last = start[~data.clockwise].mean(0), start[data.clockwise].mean(0)
    points = first + torch.linspace(0, 1, steps + 1, dtype=first.dtype)[:, None] * (last - first)
    device = next(model.parameters()).device
    decoded: Tensor = model.predict(points.to(device), data.grid[: data.window].to(device)).cpu()
    return decoded


def errors_run(**settings: Any) -> dict[str, bytes]:
    """RMSE `inside` and `beyond` the window as a run of `reproduction.results`; arguments of `_model_and_data`."""
    errors = latent_ode_errors(*_model_and_data(**settings))
    return {".csv": csv_bytes([{name: errors[name] for name in ("inside", "beyond")}])}


def clusters_run(**settings: Any) -> dict[str, bytes]:
    """How well a line tells directions apart, in the two widest `dimensions` and in all of them.

    Arguments of `_model_and_data`. Columns: how many series are `right` out of a `total` (see `linear_accuracy`),
    and the `share` of the variance of posterior means that lies in the dimensions.
    """
    model, data = _model_and_data(**settings)
    start = encoded(model, data)
    two = widest(start)
    rows = []
    for points, share in ((start[:, [two.first, two.second]], two.share), (start, 1.0)):
        right, total = linear_accuracy(points, data.clockwise)
        rows.append({"dimensions": points.shape[1], "right": right, "total": total, "share": share})
    return {".csv": csv_bytes(rows)}


def way_run(**settings: Any) -> dict[str, bytes]:
    """How curves change on the way between the directions; arguments of `_model_and_data`.

    Columns: `sign_changes` of the area that a curve encloses; the `largest_tenth`: the largest share of the whole
    change that any tenth of the way makes; and `largest_of_ten`: that any of ten equal parts makes, in whose
    boundaries a jump can lie.
    """
    curves = way(*_model_and_data(**settings), FINE)
    row = {
        "sign_changes": sign_changes(signed_area(curves)),
        "largest_tenth": largest_share(curves, TENTH),
        "largest_of_ten": largest_share(curves, TENTH, TENTH),
    }
    return {".csv": csv_bytes([row])}


def _model_and_data(
    *,
    setting: Mapping[str, Any],
    observations: int,
    series: int,
    data_seed: int,
    weights: str,
    files: Mapping[str, Path],
    device: torch.device,
) -> tuple[LatentODE, Spirals]:
    """A trained latent ODE and series that it was not trained on.

    Args:
        setting: fields of a `Setting`.
        observations: of a series.
        series: how many.
        data_seed: of the series.
        weights: checksum of the model's.
        files: of weights, by their checksums.
        device: where the model is to be.
    """
    chosen = Setting(**setting)
    model = load_latent_ode(chosen, files[weights]).to(device)
    return model, spirals_for(chosen, series, observations, data_seed, TEST)
