"""Notebook 10: the learned rates of events, and how good the true ones are."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from neural_ode.errors import needs
from reproduction.data.events import draw_events
from reproduction.experiments.stuck_rates import study
from reproduction.models.joint import JointModel
from reproduction.results import csv_bytes
from reproduction.sweep import Point
from reproduction.training.poisson import (
    TEST,
    RateModel,
    joint_run,
    load_joint,
    load_rate,
    rate_run,
    true_log_likelihood,
)
from reproduction.workspace import Workspace, choose_device

with needs("notebooks"):
    import pandas as pd

__all__ = ["Results", "results"]


class Results(NamedTuple):
    """What notebook 10 shows.

    Attributes:
        rates: a row for each rate and seed: `rate`, `seed`, the end of the training (see `train_rate`), and `true`:
            the negative log-likelihood of a test sequence under the true rate, in nats.
        joint: a row for each seed of the joint model: `seed`, and the end of the training (see `train_joint`).
        models: of rates, by rate and seed.
        joint_model: of the first seed.
        study: trials of what makes a rate stick; see `reproduction.experiments.stuck_rates.study`.
    """

    rates: pd.DataFrame
    joint: pd.DataFrame
    models: dict[tuple[str, int], RateModel]
    joint_model: JointModel
    study: pd.DataFrame


def results(
    work: Workspace,
    *,
    rates: Sequence[str],
    seeds: Sequence[int],
    sequences: int,
    test_sequences: int,
    batch_size: int,
    lr: float,
    steps: int,
    tolerance: float,
    joint_seeds: Sequence[int],
    joint_series: int,
    joint_test_series: int,
    joint_batch_size: int,
    joint_steps: int,
    joint_noise: float,
    study_rate: str,
    study_seeds: Sequence[int],
    study_steps: int,
    device: str,
) -> Results:
    """Learn every rate and the joint model with every seed; what is there is read.

    Args:
        work: of the notebook.
        rates: names in `reproduction.data.events.RATES`.
        seeds: of data and trainings.
        sequences, test_sequences: of events, to train and to test on.
        batch_size, steps: see `train_rate`.
        lr: the peak of the learning rate, also for the joint model.
        tolerance: of the solves, relative and absolute.
        joint_seeds: of data and trainings of the joint model.
        joint_series, joint_test_series: of the joint model, to train and to test on.
        joint_batch_size, joint_steps, joint_noise: see `train_joint`.
        study_rate, study_seeds, study_steps: what the study is of; it has the other sizes in common with the rates.
        device: where to train; the study is on the CPU.
    """
    solver = {"rtol": tolerance, "atol": tolerance}
    how: dict[str, Any] = {"device": choose_device(device), "checkpoints": work.store.checkpoints}
    keys = {f"{rate.replace(' ', '-')}-{seed}": (rate, seed) for rate in rates for seed in seeds}
    own = {name: {"rate": rate, "seed": seed} for name, (rate, seed) in keys.items()}
    training = {"steps": steps, "batch_size": batch_size, "lr": lr}
    common = {"sequences": sequences, "test_sequences": test_sequences, "training": training, "solver": solver}
    points: dict[str, Point] = {name: {**one, **common} for name, one in own.items()}
    trained = work.store.obtain(rate_run, points, label="rates", **how)
    measured: dict[str, Point] = {
        f"true_likelihoods/{name}": {**one, "test_sequences": test_sequences} for name, one in own.items()
    }
    truths = work.store.obtain(_true_likelihood, measured, label="true rates")
    rows = [
        {
            **one,
            "true": truths[f"true_likelihoods/{name}"].table()["true"].iloc[0],
            **trained[name].table().iloc[-1].to_dict(),
        }
        for name, one in own.items()
    ]

    joint_training = {"steps": joint_steps, "batch_size": joint_batch_size, "lr": lr}
    joint_points: dict[str, Point] = {
        f"joint-{seed}": {
            "seed": seed,
            "series": joint_series,
            "test_series": joint_test_series,
            "noise": joint_noise,
            "training": joint_training,
            "solver": solver,
        }
        for seed in joint_seeds
    }
    joint = work.store.obtain(joint_run, joint_points, label="joint models", **how)
    trials = study(
        work.store,
        rate=study_rate,
        rates=rates,
        seeds=study_seeds,
        sequences=sequences,
        steps=study_steps,
        lr=lr,
    )
    return Results(
        pd.DataFrame(rows),
        pd.DataFrame([{"seed": s, **joint[f"joint-{s}"].table().iloc[-1].to_dict()} for s in joint_seeds]),
        {key: load_rate(key[0], trained[name].file(".safetensors"), **solver) for name, key in keys.items()},
        load_joint(joint_noise, joint[f"joint-{joint_seeds[0]}"].file(".safetensors"), **solver),
        trials,
    )


def _true_likelihood(*, rate: str, seed: int, test_sequences: int) -> dict[str, bytes]:
    test = draw_events(rate, test_sequences, 2 * seed + TEST)
    return {".csv": csv_bytes([{"true": -float(true_log_likelihood(rate, test).mean())}])}
