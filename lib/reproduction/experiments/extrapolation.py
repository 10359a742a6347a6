"""Notebook 09: how the models of notebook 08 extrapolate, and what their latent space looks like."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from neural_ode.errors import needs
from reproduction.data.spirals import Spirals
from reproduction.measure.curves import largest_step, linear_accuracy, sign_changes, signed_area
from reproduction.measure.prediction import latent_ode_errors
from reproduction.models.latent_ode import LatentODE
from reproduction.models.rnn import NextObservationRNN
from reproduction.results import Files, csv_bytes
from reproduction.sweep import Point
from reproduction.training.spirals import BASE, TEST, Setting, load_latent_ode, load_rnn, run_name, spirals_for
from reproduction.workspace import Workspace, choose_device

with needs("notebooks"):
    import pandas as pd

__all__ = ["Line", "Results", "encoded", "latent_line", "results"]

NOTEBOOK = "08_spirals"
"""Where the weights come from."""

DIMENSIONS = (2, 4)
"""Of the latent states that a line is to separate: the first two, as in the paper's figure, and all."""


class Results(NamedTuple):
    """What notebook 09 shows.

    Attributes:
        errors: RMSE `inside` and `beyond` the window of each latent ODE, by `observations` and `seed`.
        accuracies: of how many series out of a `total` a line tells the direction `right`, by `seed` and
            `dimensions` of the latent states; see `linear_accuracy`. For the first number of observations, as all
            that follows.
        lines: curves decoded along one `dimension`, by `seed`: `sign_changes` of the area they enclose, and their
            `largest_step`.
        models: the latent ODE of the first seed, for every number of observations.
        network: the recurrent network of the first seed, without times.
        data: the series, for every number of observations.
    """

    errors: pd.DataFrame
    accuracies: pd.DataFrame
    lines: pd.DataFrame
    models: dict[int, LatentODE]
    network: NextObservationRNN
    data: dict[int, Spirals]


def results(
    work: Workspace,
    *,
    observations: Sequence[int],
    seeds: Sequence[int],
    series: int,
    data_seed: int,
    curves: int,
    device: str,
) -> Results:
    """Measure the models that notebook 08 has trained, on series of their own; what is there is read.

    Args:
        work: of the notebook.
        observations: of a series, several numbers.
        seeds: of the models.
        series: how many to measure on.
        data_seed: of these series.
        curves: how many to decode along a dimension.
        device: where to measure.

    Raises:
        MissingResultError: notebook 08 has not trained a model.
    """
    few, first = observations[0], seeds[0]
    files = {(n, seed): _weights(work, "base", n, seed) for n in observations for seed in seeds}
    checksums = {key: hashlib.sha256(file.read_bytes()).hexdigest() for key, file in files.items()}
    bound: dict[str, Any] = {
        "files": {checksums[key]: file for key, file in files.items()},
        "device": choose_device(device),
    }

    def measured(function: Callable[..., Files], label: str, numbers: Sequence[int], **more: Any) -> pd.DataFrame:
        """The rows that `function` gives for the models of some numbers of observations."""
        common = {"setting": asdict(BASE), "series": series, "data_seed": data_seed, **more}
        keys = {f"{label}/{run_name('base', n, seed)}": (n, seed) for n in numbers for seed in seeds}
        points: dict[str, Point] = {
            name: {**common, "observations": key[0], "weights": checksums[key]} for name, key in keys.items()
        }
        runs = work.store.obtain(function, points, label=label, **bound)
        tables = [runs[name].table().assign(observations=n, seed=seed) for name, (n, seed) in keys.items()]
        return pd.concat(tables, ignore_index=True)

    return Results(
        measured(_errors, "errors", observations),
        measured(_accuracies, "accuracies", [few]),
        measured(_line, "lines", [few], curves=curves),
        {n: load_latent_ode(BASE, files[n, first]) for n in observations},
        load_rnn(False, _weights(work, "RNN", few, first)),
        {n: spirals_for(BASE, series, n, data_seed, TEST) for n in observations},
    )


def _weights(work: Workspace, model: str, observations: int, seed: int) -> Path:
    return work.result(NOTEBOOK, f"{run_name(model, observations, seed)}.safetensors")


class Line(NamedTuple):
    """Curves along one dimension of the latent space.

    Attributes:
        dimension: which is varied: the one that tells the directions apart best.
        values: of that dimension at `t0`, over the range in which the series lie, shape (n,).
        curves: the decoded windows, shape (n, points, 2).
    """

    dimension: int
    values: Tensor
    curves: Tensor


@torch.no_grad()
def encoded(model: LatentODE, data: Spirals) -> Tensor:
    """The means of `q(z_t0 | x)`, shape (series, latent), on the CPU."""
    there = data.to(next(model.parameters()).device)
    mean: Tensor = model.recognition(there.times, there.values)[0]
    return mean.cpu()


@torch.no_grad()
def latent_line(model: LatentODE, data: Spirals, curves: int) -> Line:
    """Vary one dimension of `z_t0`, while the others stay at their means over the series.

    Args:
        model: wherever it is.
        data: the series, on the CPU.
        curves: how many to decode.
    """
    start, clockwise = encoded(model, data), data.clockwise
    apart = (start[clockwise].mean(0) - start[~clockwise].mean(0)).abs() / start.std(0)
    dimension = int(apart.argmax())
    points = start.mean(0).repeat(curves, 1)
    points[:, dimension] = torch.linspace(start[:, dimension].min(), start[:, dimension].max(), curves)
    device = next(model.parameters()).device
    decoded = model.predict(points.to(device), data.grid[: data.window].to(device)).cpu()
    return Line(dimension, points[:, dimension], decoded)


def _errors(**settings: Any) -> dict[str, bytes]:
    errors = latent_ode_errors(*_model_and_data(**settings))
    return {".csv": csv_bytes([{name: errors[name] for name in ("inside", "beyond")}])}


def _accuracies(**settings: Any) -> dict[str, bytes]:
    model, data = _model_and_data(**settings)
    start, rows = encoded(model, data), []
    for dimensions in DIMENSIONS:
        right, total = linear_accuracy(start[:, :dimensions], data.clockwise)
        rows.append({"dimensions": dimensions, "right": right, "total": total})
    return {".csv": csv_bytes(rows)}


def _line(*, curves: int, **settings: Any) -> dict[str, bytes]:
    line = latent_line(*_model_and_data(**settings), curves)
    row = {
        "dimension": line.dimension,
        "sign_changes": sign_changes(signed_area(line.curves)),
        "largest_step": largest_step(line.curves),
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
    chosen = Setting(**setting)
    model = load_latent_ode(chosen, files[weights]).to(device)
    return model, spirals_for(chosen, series, observations, data_seed, TEST)
