"""Notebook 04: the classifiers of Table 1, what they err and what a training step of theirs costs."""

import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from neural_ode.errors import needs
from reproduction.data.mnist import load_splits
from reproduction.measure.memory import bytes_kept
from reproduction.measure.timing import seconds_of
from reproduction.progress import tqdm
from reproduction.results import Run, csv_bytes
from reproduction.training.mnist import classification_loss, classifier_run, error_rate, load_classifier
from reproduction.training.multistep import multistep_run
from reproduction.workspace import Workspace, choose_device

with needs("notebooks"):
    import pandas as pd

__all__ = ["NOTEBOOK", "Results", "StepCost", "network_points", "recipe", "results", "step_costs"]

NOTEBOOK = "04_mnist"


class Results(NamedTuple):
    """What notebook 04 shows.

    Attributes:
        errors: a row for each trained network: `network`, `seed`, `test error (%)`, and the last epoch of its
            training.
        history: a row for each epoch of each of them.
        costs: of a training step by network: `bytes_kept`, `seconds`; see `StepCost`.
        multistep: a row for each epoch of each ODE-Net that was trained with a multistep method.
    """

    errors: pd.DataFrame
    history: pd.DataFrame
    costs: pd.DataFrame
    multistep: pd.DataFrame


def results(
    work: Workspace,
    *,
    models: Sequence[str],
    seeds: Sequence[int],
    more_seeds: Mapping[str, Sequence[int]],
    train_size: int | None,
    validation_size: int | None,
    test_size: int | None,
    epochs: int,
    batch_size: int,
    peak_lr: float,
    schedule: str,
    max_shift: int,
    method: str,
    tolerance: float,
    cost_batch: int,
    cost_rounds: int,
    multistep: str,
    multistep_epochs: int,
    multistep_seeds: Sequence[int],
    device: str,
) -> Results:
    """Train every network with every seed, test it, and measure a training step; what is there is read.

    Args:
        work: of the notebook.
        models: names in `reproduction.models.MNIST_MODELS`.
        seeds: of the trainings.
        more_seeds: further ones, by model.
        train_size, validation_size, test_size: examples of each split, all for `None`.
        epochs, batch_size, peak_lr, schedule, max_shift: see `reproduction.training.mnist.classifier_task`.
        method, tolerance: of the solves.
        cost_batch, cost_rounds: images in the step that is measured, and how often it is timed.
        multistep, multistep_epochs, multistep_seeds: a solver of `neural_ode.ScipySolver` that ODE-Nets are trained
            with, for how long, and their seeds.
        device: where to train.
    """
    how_trained = recipe(epochs, batch_size, peak_lr, schedule, max_shift, method, tolerance)
    solver = how_trained["solver"]
    sizes = {"train_size": train_size, "validation_size": validation_size}
    points = network_points(models, seeds, more_seeds, {**how_trained, **sizes})
    data, where = work.root / "data" / "mnist", choose_device(device)
    checkpoints = work.store.checkpoints
    how: dict[str, Any] = {"data": data, "device": where}
    trained = work.store.obtain(classifier_run, points, label="networks", checkpoints=checkpoints, **how)

    def measured(name: str) -> dict[str, Any]:
        return {"network": points[name]["network"], "weights": trained[name].identity(".safetensors")}

    tests = work.store.obtain(
        _test_error,
        {f"test_errors/{name}": {**measured(name), "solver": solver, "test_size": test_size} for name in trained},
        label="test errors",
        runs={trained[name].identity(".safetensors"): trained[name] for name in trained},
        **how,
    )
    first = [name for name in trained if points[name]["seed"] == seeds[0]]
    setting = {"networks": [measured(name) for name in first], "solver": solver}
    (costs,) = work.store.obtain(
        _costs,
        {"step_costs": {**setting, "batch": cost_batch, "rounds": cost_rounds}},
        label="training steps",
        alone=True,
        runs={trained[name].identity(".safetensors"): trained[name] for name in first},
        **how,
    ).values()
    otherwise: dict[str, Any] = {"multistep": multistep, "tolerance": tolerance, **sizes}
    otherwise["training"] = {**how_trained["training"], "epochs": multistep_epochs}
    retrained = work.store.obtain(
        multistep_run,
        {f"{multistep}-{seed}": {"seed": seed, **otherwise} for seed in multistep_seeds},
        label="trainings with a multistep method",
        checkpoints=checkpoints,
        **how,
    )

    rows, histories = [], []
    for name, run in trained.items():
        own = {"network": points[name]["network"], "seed": points[name]["seed"]}
        history = run.table()
        error = tests[f"test_errors/{name}"].table()["test error (%)"].iloc[0]
        rows.append(own | {"test error (%)": error} | history.iloc[-1].to_dict())
        histories.append(history.assign(**own))
    multistep_rows = [
        run.table().assign(seed=seed) for seed, run in zip(multistep_seeds, retrained.values(), strict=True)
    ]
    return Results(
        pd.DataFrame(rows),
        pd.concat(histories),
        costs.table().set_index("network"),
        pd.concat(multistep_rows),
    )


