"""Training the latent ODE and the recurrent networks on spirals."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neural_ode.errors import SolverError
from neural_ode.nn import union_of_times
from reproduction.data.batches import Minibatches
from reproduction.data.spirals import Spirals, draw_spirals
from reproduction.measure.prediction import latent_ode_errors, rnn_errors
from reproduction.models.latent_ode import LatentODE, spiral_latent_ode
from reproduction.models.rnn import NextObservationRNN
from reproduction.training.adam import fit_with_adam
from reproduction.training.loop import Row, history_csv
from reproduction.training.weights import load_weights, run_files

__all__ = [
    "BASE",
    "TEST",
    "TRAIN",
    "VALIDATION",
    "Setting",
    "latent_ode_for",
    "latent_ode_run",
    "latent_ode_trial",
    "load_latent_ode",
    "load_rnn",
    "rnn_for",
    "rnn_run",
    "rnn_trial",
    "run_name",
    "spirals_for",
    "train_latent_ode",
    "train_rnn",
]

TRAIN, VALIDATION, TEST = 0, 1, 2
"""Seeds of data are 3 · seed + one of these."""

RNN_UNITS = 25
"""Of the recurrent networks, as in the paper."""

Batch = tuple[Spirals, float]
"""Series, and the weight of the KL divergence."""


@dataclass(frozen=True)
class Setting:
    """What can be varied, one thing at a time.

    Attributes:
        recipe: of the spirals.
        noise: its standard deviation.
        layers: hidden layers of the dynamics.
        with_times: whether the recognition network gets the times between observations.
        tolerance: of the solver, relative and absolute.
        double: computes in double precision, without which the paper's tolerance means nothing.
    """

    recipe: str = "example"
    noise: float = 0.1
    layers: int = 1
    with_times: bool = True
    tolerance: float = 1e-3
    double: bool = False

    @property
    def solver(self) -> Mapping[str, Any]:
        """Keyword arguments of `neural_ode.solve`."""
        return {"rtol": self.tolerance, "atol": self.tolerance}

    @property
    def model(self) -> Mapping[str, Any]:
        """Arguments of `spiral_latent_ode`."""
        return {"noise": self.noise, "layers": self.layers, "with_times": self.with_times}

    @property
    def dtype(self) -> torch.dtype:
        """Of data, model and solves."""
        return torch.float64 if self.double else torch.float32


BASE = Setting()


def spirals_for(
    setting: Setting, series: int, observations: int, seed: int, split: int, inside: bool = True
) -> Spirals:
    """The series of a split: `TRAIN` with windows anywhere, the others by default with windows `inside`."""
    return draw_spirals(
        setting.recipe,
        series,
        observations,
        setting.noise,
        3 * seed + split,
        inside=inside and split != TRAIN,
        dtype=setting.dtype,
    )


def train_latent_ode(
    train: Spirals,
    validation: Spirals,
    seed: int,
    training: Mapping[str, Any],
    model: Mapping[str, Any],
    solver: Mapping[str, Any],
    checkpoint: Path | None = None,
    device: str | torch.device = "cpu",
) -> tuple[LatentODE, list[Row]]:
    """Maximize the evidence lower bound with Adam and a cosine schedule.

    Args:
        train, validation: the series; the second ones only for the history.
        seed: decides initial weights, the order of the series, and the samples of `z_t0`.
        training: `steps`, `batch_size`, `lr` (the peak), `kl_warmup`: in how many steps the weight of the KL
            divergence grows to 1.
        model: arguments of `spiral_latent_ode`: `noise`, and perhaps `layers` and `with_times`.
        solver: keyword arguments of `neural_ode.solve`.
        checkpoint: see `fit`.
        device: where to train.

    Returns:
        The model, on the CPU, and the history, with RMSE `inside` and `beyond` the window of validation series.
    """

    def loss(net: LatentODE, batch: Batch) -> Tensor:
        series, weight = batch
        times = series.times
        bound = net.elbo(series.values, times, union_of_times(times, 0.0), weight)
        return -bound.mean() / times.shape[1]

    torch.manual_seed(seed)
    net = spiral_latent_ode(**model, **solver).to(train.noisy.dtype)
    settings = {"kind": "latent ODE", "model": dict(model), "solver": dict(solver)}
    data = (train, validation)
    history = _fit(net, loss, latent_ode_errors, data, seed, training, settings, checkpoint, device)
    return net, history


def train_rnn(
    train: Spirals,
    validation: Spirals,
    seed: int,
    training: Mapping[str, Any],
    with_times: bool,
    checkpoint: Path | None = None,
    device: str | torch.device = "cpu",
) -> tuple[NextObservationRNN, list[Row]]:
    """Maximize the likelihood of each observation given those before it, with Adam and a cosine schedule.

    Arguments and results as for `train_latent_ode`; there is no `kl_warmup`.
    """

    def loss(net: NextObservationRNN, batch: Batch) -> Tensor:
        series, _ = batch
        return -net.log_likelihood(series.values, series.times).mean() / series.observed.shape[1]

    torch.manual_seed(seed)
    net = NextObservationRNN(2, RNN_UNITS, with_times).to(train.noisy.dtype)
    settings = {"kind": "RNN", "with_times": with_times}
    history = _fit(net, loss, rnn_errors, (train, validation), seed, training, settings, checkpoint, device)
    return net, history


def _fit(
    net: nn.Module,
    loss: Callable[[Any, Batch], Tensor],
    errors: Callable[[Any, Spirals], Mapping[str, float]],
    data: tuple[Spirals, Spirals],
    seed: int,
    training: Mapping[str, Any],
    settings: Mapping[str, Any],
    checkpoint: Path | None,
    device: str | torch.device,
) -> list[Row]:
    net.to(device)
    train, validation = (spirals.to(device) for spirals in data)
    batches = Minibatches(len(train.observed), training["batch_size"], seed)
    warmup = training.get("kl_warmup", 0)

    def batch(step: int) -> Batch:
        return train.rows(batches(step)), min(1.0, (step + 1) / warmup) if warmup else 1.0

    drawn = [float(data[0].noisy.double().sum()), float(data[0].times.sum()), list(train.observed.shape)]
    identity = {**settings, "seed": seed, "data": drawn, "dtype": str(train.noisy.dtype), "device": str(device)}
    label = f"{settings['kind']}, {train.observed.shape[1]} observations, seed {seed}"
    history = fit_with_adam(
        net,
        loss,
        batch,
        lambda net: errors(net, validation),
        training,
        identity,
        Path(__file__),
        label,
        checkpoint,
    )
    net.cpu()
    return history


def latent_ode_for(
    *,
    setting: Mapping[str, Any],
    observations: int,
    seed: int,
    series: int,
    validation_series: int,
    training: Mapping[str, Any],
    device: str | torch.device,
    checkpoints: Path,
) -> tuple[LatentODE, list[Row]]:
    """`train_latent_ode` on series that are drawn here.

    Args:
        setting: the fields of `Setting`: what is trained on what.
        observations: of each series.
        seed: of data and training.
        series, validation_series: how many to train on, and how many for the history.
        training: see `train_latent_ode`; and `noise_factor`: the standard deviation that the likelihood assumes,
            over that of the data. More than 1 gives the prior of `z_t0` more weight.
        device: where to train.
        checkpoints: a folder for the training's own.
    """
    chosen = Setting(**setting)
    data = _series(chosen, series, validation_series, observations, seed)
    assumed = {**chosen.model, "noise": training["noise_factor"] * chosen.noise}
    file = _checkpoint(checkpoints, observations, seed, {"setting": setting, "training": training})
    return train_latent_ode(*data, seed, training, assumed, chosen.solver, file, device)


def latent_ode_run(**settings: Any) -> dict[str, bytes]:
    """`latent_ode_for`, whose arguments it takes, as a run of `reproduction.results`."""
    return run_files(*latent_ode_for(**settings))


def latent_ode_trial(*, seeds: Sequence[int], **settings: Any) -> dict[str, bytes]:
    """`latent_ode_for` with several seeds, as a run of `reproduction.results`.

    A row for each: its `name`, and the `loss`, which is the RMSE beyond the window on validation series, or
    infinite if training diverges.
    """
    return _trial(latent_ode_for, seeds, settings)


def load_latent_ode(setting: Setting, file: Path) -> LatentODE:
    """The latent ODE of a setting with the weights in `file`, in eval mode.

    Raises:
        WeightsError: see `load_weights`.
    """
    model = spiral_latent_ode(**setting.model, **setting.solver).to(setting.dtype)
    load_weights(model, file)
    return model


def rnn_for(
    *,
    setting: Mapping[str, Any],
    with_times: bool,
    observations: int,
    seed: int,
    series: int,
    validation_series: int,
    training: Mapping[str, Any],
    device: str | torch.device,
    checkpoints: Path,
) -> tuple[NextObservationRNN, list[Row]]:
    """`train_rnn` on series that are drawn here.

    Args:
        setting: those fields of `Setting` that describe the data.
        with_times: see `NextObservationRNN`.
        training: see `train_rnn`.
        observations, seed, series, validation_series, device, checkpoints: see `latent_ode_for`.
    """
    data = _series(Setting(**setting), series, validation_series, observations, seed)
    what = {"setting": setting, "with_times": with_times, "training": training}
    file = _checkpoint(checkpoints, observations, seed, what)
    return train_rnn(*data, seed, training, with_times, file, device)


def rnn_run(**settings: Any) -> dict[str, bytes]:
    """`rnn_for`, whose arguments it takes, as a run of `reproduction.results`."""
    return run_files(*rnn_for(**settings))


def rnn_trial(*, seeds: Sequence[int], **settings: Any) -> dict[str, bytes]:
    """`rnn_for` with several seeds, as `latent_ode_trial`."""
    return _trial(rnn_for, seeds, settings)


def load_rnn(with_times: bool, file: Path) -> NextObservationRNN:
    """A recurrent network with the weights in `file`, in eval mode.

    Raises:
        WeightsError: see `load_weights`.
    """
    model = NextObservationRNN(2, RNN_UNITS, with_times)
    load_weights(model, file)
    return model


def run_name(name: str, observations: int, seed: int) -> str:
    """Name of the run that trains a model, or a variant of it."""
    return f"{name.replace(' ', '-')}-{observations}-{seed}"


def _series(
    setting: Setting, series: int, validation_series: int, observations: int, seed: int
) -> tuple[Spirals, Spirals]:
    train = spirals_for(setting, series, observations, seed, TRAIN)
    return train, spirals_for(setting, validation_series, observations, seed, VALIDATION)


def _checkpoint(folder: Path, observations: int, seed: int, what: Mapping[str, Any]) -> Path:
    """A file of its own also where others are trained at the same time, on as many observations with that seed."""
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
    return folder / f"{observations}-{seed}-{digest[:16]}.pt"


def _trial(
    train: Callable[..., tuple[nn.Module, list[Row]]], seeds: Sequence[int], settings: Mapping[str, Any]
) -> dict[str, bytes]:
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        try:
            loss = train(seed=seed, **settings)[1][-1]["beyond"]
        except SolverError:
            loss = math.inf
        rows.append({"name": f"seed {seed}", "loss": loss})
    return {".csv": history_csv(rows).encode()}
