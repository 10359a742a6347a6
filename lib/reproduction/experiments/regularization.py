"""Notebook 13: what running costs do to evaluations and errors (Finlay et al. 2020; Kelly et al. 2020)."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from neural_ode.errors import needs
from reproduction.measure.cpu_time import shortest_seconds
from reproduction.models.regularized import Digits
from reproduction.results import Run, Store, csv_bytes
from reproduction.training.regularized import digits_loss, digits_run, flow_run, latent_run
from reproduction.workspace import Workspace, choose_device

with needs("notebooks"):
    import pandas as pd

__all__ = ["Choices", "Results", "results", "step_times_run"]

HIDDEN = 32
"""Width of the hypernetwork, as in notebook 07."""

Choices = Mapping[str, Mapping[str, float]]
"""Weights of costs, by name of the choice."""


class Results(NamedTuple):
    """What notebook 13 shows: tables with a row for each epoch of each training.

    Attributes:
        digits: by `choice` and `seed`; see `reproduction.training.regularized.digits_run`.
        flows: see `flow_run`.
        latents: see `latent_run`.
        paths: of the first seed, from the data to the base distribution, by choice, shape (times, points, 2).
        times: CPU `seconds` of a training step on digits, by `choice`.
    """

    digits: pd.DataFrame
    flows: pd.DataFrame
    latents: pd.DataFrame
    paths: dict[str, Tensor]
    times: pd.DataFrame


def results(
    work: Workspace,
    *,
    digits: Choices,
    digits_seeds: Sequence[int],
    channels: int,
    train_size: int,
    test_size: int,
    digits_training: Mapping[str, float],
    flows: Choices,
    flows_seeds: Sequence[int],
    points_of: str,
    units: int,
    held_out: int,
    flows_training: Mapping[str, float],
    compiled: bool,
    latents: Choices,
    latents_seeds: Sequence[int],
    series: int,
    observations: int,
    latents_training: Mapping[str, float],
    repeats: int,
    device: str,
) -> Results:
    """Train everything; what is there is read.

    Args:
        work: of the notebook.
        digits, flows, latents: the choices for each task.
        digits_seeds, flows_seeds, latents_seeds: of the trainings.
        channels, train_size, test_size, digits_training: see `reproduction.training.regularized.digits_run`.
        points_of, units, held_out, flows_training, compiled: see `flow_run`.
        series, observations, latents_training: see `latent_run`; as many series to test on.
        repeats: see `step_times_run`.
        device: where to train.
    """
    coarse, fine = {"rtol": 1e-3, "atol": 1e-3}, {"rtol": 1e-5, "atol": 1e-5, "gradient": "backsolve"}
    how: dict[str, Any] = {"device": choose_device(device), "checkpoints": work.store.checkpoints}
    task = _Task(work.store, "digits", digits, digits_seeds)
    images: dict[str, Any] = {"channels": channels, "train_size": train_size, "test_size": test_size}
    images |= {"training": _whole(digits_training), "solver": coarse}
    on_digits = task.runs(digits_run, images, {**how, "data": work.root / "data" / "mnist"})

    task = _Task(work.store, "flow", flows, flows_seeds)
    plane: dict[str, Any] = {"points_of": points_of, "units": units, "hidden": HIDDEN, "held_out": held_out}
    plane |= {"training": _whole(flows_training), "solver": fine}
    on_points = task.runs(flow_run, plane, {**how, "compiled": compiled})

    task = _Task(work.store, "latent", latents, latents_seeds)
    spirals: dict[str, Any] = {"series": series, "test_series": series, "observations": observations}
    spirals |= {"training": _whole(latents_training), "solver": coarse}
    on_series = task.runs(latent_run, spirals, how)

    timed: dict[str, Any] = {
        "choices": {name: dict(weights) for name, weights in digits.items()},
        "channels": channels,
    }
    timed |= {"batch_size": int(digits_training["batch_size"]), "solver": coarse, "repeats": repeats}
    (times,) = work.store.obtain(step_times_run, {"times": timed}, label="times", alone=True).values()
    first = {name: run for (name, seed), run in on_points.items() if seed == flows_seeds[0]}
    return Results(
        digits=_rows(on_digits),
        flows=_rows(on_points),
        latents=_rows(on_series),
        paths={name: torch.tensor(run.values()["paths"]) for name, run in first.items()},
        times=times.table(),
    )


_Runs = dict[tuple[str, int], Run]


class _Task(NamedTuple):
    """What is trained with each choice and seed."""

    store: Store
    name: str
    choices: Choices
    seeds: Sequence[int]

    def runs(self, function: Callable[..., Any], settings: Mapping[str, Any], bound: Mapping[str, Any]) -> _Runs:
        """The runs of `function` by choice and seed."""
        grid = {f"{self.name}-{_file(one)}-{seed}": (one, seed) for one in self.choices for seed in self.seeds}
        asked = {
            name: {"weights": dict(self.choices[one]), "seed": seed, **settings}
            for name, (one, seed) in grid.items()
        }
        found = self.store.obtain(function, asked, label=self.name, **bound)
        return {pair: found[name] for name, pair in grid.items()}


def _rows(runs: _Runs) -> pd.DataFrame:
    return pd.concat([run.table().assign(choice=name, seed=seed) for (name, seed), run in runs.items()])


def _file(choice: str) -> str:
    """The name of a choice in names of files."""
    return choice.replace(" + ", "+").replace(" ", "-")


def _whole(training: Mapping[str, float]) -> dict[str, float]:
    """The training with whole numbers where they are meant."""
    return {name: value if name == "lr" else int(value) for name, value in training.items()}


def step_times_run(
    *,
    choices: Mapping[str, Mapping[str, float]],
    channels: int,
    batch_size: int,
    solver: Mapping[str, Any],
    repeats: int,
) -> dict[str, bytes]:
    """CPU `seconds` of a training step of `digits_run` for each choice of weights, with untrained networks.

    Args:
        choices: weights of costs, by name of the choice.
        channels, solver: see `digits_run`.
        batch_size: noise for images.
        repeats: the shortest of so many counts, in turns.
    """
    batch = torch.rand(batch_size, 1, 28, 28), torch.arange(batch_size) % 10
    nets = {}
    for name, weights in choices.items():
        torch.manual_seed(0)
        nets[name] = Digits(channels, weights, **solver)
    seconds: dict[str, list[float]] = {name: [] for name in nets}
    for _ in range(repeats):
        for name, net in nets.items():
            step = partial(_step, net, batch)
            seconds[name].append(shortest_seconds(step, 1))
    return {".csv": csv_bytes([{"choice": name, "seconds": min(found)} for name, found in seconds.items()])}


def _step(net: Digits, batch: tuple[Tensor, Tensor]) -> None:
    net.zero_grad()
    torch.autograd.backward(digits_loss(net, batch))
