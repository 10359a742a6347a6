"""Notebook 09: how the models of notebook 08 extrapolate, and what their latent space looks like."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from neural_ode.errors import needs
from reproduction.data.spirals import Spirals
from reproduction.experiments.latent_space import clusters_run, errors_run, way_run
from reproduction.models.latent_ode import LatentODE
from reproduction.models.rnn import NextObservationRNN
from reproduction.results import Files
from reproduction.sweep import Point
from reproduction.training.spirals import BASE, TEST, load_latent_ode, load_rnn, run_name, spirals_for
from reproduction.workspace import Workspace, choose_device

with needs("notebooks"):
    import pandas as pd

__all__ = ["Results", "results"]

NOTEBOOK = "08_spirals"
"""Where the weights come from."""


class Results(NamedTuple):
    """What notebook 09 shows.

    Attributes:
        errors: RMSE `inside` and `beyond` the window of each latent ODE, by `observations` and `seed`.
        clusters: how well a line tells the directions apart, by `seed` and `dimensions` of the latent states; see
            `clusters_run`. For the first number of observations, as all that follows.
        ways: how curves change between the directions, by `seed`; see `way_run`.
        models: the latent ODE of the first seed, for every number of observations.
        network: the recurrent network of the first seed, without times.
        data: the series, for every number of observations.
    """

    errors: pd.DataFrame
    clusters: pd.DataFrame
    ways: pd.DataFrame
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
    device: str,
) -> Results:
    """Measure the models that notebook 08 has trained, on series of their own; what is there is read.

    Args:
        work: of the notebook.
        observations: of a series, several numbers.
        seeds: of the models.
        series: how many to measure on.
        data_seed: of these series.
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

    def measured(function: Callable[..., Files], label: str, numbers: Sequence[int]) -> pd.DataFrame:
        """The rows that `function` gives for the models of some numbers of observations."""
        common = {"setting": asdict(BASE), "series": series, "data_seed": data_seed}
        keys = {f"{label}/{run_name('base', n, seed)}": (n, seed) for n in numbers for seed in seeds}
        points: dict[str, Point] = {
            name: {**common, "observations": key[0], "weights": checksums[key]} for name, key in keys.items()
        }
        runs = work.store.obtain(function, points, label=label, **bound)
        tables = [runs[name].table().assign(observations=n, seed=seed) for name, (n, seed) in keys.items()]
        return pd.concat(tables, ignore_index=True)

    return Results(
        measured(errors_run, "errors", observations),
        measured(clusters_run, "clusters", [few]),
        measured(way_run, "ways", [few]),
        {n: load_latent_ode(BASE, files[n, first]) for n in observations},
        load_rnn(False, _weights(work, "RNN", few, first)),
        {n: spirals_for(BASE, series, n, data_seed, TEST) for n in observations},
    )


def _weights(work: Workspace, model: str, observations: int, seed: int) -> Path:
    return work.result(NOTEBOOK, f"{run_name(model, observations, seed)}.safetensors")
