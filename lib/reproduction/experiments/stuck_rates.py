"""Why some learned rates stay flat for part of the time: many rate models at once, and where they are blind.

Whether weights or data decide takes a hundred trainings to tell. They are made together here: the models are
stacked, and latent states follow 100 steps of the classical Runge-Kutta method. Models, likelihood, optimizer and
initial weights are those of `training.poisson`; its solver, which controls the error, is not.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from neural_ode import solve
from neural_ode.errors import needs
from reproduction.data.events import RATES, Events, draw_events
from reproduction.results import Store, csv_bytes
from reproduction.sweep import Point
from reproduction.training.adam import fit_with_adam
from reproduction.training.poisson import LATENT, TRAIN, RateModel

with needs("notebooks"):
    import pandas as pd

__all__ = [
    "CHANGES",
    "CROSSED",
    "ManyRates",
    "Trace",
    "changed_model",
    "expected_excess",
    "many_run",
    "on_grid",
    "study",
    "trace",
]

STEPS = 100
"""Of the Runge-Kutta method, over the time of observation."""

POINTS = 1001
"""Points of the grid on which a rate is compared with the true one."""

TOLERANCE = 1e-6
"""Of the solves that trained models are judged by."""

SMALL = 0.1
"""What a small start multiplies the last layer of `f` by."""

CHANGES = ("as it is", "small start", "bounded", "bounded, small start")
"""What can be changed of a rate model: with a small start its latent states hardly move before training; bounded,
`f` has hidden units with tanh instead of ELU, so that no latent state grows faster than linearly in time."""


def changed_model(rate: str, seed: int, change: str, **how: Any) -> RateModel:
    """An untrained model, with the initial weights that `train_rate` gives it but for the change.

    Args:
        rate: what it is to learn.
        seed: of the weights.
        change: one of `CHANGES`.
        **how: keyword arguments of `neural_ode.solve`.
    """
    torch.manual_seed(seed)
    model = RateModel(LATENT, RATES[rate].end, **how)
    layers = model.get_submodule("process.dynamics.f.net")
    assert isinstance(layers, nn.Sequential)
    if change.startswith("bounded"):
        layers[1] = nn.Tanh()
    if change.endswith("small start"):
        with torch.no_grad():
            for parameter in layers[2].parameters():
                parameter.mul_(SMALL)
    return model


CROSSED = "weights and data"
"""The trial in which they are not of the same seed."""


class Trace(NamedTuple):
    """What a rate model does over time.

    Attributes:
        reach: the largest latent coordinate in absolute value, shape (times,).
        slope: of the hidden units of `λ`, the mean of 1 - tanh²: what a gradient is multiplied by on its way back
            to the latent state and the first layer. 0 where all units are saturated.
    """

    reach: Tensor
    slope: Tensor


@torch.no_grad()
def trace(model: RateModel, times: Tensor) -> Trace:
    """See `Trace`; at ascending times from 0, shape (n,)."""
    states = solve(model.process.dynamics, model.z0, times, **model.process.how).y
    assert isinstance(states, Tensor)
    hidden = model.get_submodule("process.rate.net.0")(states[:, 0])
    return Trace(states[:, 0].abs().amax(1), (1 - hidden.tanh().square()).mean(1))


@torch.no_grad()
def expected_excess(model: RateModel, rate: str) -> float:
    """By how much the negative log-likelihood of a new sequence exceeds that under the true rate, in nats.

    Its expectation, `∫ (λ* log(λ* / λ) - λ* + λ) dt`, where `train_rate` has the mean over test sequences.
    """
    times = torch.linspace(0, RATES[rate].end, POINTS, dtype=torch.float64)
    truth, found = RATES[rate].rate(times), model.rate(times).double()
    return float(torch.trapezoid(truth * (truth / found).log() - truth + found, times))


def on_grid(events: Events, steps: int) -> Tensor:
    """How many events of a sequence, in the mean, fall on each of `steps` + 1 points, shape (steps + 1,).

    One that falls between two points counts in part for each, so that the sum over events of a function that is
    linear between the points is exact.
    """
    place = events.times[events.mask] * (steps / events.end)
    left = place.floor().clamp(max=steps - 1).long()
    counts = torch.zeros(steps + 1, dtype=place.dtype)
    counts = counts.index_add(0, left, 1 - (place - left)).index_add(0, left + 1, place - left)
    return counts / len(events.lengths)


class _OnGrid(nn.Module):
    """The rate of a model at the points of the grid."""

    def __init__(self, model: RateModel, end: float):
        super().__init__()
        self.model, self.step = model, end / STEPS

    def forward(self) -> Tensor:
        f, z, h = self.model.process.dynamics, self.model.z0, self.step
        t = z.new_zeros(())  # the dynamics do not depend on it
        states: list[Tensor] = [z]
        for _ in range(STEPS):
            first = f(t, z)
            second = f(t, z + h / 2 * first)
            third = f(t, z + h / 2 * second)
            z = z + h / 6 * (first + 2 * second + 2 * third + f(t, z + h * third))
            states.append(z)
        rates: Tensor = self.model.process.rate(torch.cat(states))
        return rates


class ManyRates(nn.Module):
    """Rate models of one kind as one model.

    Args:
        models: they keep their weights; `unstacked` gives the trained ones.
        end: when the observation ends.
    """

    def __init__(self, models: Sequence[RateModel], end: float):
        super().__init__()
        alike: list[nn.Module] = [_OnGrid(model, end) for model in models]
        stacked, _ = stack_module_state(alike)
        self.names = list(stacked)
        self.weights = nn.ParameterList(stacked[name].detach() for name in self.names)
        self.kind = [_OnGrid(models[0], end)]  # in a list: its weights are not to be trained

    def forward(self) -> Tensor:
        """The rates of all models at the points of the grid, shape (models, points)."""
        rates: Tensor = vmap(lambda own: functional_call(self.kind[0], own, ()))(self._named())
        return rates

    def log_likelihood(self, counts: Tensor) -> Tensor:
        """Of a sequence of each model's data, in the mean, in nats; shape (models,).

        Args:
            counts: of each model's data; see `on_grid`.
        """
        rates: Tensor = self()
        return (counts * rates.log()).sum(1) - torch.trapezoid(rates, dx=self.kind[0].step)

    def unstacked(self, models: Sequence[RateModel]) -> None:
        """Give the weights to models, one each, in order."""
        for k, model in enumerate(models):
            own = {name.removeprefix("model."): weights[k] for name, weights in self._named().items()}
            model.load_state_dict(own)

    def _named(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self.weights, strict=True))


def study(
    store: Store,
    *,
    rate: str,
    rates: Sequence[str],
    seeds: Sequence[int],
    sequences: int,
    steps: int,
    lr: float,
) -> pd.DataFrame:
    """What makes a rate stick, tried out: other weights and data, longer and other training, changed models.

    Args:
        store: of the notebook.
        rate: that sticks.
        rates: that the last of `CHANGES`, the remedy, is tried on.
        seeds: of weights and data.
        sequences: see `many_run`.
        steps, lr: of the training that is varied.

    Returns:
        The rows of `many_run`, with the name of the `trial`; in the first one every seed of weights meets every
        seed of data, in the others its own.
    """
    crossed = [{"rate": rate, "weights": i, "data": j} for i in seeds for j in seeds]
    own = {name: [{"rate": name, "weights": k, "data": k} for k in seeds] for name in rates}
    usual = {"steps": steps, "lr": lr}
    plain, *changes = CHANGES
    trials: dict[str, tuple[list[dict[str, Any]], str, dict[str, Any]]] = {
        CROSSED: (crossed, plain, usual),
        "twice the steps": (own[rate], plain, {**usual, "steps": 2 * steps}),
        "0.3 of the learning rate": (own[rate], plain, {**usual, "lr": 0.3 * lr}),
        **{change: (own[rate], change, usual) for change in changes[:-1]},
        changes[-1]: ([case for name in rates for case in own[name]], changes[-1], usual),
    }
    points: dict[str, Point] = {
        f"study/{name.replace(',', '').replace(' ', '-')}": {
            "cases": cases,
            "change": change,
            "sequences": sequences,
            "training": training,
        }
        for name, (cases, change, training) in trials.items()
    }
    runs = store.obtain(many_run, points, label="stuck rates", checkpoints=store.checkpoints)
    tables = [run.table().assign(trial=name) for name, run in zip(trials, runs.values(), strict=True)]
    return pd.concat(tables, ignore_index=True)


def many_run(
    *,
    cases: Sequence[Mapping[str, Any]],
    change: str,
    sequences: int,
    training: Mapping[str, Any],
    checkpoints: Path,
) -> dict[str, bytes]:
    """Train a model for each case, as a run of `reproduction.results`: a table with a row for each.

    Columns: those of the case, the expected `excess` (see `expected_excess`), and the largest coordinate of a
    latent state before training, `reach at start`, and after it, `reach`.

    Args:
        cases: `rate`, and seeds of `weights` and of `data`; `train_rate` has the same seed for both.
        change: one of `CHANGES`.
        sequences: how many to train on; all are in each batch.
        training: `steps` and `lr`.
        checkpoints: a folder for the run's own.
    """
    end = RATES[cases[0]["rate"]].end
    how = {"rtol": TOLERANCE, "atol": TOLERANCE}
    models = [changed_model(case["rate"], case["weights"], change, **how) for case in cases]
    data = [draw_events(case["rate"], sequences, 2 * case["data"] + TRAIN) for case in cases]
    counts = torch.stack([on_grid(events, STEPS) for events in data]).float()
    times = torch.linspace(0, end, STEPS + 1, dtype=torch.float64)
    before = [float(trace(model, times).reach.max()) for model in models]

    # The sum: Adam sees each weight by itself, so every model is trained as if it were alone.
    many = ManyRates(models, end)
    settings = {"cases": [dict(case) for case in cases], "change": change, "sequences": sequences}
    label = f"{len(cases)} rates, {change}"
    fit_with_adam(
        many,
        lambda net, batch: -net.log_likelihood(batch).sum(),
        lambda step: counts,
        lambda net: {},
        training,
        settings,
        Path(__file__),
        label,
        checkpoints / f"{change}-{len(cases)}-{training['steps']}-{training['lr']}.pt".replace(" ", "-"),
    )
    many.unstacked(models)
    rows = [
        {
            **case,
            "excess": expected_excess(model, case["rate"]),
            "reach at start": reach,
            "reach": float(trace(model, times).reach.max()),
        }
        for case, model, reach in zip(cases, models, before, strict=True)
    ]
    return {".csv": csv_bytes(rows)}
