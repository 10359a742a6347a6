"""Training the latent ODE and the recurrent networks on spirals."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neural_ode.nn import union_of_times
from reproduction.data.batches import Minibatches
from reproduction.data.spirals import Spirals
from reproduction.measure.prediction import latent_ode_errors, rnn_errors
from reproduction.models.latent_ode import LatentODE, spiral_latent_ode
from reproduction.models.rnn import NextObservationRNN
from reproduction.training.adam import fit_with_adam
from reproduction.training.loop import Row

__all__ = ["train_latent_ode", "train_rnn"]

Batch = tuple[Spirals, float]
"""Series, and the weight of the KL divergence."""


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

    Arguments and results as for `train_latent_ode`; `kl_warmup` is not used.
    """

    def loss(net: NextObservationRNN, batch: Batch) -> Tensor:
        series, _ = batch
        return -net.log_likelihood(series.values, series.times).mean() / series.observed.shape[1]

    torch.manual_seed(seed)
    net = NextObservationRNN(2, 25, with_times).to(train.noisy.dtype)
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
    warmup = training["kl_warmup"]

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
