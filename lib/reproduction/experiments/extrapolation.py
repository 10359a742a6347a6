"""Notebook 09: how the models of notebook 08 extrapolate, and what latent spaces look like."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from neural_ode.errors import needs
from reproduction.data.spirals import Spirals
from reproduction.experiments import latent_paths
from reproduction.experiments.latent_space import clusters_run, errors_run, way_run
from reproduction.experiments.spiral_runs import trained_as, validation_error
from reproduction.models.latent_ode import LatentODE
from reproduction.models.rnn import NextObservationRNN
from reproduction.results import Files
from reproduction.sweep import Point
from reproduction.training.spirals import BASE, TEST, Setting, load_latent_ode, load_rnn, run_name, spirals_for
from reproduction.workspace import Workspace, choose_device

with needs("notebooks"):
    import pandas as pd

__all__ = ["CENTRED", "Results", "results"]

TABLE2 = latent_paths.NOTEBOOK
"""Where the models of Table 2 come from."""

CENTRED = "centred spirals"
"""The models of notebook 12 that are trained on spirals round one centre, where the place tells no direction."""


class Results(NamedTuple):
    """What notebook 09 shows.

    Attributes:
        errors: RMSE `inside` and `beyond` the window of each latent ODE of Table 2, by `observations` and `seed`.
        clusters: how well a line tells the directions apart, by `spirals` (of Table 2, or `CENTRED`), `seed` and
            `dimensions` of the latent states; see `clusters_run`. For the first number of observations, as all that
            follows.
        ways: how curves change between the directions, by `spirals` and `seed`; see `way_run`.
        models: a latent ODE of Table 2 for every number of observations: that with the lowest error on validation
            series.
        network: a recurrent network without times, chosen in the same way.
        centred: a latent ODE on centred spirals, chosen in the same way.
        chosen: seeds of these models, by their names.
        posterior: whether the models assume the noise of the data, so that samples of `q(z_t0 | x)` are those of a
            posterior distribution.
        data: series for every number of observations.
        centred_data: series on centred spirals.
    """

    errors: pd.DataFrame
    clusters: pd.DataFrame
    ways: pd.DataFrame
    models: dict[int, LatentODE]
    network: NextObservationRNN
    centred: LatentODE
    chosen: dict[str, int]
    posterior: bool
    data: dict[int, Spirals]
    centred_data: Spirals


def results(
    work: Workspace,
    *,
    observations: Sequence[int],
    seeds: Sequence[int],
    rnn_seeds: Sequence[int],
    centred_seeds: Sequence[int],
    series: int,
    data_seed: int,
    device: str,
) -> Results:
    """Measure the models that notebooks 08 and 12 have trained, on series of their own; what is there is read.

    Args:
        work: of the notebook.
        observations: of a series, several numbers.
        seeds: of the latent ODEs of Table 2.
        rnn_seeds: of the recurrent networks.
        centred_seeds: of the latent ODEs on centred spirals.
        series: how many to measure on.
        data_seed: of these series.
        device: where to measure.

    Raises:
        MissingResultError: notebook 08 or 12 has not trained a model.
    """
    few = observations[0]
    table2 = {(n, seed): _weights(work, TABLE2, "base", n, seed) for n in observations for seed in seeds}
    rnns = {seed: _weights(work, TABLE2, "RNN", few, seed) for seed in rnn_seeds}
    centred = {seed: _weights(work, "12_latent_paths", CENTRED, few, seed) for seed in centred_seeds}
    on_centred = latent_paths.REMEDIES[CENTRED]
    plan = _Plan(work, {"series": series, "data_seed": data_seed, "device": choose_device(device)})
    of_few = {seed: table2[few, seed] for seed in seeds}

    def both(function: Callable[..., Files], label: str) -> pd.DataFrame:
        return pd.concat(
            [
                plan.measured(function, label, BASE, "base", few, of_few).assign(spirals="Table 2"),
                plan.measured(function, label, on_centred, CENTRED, few, centred).assign(spirals=CENTRED),
            ],
            ignore_index=True,
        )

    by_number = {n: {seed: table2[n, seed] for seed in seeds} for n in observations}
    errors = [plan.measured(errors_run, "errors", BASE, "base", n, files) for n, files in by_number.items()]
    best = {n: _best(files) for n, files in by_number.items()}
    best_rnn, best_centred = _best(rnns), _best(centred)
    return Results(
        errors=pd.concat(errors, ignore_index=True),
        clusters=both(clusters_run, "clusters"),
        ways=both(way_run, "ways"),
        models={n: load_latent_ode(BASE, table2[n, seed]) for n, seed in best.items()},
        network=load_rnn(False, rnns[best_rnn]),
        centred=load_latent_ode(on_centred, centred[best_centred]),
        chosen={f"latent ODE, {n} observations": seed for n, seed in best.items()}
        | {"RNN": best_rnn, f"latent ODE, {CENTRED}": best_centred},
        posterior=trained_as(next(iter(table2.values())))["noise_factor"] == 1,
        data={n: spirals_for(BASE, series, n, data_seed, TEST) for n in observations},
        centred_data=spirals_for(on_centred, series, few, data_seed, TEST),
    )


class _Plan(NamedTuple):
    """What all measurements have in common.

    Attributes:
        work: of the notebook.
        how: the series, and the device.
    """

    work: Workspace
    how: dict[str, Any]

    def measured(
        self,
        function: Callable[..., Files],
        label: str,
        setting: Setting,
        name: str,
        observations: int,
        files: dict[int, Path],
    ) -> pd.DataFrame:
        """The rows that `function` gives for models, by seed."""
        checksums = {seed: hashlib.sha256(file.read_bytes()).hexdigest() for seed, file in files.items()}
        common = {"setting": asdict(setting), "observations": observations}
        common |= {key: self.how[key] for key in ("series", "data_seed")}
        points: dict[str, Point] = {
            f"{label}/{run_name(name, observations, seed)}": {**common, "weights": checksum}
            for seed, checksum in checksums.items()
        }
        bound = {"files": {checksums[seed]: file for seed, file in files.items()}, "device": self.how["device"]}
        runs = self.work.store.obtain(function, points, label=label, **bound)
        tables = [
            runs[run].table().assign(observations=observations, seed=seed)
            for run, seed in zip(points, files, strict=True)
        ]
        return pd.concat(tables, ignore_index=True)


def _best(files: dict[int, Path]) -> int:
    """The seed whose model has the lowest error beyond the window on validation series."""
    return min(files, key=lambda seed: validation_error(files[seed]))


def _weights(work: Workspace, notebook: str, model: str, observations: int, seed: int) -> Path:
    return work.result(notebook, f"{run_name(model, observations, seed)}.safetensors")
