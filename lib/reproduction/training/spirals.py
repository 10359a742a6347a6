"""Training the latent ODE and the recurrent networks on spirals."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from neural_ode.errors import SolverError
from neural_ode.nn import Union
from reproduction.data.batches import Minibatches
from reproduction.data.spirals import Spirals, draw_spirals
from reproduction.measure.prediction import latent_ode_errors, rnn_errors
from reproduction.models.latent_ode import LatentODE, spiral_latent_ode
from reproduction.models.rnn import NextObservationRNN
from reproduction.models.stacked import max_over_models
from reproduction.training.loop import Row, history_csv
from reproduction.training.together import train_together
from reproduction.training.weights import load_weights, run_files

__all__ = [
    "BASE",
    "TEST",
    "TRAIN",
    "VALIDATION",
    "Setting",
    "latent_ode_runs",
    "latent_ode_trial",
    "latent_odes_for",
    "load_latent_ode",
    "load_rnn",
    "rnn_runs",
    "rnn_trial",
    "rnns_for",
    "run_name",
    "spirals_for",
    "train_latent_odes",
    "train_rnns",
]

TRAIN, VALIDATION, TEST = 0, 1, 2
"""Seeds of data are 3 · seed + one of these."""

RNN_UNITS = 25
"""Of the recurrent networks, as in the paper."""

Trained = tuple[Any, list[Row]]
"""A model, on the CPU, and the history of its training."""


class Batch(NamedTuple):
    """Series for all models of a training.

    Attributes:
        values: the observations, shape (models, series, m, 2).
        times: theirs, float64, shape (models, series, m).
        union: where they are in the times of the window.
        kl_weight: of the KL divergence.
    """

    values: Tensor
    times: Tensor
    union: Union
    kl_weight: float


@dataclass(frozen=True)
class Setting:
    """What can be varied, one thing at a time.

    Attributes:
        recipe: of the spirals.
        noise: its standard deviation.
        layers: hidden layers of the dynamics.
        bounded: see `LatentDynamics`.
        with_times: whether the recognition network gets the times between observations.
        tolerance: of the solver, relative and absolute.
        double: computes in double precision, without which the paper's tolerance means nothing.
    """

    recipe: str = "example"
    noise: float = 0.1
    layers: int = 1
    bounded: bool = False
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
        return {
            "noise": self.noise,
            "layers": self.layers,
            "bounded": self.bounded,
            "with_times": self.with_times,
        }

    @property
    def dtype(self) -> torch.dtype:
        """Of data, model and solves."""
        return torch.float64 if self.double else torch.float32


BASE = Setting()


def spirals_for(
    setting: Setting, series: int, observations: int, seed: int, split: int, windows: str = "inside"
) -> Spirals:
    """The series of a split: `TRAIN` with windows anywhere, the others with the `windows` that are asked for."""
    return draw_spirals(
        setting.recipe,
        series,
        observations,
        setting.noise,
        3 * seed + split,
        windows="anywhere" if split == TRAIN else windows,
        dtype=setting.dtype,
    )


def train_latent_odes(
    train: Sequence[Spirals],
    validation: Sequence[Spirals],
    seeds: Sequence[int],
    training: Mapping[str, Any],
    model: Mapping[str, Any],
    solver: Mapping[str, Any],
    checkpoint: Path | None = None,
    device: str | torch.device = "cpu",
) -> list[tuple[LatentODE, list[Row]]]:
    """Maximize the evidence lower bound of latent ODEs, all at once, with Adam.

    The loss of a series is its negative bound over the number of its observations, plus what `training` asks for:

    * `path` times `∫ ‖f(z)‖² dt`, the squared speed along its path (compare Finlay et al. 2020, *How to Train Your
      Neural ODE*, equation 4);
    * `consistency` times `‖z(t_k) - μ(x_tk … x_tN)‖²`: the state that has flowed to an observation, drawn anew in
      each step, should be where the recognition network puts a series that begins there.

    Neither is in the paper.

    Args:
        train, validation: the series of each model, as many for each; the second ones only for the history.
        seeds: of each model: decides initial weights and the order of the series. Samples of `z_t0` are drawn for
            all together.
        training: `steps`, `batch_size`, `lr` and perhaps `schedule`, see `train_together`; `kl_warmup`: in how many
            steps the weight of the KL divergence grows to 1; and perhaps `path`, `consistency`, and `compiled`:
            whether to compile the solves, which pays for itself in a long training.
        model: arguments of `spiral_latent_ode`: `noise`, and perhaps `layers`, `bounded` and `with_times`.
        solver: keyword arguments of `neural_ode.solve`.
        checkpoint: see `fit`.
        device: where to train.

    Returns:
        For each seed the model, and the history with RMSE `inside` and `beyond` the window of validation series.
    """
    path, consistency = training.get("path", 0.0), training.get("consistency", 0.0)
    # A step has to serve each model, and the length of its paths: where that decided none, a training made it
    # negative, which only the error of a quadrature can be.
    how = {**solver, "norm": max_over_models, "compile": training.get("compiled", False)}

    def loss(nets: LatentODE, batch: Batch) -> Tensor:
        nets.how = how
        values, times, union, kl_weight = batch
        shape, number = times.shape[:-1], times.shape[-1]
        gap_at = torch.randint(number, shape, device=values.device) if consistency else None
        found = nets.terms(values, times, union, with_length=path > 0, gap_at=gap_at)
        losses = (kl_weight * found.divergence - found.likelihood) / number
        for weight, penalty in ((path, found.length), (consistency, found.gap)):
            losses = losses if penalty is None else losses + weight * penalty
        return losses.mean(-1)

    nets = []
    for seed in seeds:
        torch.manual_seed(seed)
        nets.append(spiral_latent_ode(**model, **solver).to(train[0].noisy.dtype))
    settings = {"kind": "latent ODE", "model": dict(model), "solver": dict(solver)}
    histories = _fit(
        nets, loss, latent_ode_errors, (train, validation), seeds, training, settings, checkpoint, device
    )
    return list(zip(nets, histories, strict=True))


def train_rnns(
    train: Sequence[Spirals],
    validation: Sequence[Spirals],
    seeds: Sequence[int],
    training: Mapping[str, Any],
    with_times: bool,
    checkpoint: Path | None = None,
    device: str | torch.device = "cpu",
) -> list[tuple[NextObservationRNN, list[Row]]]:
    """Maximize the likelihood of each observation given those before it, for several networks at once, with Adam.

    Arguments and results as for `train_latent_odes`; the loss is the bare one, and there is no `kl_warmup`.
    """

    def loss(nets: NextObservationRNN, batch: Batch) -> Tensor:
        return -nets.log_likelihood(batch.values, batch.times).mean(-1) / batch.times.shape[-1]

    nets = []
    for seed in seeds:
        torch.manual_seed(seed)
        nets.append(NextObservationRNN(2, RNN_UNITS, with_times).to(train[0].noisy.dtype))
    settings = {"kind": "RNN", "with_times": with_times}
    histories = _fit(nets, loss, rnn_errors, (train, validation), seeds, training, settings, checkpoint, device)
    return list(zip(nets, histories, strict=True))


def _fit(
    nets: Sequence[nn.Module],
    loss: Callable[[Any, Batch], Tensor],
    errors: Callable[[Any, Spirals], Mapping[str, float]],
    data: tuple[Sequence[Spirals], Sequence[Spirals]],
    seeds: Sequence[int],
    training: Mapping[str, Any],
    settings: Mapping[str, Any],
    checkpoint: Path | None,
    device: str | torch.device,
) -> list[list[Row]]:
    train, validation = data
    values, times, observed = (
        torch.stack([getattr(spirals, name) for spirals in train]).to(device)
        for name in ("values", "times", "observed")
    )
    window = train[0].grid[: train[0].window]
    orders = [Minibatches(observed.shape[1], training["batch_size"], seed) for seed in seeds]
    warmup = training.get("kl_warmup", 0)
    model = torch.arange(len(seeds))[:, None]

    def batch(step: int) -> Batch:
        rows = torch.stack([order(step) for order in orders])
        place = observed[model, rows].flatten(0, 1)
        if place.shape[1] == len(window):  # all see all of it, so one row says so
            place = torch.arange(len(window)).expand(place.shape)
        weight = min(1.0, (step + 1) / warmup) if warmup else 1.0
        return Batch(values[model, rows], times[model, rows], Union(window, place.cpu()), weight)

    drawn = [float(values.double().sum()), float(times.sum()), list(observed.shape)]
    identity = {**settings, "seeds": list(seeds), "data": drawn, "dtype": str(values.dtype), "device": str(device)}
    return train_together(
        nets,
        loss,
        batch,
        lambda net, k: errors(net, validation[k]),
        training,
        identity,
        Path(__file__),
        f"{settings['kind']}, {observed.shape[2]} observations, {len(seeds)} seeds",
        checkpoint,
        device,
    )


def latent_odes_for(
    *,
    setting: Mapping[str, Any],
    observations: int,
    seeds: Sequence[int],
    series: int,
    validation_series: int,
    training: Mapping[str, Any],
    device: str | torch.device,
    checkpoints: Path,
) -> dict[int, Trained]:
    """`train_latent_odes` on series that are drawn here; by seed.

    Args:
        setting: the fields of `Setting`: what is trained on what.
        observations: of each series.
        seeds: of data and training.
        series, validation_series: how many to train on, and how many for the history.
        training: see `train_latent_odes`; and `noise_factor`: the standard deviation that the likelihood assumes,
            over that of the data. More than 1 gives the prior of `z_t0` more weight.
        device: where to train.
        checkpoints: a folder for the training's own.
    """
    chosen = Setting(**setting)
    data = _series(chosen, series, validation_series, observations, seeds)
    assumed = {**chosen.model, "noise": training["noise_factor"] * chosen.noise}
    what = {"setting": setting, "training": training}
    file = _checkpoint(checkpoints, observations, seeds, what)
    found = train_latent_odes(*data, seeds, training, assumed, chosen.solver, file, device)
    return dict(zip(seeds, found, strict=True))


def rnns_for(
    *,
    setting: Mapping[str, Any],
    with_times: bool,
    observations: int,
    seeds: Sequence[int],
    series: int,
    validation_series: int,
    training: Mapping[str, Any],
    device: str | torch.device,
    checkpoints: Path,
) -> dict[int, Trained]:
    """`train_rnns` on series that are drawn here; by seed.

    Args:
        setting: those fields of `Setting` that describe the data.
        with_times: see `NextObservationRNN`.
        training: see `train_rnns`.
        observations, seeds, series, validation_series, device, checkpoints: see `latent_odes_for`.
    """
    data = _series(Setting(**setting), series, validation_series, observations, seeds)
    what = {"setting": setting, "with_times": with_times, "training": training}
    file = _checkpoint(checkpoints, observations, seeds, what)
    found = train_rnns(*data, seeds, training, with_times, file, device)
    return dict(zip(seeds, found, strict=True))


# Runs of `reproduction.results` ----------------------------------------------------------------------------------


def latent_ode_runs(*, points: Mapping[str, Mapping[str, Any]], **how: Any) -> dict[str, dict[str, bytes]]:
    """Latent ODEs that are trained at once, as runs.

    Args:
        points: by name of the run `seed`, `together` (the seeds of all that are trained at once, for the steps of
            the solver depend on them) and the other settings of `latent_odes_for`, the same for all.
        **how: `device` and `checkpoints`; see there.
    """
    return _runs(latent_odes_for, points, how)


def rnn_runs(*, points: Mapping[str, Mapping[str, Any]], **how: Any) -> dict[str, dict[str, bytes]]:
    """Recurrent networks that are trained at once, as `latent_ode_runs`."""
    return _runs(rnns_for, points, how)


def latent_ode_trial(**settings: Any) -> dict[str, bytes]:
    """`latent_odes_for`, whose arguments it takes, as a run.

    A row for each seed: its `name`, and the `loss`, which is the RMSE beyond the window on validation series, or
    infinite if training diverges.
    """
    return _trial(latent_odes_for, settings)


def rnn_trial(**settings: Any) -> dict[str, bytes]:
    """`rnns_for`, as `latent_ode_trial`."""
    return _trial(rnns_for, settings)


def load_latent_ode(setting: Setting, file: Path) -> LatentODE:
    """The latent ODE of a setting with the weights in `file`, in eval mode.

    Raises:
        WeightsError: see `load_weights`.
    """
    model = spiral_latent_ode(**setting.model, **setting.solver).to(setting.dtype)
    load_weights(model, file)
    return model


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
    setting: Setting, series: int, validation_series: int, observations: int, seeds: Sequence[int]
) -> tuple[list[Spirals], list[Spirals]]:
    draw = partial(spirals_for, setting)
    train = [draw(series, observations, seed, TRAIN) for seed in seeds]
    return train, [draw(validation_series, observations, seed, VALIDATION) for seed in seeds]


def _checkpoint(folder: Path, observations: int, seeds: Sequence[int], what: Mapping[str, Any]) -> Path:
    """A file of its own also where others are trained at the same time, on as many observations with such seeds."""
    digest = hashlib.sha256(json.dumps([what, list(seeds)], sort_keys=True).encode()).hexdigest()
    return folder / f"{observations}-{digest[:16]}.pt"


def _runs(
    train: Callable[..., Mapping[int, Trained]], points: Mapping[str, Mapping[str, Any]], how: Mapping[str, Any]
) -> dict[str, dict[str, bytes]]:
    common = dict(next(iter(points.values())))
    seeds = common.pop("together")
    del common["seed"]
    trained = train(**common, seeds=seeds, **how)
    return {name: run_files(*trained[point["seed"]]) for name, point in points.items()}


def _trial(train: Callable[..., Mapping[int, Trained]], settings: Mapping[str, Any]) -> dict[str, bytes]:
    try:
        losses = {seed: history[-1]["beyond"] for seed, (_, history) in train(**settings).items()}
    except SolverError:
        losses = dict.fromkeys(settings["seeds"], math.inf)
    rows: list[dict[str, Any]] = [{"name": f"seed {seed}", "loss": loss} for seed, loss in losses.items()]
    return {".csv": history_csv(rows).encode()}
