"""Training and testing the classifiers of Table 1."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR, OneCycleLR

from neural_ode.errors import FileError, UnknownNameError
from reproduction.data.mnist import Mnist, ShuffledBatches, Split
from reproduction.models.mnist import mnist_net
from reproduction.training.loop import Fit, Row, fit, read_history
from reproduction.training.weights import load_weights, run_of, save_run

__all__ = [
    "TrainedClassifier",
    "classification_loss",
    "classifier_task",
    "error_rate",
    "learning_rate",
    "load_classifier",
    "train_classifier",
]


@dataclass(frozen=True)
class TrainedClassifier:
    """A trained network, the history of its training, and what identifies the run (`Fit.run`)."""

    model: nn.Module
    history: list[Row]
    run: str

    def save(self, folder: Path, name: str) -> None:
        """Write the weights, `<name>.safetensors`, and the history, `<name>.csv`."""
        save_run(self.model, self.history, folder, name, {"run": self.run})


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
    finished: Path | None = None,
) -> TrainedClassifier:
    """Train a row of Table 1.

    Trainings are long: seeds can be added to results that are there, without making those again.

    Args:
        name, seed, data, training, solver, device: see `classifier_task`.
        checkpoint: see `fit`.
        finished: weights that an earlier run may have saved, the history beside them. If it was this very run, of
            the same settings and code, they are loaded and nothing is trained.

    Raises:
        FileError: the weights, or the history that belongs to them, are damaged.
    """
    task = classifier_task(name, seed, data, training, solver, device)
    if finished is not None and finished.exists() and run_of(finished) == task.run:
        load_weights(task.model, finished)
        history = read_history(finished.with_suffix(".csv"))
        if len(history) != task.epochs:
            rows = f"{len(history)} rows for {task.epochs} epochs"
            raise FileError(f"{finished.with_suffix('.csv')} is damaged ({rows}): delete it and {finished.name}")
        return TrainedClassifier(task.model, history, task.run)
    return TrainedClassifier(task.model, fit(task, checkpoint), task.run)


def load_classifier(name: str, file: Path, **how: Any) -> nn.Module:
    """A network of Table 1 with the weights in `file`, in eval mode.

    Args:
        name: a name in `MNIST_MODELS`.
        file: as `TrainedClassifier.save` writes it.
        **how: keyword arguments of `neural_ode.solve`, for a network with an ODE block.

    Raises:
        UnknownNameError: no model has that name.
        WeightsError: see `load_weights`.
    """
    model = mnist_net(name, **how)
    load_weights(model, file)
    return model
