"""Learning the rates of Poisson processes, from event times alone and together with observations."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reproduction.data.batches import Minibatches
from reproduction.data.events import RATES, Events, draw_events
from reproduction.data.oscillators import Oscillators, draw_oscillators, oscillator_rate
from reproduction.models.joint import JointModel
from reproduction.models.latent_ode import LatentDynamics
from reproduction.models.poisson import PoissonODE, RateNetwork, poisson_log_likelihood
from reproduction.training.adam import fit_with_adam
from reproduction.training.loop import Row
from reproduction.training.weights import load_weights, run_files

__all__ = [
    "TEST",
    "TRAIN",
    "RateModel",
    "joint_error",
    "joint_rates",
    "joint_run",
    "load_joint",
    "load_rate",
    "rate_error",
    "rate_run",
    "relative_squared_error",
    "train_joint",
    "train_rate",
    "true_log_likelihood",
]

TRAIN, TEST = 0, 1
"""Seeds of data are 2 · seed + one of these."""

LATENT = 4
"""Dimensions of the latent states."""

POINTS = 501
"""Points of the grid on which rates are compared."""


class _WithClock(nn.Module):
    """Latent dynamics whose first coordinate is a clock: it grows at a constant speed, the others follow `f(z)`."""

    def __init__(self, f: nn.Module, speed: float):
        super().__init__()
        self.f, self.speed = f, speed

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        slope: Tensor = self.f(t, z)
        return torch.cat([torch.full_like(slope[:, :1], self.speed), slope[:, 1:]], dim=1)


class RateModel(nn.Module):
    """One rate for all sequences: a single latent trajectory, from a learned state, with a clock in it.

    The dynamics of the paper do not depend on time, and a single trajectory tells little of where else they lead.
    With the clock the rate can be any function of time from the start of training.

    Args:
        latent: dimension of the latent state; its first coordinate goes from -3 to 3.
        end: when the observation ends.
        **how: keyword arguments of `neural_ode.solve`.
    """

    def __init__(self, latent: int, end: float, **how: Any):
        super().__init__()
        self.z0 = nn.Parameter(torch.cat([torch.full((1, 1), -3.0), torch.randn(1, latent - 1)], dim=1))
        dynamics = _WithClock(LatentDynamics(latent), 6 / end)
        self.process = PoissonODE(dynamics, RateNetwork(latent), **how)

    def log_likelihood(self, events: Events) -> Tensor:
        """Of each sequence, in nats, shape (sequences,)."""
        times = events.times[events.mask][None]
        # One trajectory serves all sequences: the likelihood of all events is that of each, and integrals.
        every = torch.ones_like(times, dtype=torch.bool)
        solved = self.process.solve(self.z0, times, every, events.end)
        logs: Tensor = self.process.rate(solved.at_events)[0].log()
        integral = logs.sum() - solved.log_likelihood[0]
        row = torch.arange(len(events.lengths), device=events.lengths.device).repeat_interleave(events.lengths)
        return logs.new_zeros(len(events.lengths)).index_add(0, row, logs) - integral

    def rate(self, times: Tensor) -> Tensor:
        """Events per unit of time at ascending times from 0, shape (n,)."""
        found: Tensor = self.process.rates(self.z0, times)[0]
        return found


def true_log_likelihood(rate: str, events: Events) -> Tensor:
    """Of each sequence under the rate it was drawn from, in nats, shape (sequences,)."""
    kind = RATES[rate]
    grid = torch.linspace(0, kind.end, 100_001, dtype=torch.float64)
    integral = torch.trapezoid(kind.rate(grid), grid)
    return poisson_log_likelihood(kind.rate(events.times), integral.expand(len(events.times)), events.mask)


def relative_squared_error(found: Tensor, truth: Tensor, times: Tensor) -> Tensor:
    """`∫ (λ - λ_true)² dt / ∫ λ_true² dt` over the last dimension."""
    error = torch.trapezoid((found.double() - truth).square(), times)
    return error / torch.trapezoid(truth.square(), times)


@torch.no_grad()
def rate_error(model: RateModel, rate: str) -> float:
    """Relative integrated squared error of a learned rate."""
    times = torch.linspace(0, RATES[rate].end, POINTS, dtype=torch.float64)
    return float(relative_squared_error(model.rate(times).cpu(), RATES[rate].rate(times), times))


def train_rate(
    rate: str,
    train: Events,
    test: Events,
    seed: int,
    training: Mapping[str, Any],
    solver: Mapping[str, Any],
    checkpoint: Path | None = None,
    device: str | torch.device = "cpu",
) -> tuple[RateModel, list[Row]]:
    """Maximize the likelihood of event times.

    Args:
        rate: what they were drawn from, to measure the error.
        train, test: the sequences.
        seed: decides initial weights and the order of sequences.
        training: `steps`, `batch_size`, `lr` (the peak of a cosine schedule).
        solver: keyword arguments of `neural_ode.solve`.
        checkpoint: see `fit`.
        device: where to train.

    Returns:
        The model, on the CPU, and the history, with `error` (see `rate_error`) and `excess`: by how much the
        negative log-likelihood of a test sequence exceeds that under the true rate, in nats.
    """

    def loss(net: RateModel, batch: Tensor) -> Tensor:
        return -net.log_likelihood(there.rows(batch)).mean()

    def evaluate(net: RateModel) -> Mapping[str, float]:
        excess = true_log_likelihood(rate, test) - net.log_likelihood(test.to(device)).cpu()
        return {"error": rate_error(net, rate), "excess": float(excess.mean())}

    torch.manual_seed(seed)
    net, there = RateModel(LATENT, train.end, **solver).to(device), train.to(device)
    batches = Minibatches(len(train.lengths), training["batch_size"], seed)
    settings = {"rate": rate, "seed": seed, "solver": dict(solver), "device": str(device)}
    settings["events"] = float(train.times.sum())
    label = f"rate {rate}, seed {seed}"
    code = Path(__file__)
    history = fit_with_adam(net, loss, batches, evaluate, training, settings, code, label, checkpoint)
    return net.cpu(), history


def rate_run(
    *,
    rate: str,
    seed: int,
    sequences: int,
    test_sequences: int,
    training: Mapping[str, Any],
    solver: Mapping[str, Any],
    device: str | torch.device,
    checkpoints: Path,
) -> dict[str, bytes]:
    """`train_rate` as a run of `reproduction.results`.

    Args:
        rate, training, solver, device: see `train_rate`.
        seed: of data and training.
        sequences, test_sequences: how many to train on, and how many for the history.
        checkpoints: a folder for the run's own.
    """
    train = draw_events(rate, sequences, 2 * seed + TRAIN)
    test = draw_events(rate, test_sequences, 2 * seed + TEST)
    file = checkpoints / f"{rate}-{seed}.pt"
    return run_files(*train_rate(rate, train, test, seed, training, solver, file, device))


def load_rate(rate: str, file: Path, **solver: Any) -> RateModel:
    """The model of a rate with the weights in `file`, in eval mode.

    Raises:
        WeightsError: see `load_weights`.
    """
    model = RateModel(LATENT, RATES[rate].end, **solver)
    load_weights(model, file)
    return model


@torch.no_grad()
def joint_rates(model: JointModel, data: Oscillators, times: Tensor) -> Tensor:
    """The rate of each series at times from 0, from the mean of `q(z_t0 | x)`; shape (series, n)."""
    mean, _ = model.recognition(data.events.times, data.values, data.events.lengths)
    return model.process.rates(mean, times)


def joint_error(model: JointModel, data: Oscillators) -> float:
    """Relative integrated squared error of the learned rates, mean over series."""
    times = torch.linspace(0, data.events.end, POINTS, dtype=torch.float64)
    truth = oscillator_rate(data.phase[:, None].cpu(), times)
    found = joint_rates(model, data, times).cpu()
    return float(relative_squared_error(found, truth, times).mean())


def train_joint(
    train: Oscillators,
    test: Oscillators,
    seed: int,
    training: Mapping[str, Any],
    noise: float,
    solver: Mapping[str, Any],
    checkpoint: Path | None = None,
    device: str | torch.device = "cpu",
) -> tuple[JointModel, list[Row]]:
    """Maximize the evidence lower bound of observations and their times.

    Arguments as for `train_rate`; `noise` is that of the observations.

    Returns:
        The model, on the CPU, and the history, with `error`: the relative integrated squared error of the rate,
        mean over test series.
    """

    def loss(net: JointModel, batch: Tensor) -> Tensor:
        some = there.rows(batch)
        events = some.events
        return -net.elbo(some.values, events.times, events.lengths, events.mask, events.end).mean()

    def evaluate(net: JointModel) -> Mapping[str, float]:
        return {"error": joint_error(net, test.to(device))}

    torch.manual_seed(seed)
    net, there = JointModel(2, LATENT, noise, **solver).to(device), train.to(device)
    batches = Minibatches(len(train.phase), training["batch_size"], seed)
    settings = {"noise": noise, "seed": seed, "solver": dict(solver), "device": str(device)}
    settings["phases"] = float(train.phase.sum())
    label = f"joint model, seed {seed}"
    code = Path(__file__)
    history = fit_with_adam(net, loss, batches, evaluate, training, settings, code, label, checkpoint)
    return net.cpu(), history


def joint_run(
    *,
    seed: int,
    series: int,
    test_series: int,
    noise: float,
    training: Mapping[str, Any],
    solver: Mapping[str, Any],
    device: str | torch.device,
    checkpoints: Path,
) -> dict[str, bytes]:
    """`train_joint` as a run of `reproduction.results`.

    Args:
        seed: of data and training.
        series, test_series: how many to train on, and how many for the history.
        noise, training, solver, device: see `train_joint`.
        checkpoints: a folder for the run's own.
    """
    train = draw_oscillators(series, noise, 2 * seed + TRAIN)
    test = draw_oscillators(test_series, noise, 2 * seed + TEST)
    file = checkpoints / f"joint-{seed}.pt"
    return run_files(*train_joint(train, test, seed, training, noise, solver, file, device))


def load_joint(noise: float, file: Path, **solver: Any) -> JointModel:
    """The joint model with the weights in `file`, in eval mode.

    Raises:
        WeightsError: see `load_weights`.
    """
    model = JointModel(2, LATENT, noise, **solver)
    load_weights(model, file)
    return model