def recipe(
    epochs: int, batch_size: int, peak_lr: float, schedule: str, max_shift: int, method: str, tolerance: float
) -> dict[str, dict[str, Any]]:
    """What all networks have in common: the arguments `training` and `solver` of `classifier_task`."""
    training: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "peak_lr": peak_lr}
    training |= {"schedule": schedule, "max_shift": max_shift}
    return {"training": training, "solver": {"method": method, "rtol": tolerance, "atol": tolerance}}


def network_points(
    models: Sequence[str],
    seeds: Sequence[int],
    more_seeds: Mapping[str, Sequence[int]],
    common: Mapping[str, Any],
) -> dict[str, dict[str, Any]]:
    """The settings of every network with every seed of its own, by the name of its run."""
    return {
        f"{name.replace(' ', '-')}-{seed}": {"network": name, "seed": seed, **common}
        for name in models
        for seed in [*seeds, *more_seeds.get(name, ())]
    }


def _test_error(
    *,
    network: str,
    weights: str,
    solver: Mapping[str, Any],
    test_size: int | None,
    runs: Mapping[str, Run],
    data: Path,
    device: torch.device,
) -> dict[str, bytes]:
    """The test images are looked at here, and nowhere before."""
    model = load_classifier(network, runs[weights].file(".safetensors"), **solver).to(device)
    error = error_rate(model, load_splits(data, [None, None, test_size]).test)
    return {".csv": csv_bytes([{"test error (%)": error}])}


def _costs(
    *,
    networks: Sequence[Mapping[str, str]],
    solver: Mapping[str, Any],
    batch: int,
    rounds: int,
    runs: Mapping[str, Run],
    data: Path,
    device: torch.device,
) -> dict[str, bytes]:
    images, labels = load_splits(data, [None, None, batch]).test
    models = {
        one["network"]: load_classifier(one["network"], runs[one["weights"]].file(".safetensors"), **solver).to(
            device
        )
        for one in networks
    }
    found = step_costs(models, images.float() / 255, labels, rounds)
    return {".csv": csv_bytes([{"network": name, **cost._asdict()} for name, cost in found.items()])}


class StepCost(NamedTuple):
    """Memory and time of a training step.

    Attributes:
        bytes_kept: what the forward pass keeps for the backward pass, beside images and parameters.
        seconds: forward and backward, the median of some.
    """

    bytes_kept: int
    seconds: float


def step_costs(models: Mapping[str, nn.Module], images: Tensor, labels: Tensor, rounds: int) -> dict[str, StepCost]:
    """Measure the networks in turn, so that whatever else the machine does weighs on all of them.

    Args:
        models: by name, all on one device; their gradients are overwritten.
        images: float32, shape (n, 1, 28, 28).
        labels: shape (n,).
        rounds: how often each is timed.
    """
    device = next(iter(next(iter(models.values())).parameters())).device
    batch = images.to(device), labels.to(device)
    kept = {
        name: bytes_kept(partial(classification_loss, model, batch), [*batch, *model.parameters()])
        for name, model in models.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in tqdm(range(rounds), desc="training steps", unit="round"):
        for name, model in models.items():
            seconds[name].append(seconds_of(partial(_train_once, model, batch), device))
            model.zero_grad()
    return {name: StepCost(kept[name], statistics.median(seconds[name])) for name in models}


def _train_once(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    torch.autograd.backward(classification_loss(model, batch))
