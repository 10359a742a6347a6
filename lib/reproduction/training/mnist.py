"""Training and testing the classifiers of Table 1."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR, OneCycleLR

from neural_ode.errors import UnknownNameError
from reproduction.data.mnist import Mnist, ShuffledBatches, Split, load_splits
from reproduction.models.mnist import mnist_net
from reproduction.training.loop import Fit, Row, fit
from reproduction.training.weights import load_weights, run_files

__all__ = [
    "classification_loss",
    "classifier_run",
    "classifier_task",
    "error_rate",
    "learning_rate",
    "load_classifier",
    "train_classifier",
]


def classification_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy of the logits, in nats."""
    images, labels = batch
    return F.cross_entropy(model(images), labels)


@torch.no_grad()
def error_rate(model: nn.Module, split: Split, batch_size: int = 500) -> float:
    """Percentage of the examples that are classified wrongly. The caller has put the model in eval mode."""
    device = next(model.parameters()).device
    wrong = 0
    batches = zip(torch.split(split.images, batch_size), torch.split(split.labels, batch_size), strict=True)
    for images, labels in batches:
        predicted = model(images.to(device, torch.float32) / 255).argmax(1)
        wrong += int((predicted != labels.to(device)).sum())
    return 100 * wrong / len(split.labels)


def learning_rate(schedule: str, optimizer: SGD, steps: int) -> LRScheduler:
    """How the learning rate goes over `steps` steps, from the peak that the optimizer was made with.

    Args:
        schedule: `"one-cycle"` (Smith 2018): up to the peak and down to nearly zero; for short trainings.
            `"stairs"`: the peak divided by 10 at 3/8, 5/8 and 7/8 of the training; of the paper's authors' later
            example (at 60, 100 and 140 of 160 epochs).
        optimizer: its learning rate is the peak.
        steps: of the whole training.

    Raises:
        UnknownNameError: there is no such schedule.
    """
    if schedule == "one-cycle":
        return OneCycleLR(optimizer, max_lr=optimizer.param_groups[0]["lr"], total_steps=steps + 1)
    if schedule == "stairs":
        return MultiStepLR(optimizer, [3 * steps // 8, 5 * steps // 8, 7 * steps // 8])
    raise UnknownNameError("schedule", schedule, ("one-cycle", "stairs"))


def classifier_task(
    name: str,
    seed: int,
    data: Mnist,
    training: Mapping[str, Any],
    solver: Mapping[str, Any],
    device: str | torch.device = "cpu",
) -> Fit:
    """How a row of Table 1 is trained: with SGD.

    The learning rate goes up and down once, and the momentum the other way, between 0.95 and 0.85: the default of
    `OneCycleLR`.

    Args:
        name: a name in `reproduction.models.MNIST_MODELS`.
        seed: decides the initial weights, the order of the examples and their shifts.
        data: the splits; the test split is not looked at.
        training: `epochs`, `batch_size`, `peak_lr`, `schedule` (see `learning_rate`), `max_shift` (pixels).
        solver: for RK-Net and ODE-Net, keyword arguments of `neural_ode.solve`.
        device: where to train.
    """
    torch.manual_seed(seed)
    model = mnist_net(name, **solver).to(device)
    batches = ShuffledBatches(data.train, training["batch_size"], seed, training["max_shift"], device)
    optimizer = SGD(model.parameters(), lr=training["peak_lr"], momentum=0.9)  # cycled
    steps = training["epochs"] * batches.steps_per_epoch
    return Fit(
        model=model,
        loss=classification_loss,
        batch=batches,
        optimizer=optimizer,
        scheduler=learning_rate(training["schedule"], optimizer, steps),
        steps=steps,
        epochs=training["epochs"],
        evaluate=lambda trained: {"validation_error": error_rate(trained, data.validation)},
        settings={
            "model": name,
            "seed": seed,
            "training": dict(training),
            "solver": dict(solver),
            "train": len(data.train.labels),
            "validation": len(data.validation.labels),
            "device": str(device),
        },
        code=Path(__file__),
        label=f"{name}, seed {seed}",
    )


def train_classifier(
    name: str,
    seed: int,
    data: Mnist,
    training: Mapping[str, Any],
    solver: Mapping[str, Any],
    device: str | torch.device = "cpu",
    checkpoint: Path | None = None,
) -> tuple[nn.Module, list[Row]]:
    """Train a row of Table 1; the network and the history of its training.

    Args:
        name, seed, data, training, solver, device: see `classifier_task`.
        checkpoint: see `fit`.
    """
    task = classifier_task(name, seed, data, training, solver, device)
    return task.model, fit(task, checkpoint)


def classifier_run(
    *,
    network: str,
    seed: int,
    training: Mapping[str, Any],
    solver: Mapping[str, Any],
    train_size: int | None,
    validation_size: int | None,
    data: Path,
    device: str | torch.device,
    checkpoints: Path,
) -> dict[str, bytes]:
    """`train_classifier` as a run of `reproduction.results`.

    Args:
        network: a name in `reproduction.models.MNIST_MODELS`.
        seed, training, solver, device: see `classifier_task`.
        train_size, validation_size: how many examples of these splits, all for `None`.
        data: the folder of MNIST.
        checkpoints: a folder for the run's own.
    """
    splits = load_splits(data, [train_size, validation_size, None])
    file = checkpoints / f"{network}-{seed}.pt"
    return run_files(*train_classifier(network, seed, splits, training, solver, device, file))


def load_classifier(name: str, file: Path, **how: Any) -> nn.Module:
    """A network of Table 1 with the weights in `file`, in eval mode.

    Args:
        name: a name in `MNIST_MODELS`.
        file: as `run_files` makes it.
        **how: keyword arguments of `neural_ode.solve`, for a network with an ODE block.

    Raises:
        UnknownNameError: no model has that name.
        WeightsError: see `load_weights`.
    """
    model = mnist_net(name, **how)
    load_weights(model, file)
    return model
