"""The one training loop."""

import csv
import io
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from neural_ode.errors import FileError, InvalidArgumentError, NonFiniteError, needs
from neural_ode.solution import Statistics
from reproduction.files import read_text
from reproduction.training.checkpoint import fingerprint, load_checkpoint, save_checkpoint

with needs("notebooks"):
    from tqdm import tqdm

__all__ = ["Fit", "Row", "fit", "history_csv", "read_history"]

Row = dict[str, float]
"""One epoch of the history."""

SECONDS_BETWEEN_CHECKPOINTS = 30.0

EMPTY = ["epoch"]
"""The columns of a history without rows."""


@dataclass(frozen=True)
class Fit:
    """What is trained, on what, and how.

    Attributes:
        model: trained in place.
        loss: maps the model and a batch to a tensor of shape ().
        batch: gives the batch of a step by its number, always the same one.
        optimizer: over the parameters of the model.
        scheduler: stepped after every step of the optimizer.
        steps: how many are made.
        epochs: into how many parts of equal length they fall, up to a step where they cannot be equal.
        evaluate: called after every epoch; its numbers go into the history.
        settings: everything that identifies the run; a checkpoint made under other settings is not resumed.
        code: the module that defines the run; neither is a checkpoint of other code.
        label: name in the progress bar.

    Raises:
        InvalidArgumentError: there is no step, no epoch, or an epoch without a step.
    """

    model: nn.Module
    loss: Callable[[nn.Module, Any], Tensor]
    batch: Callable[[int], Any]
    optimizer: Optimizer
    scheduler: LRScheduler
    steps: int
    epochs: int
    evaluate: Callable[[nn.Module], Mapping[str, float]]
    settings: Mapping[str, Any]
    code: Path
    label: str

    def __post_init__(self) -> None:
        if not 0 < self.epochs <= self.steps:
            raise InvalidArgumentError(
                f"{self.label}: a training needs one epoch or more, and a step for each, got steps={self.steps}, "
                f"epochs={self.epochs}"
            )

    def end_of(self, epoch: int) -> int:
        """How many steps are made when so many epochs are finished."""
        return self.steps * epoch // self.epochs

    @property
    def run(self) -> str:
        """Identifies the run by its settings and code; see `fingerprint`."""
        return fingerprint(self.settings, self.code)


def fit(task: Fit, checkpoint: Path | None = None) -> list[Row]:
    """Train, and return a row of history for each epoch.

    Killed at any moment and called again with the same `checkpoint`, it goes on where it was and, on a CPU, ends
    with the same weights bit for bit: a batch is a function of the step's number, and the checkpoint holds the
    rest (weights, optimizer, scheduler, random state, history). A finished run's checkpoint makes it return at
    once.

    Args:
        task: the training run.
        checkpoint: the file, written every half minute and after every epoch; `None` for no checkpoints.

    Returns:
        Rows with `epoch`, `loss` (mean over the epoch), the numbers of `evaluate`, `nfe_forward` and
        `nfe_backward` (mean over the steps of the epoch; 0 for a model that solves nothing), `seconds` (spent
        training since the beginning, interruptions left out).

    Raises:
        NonFiniteError: the loss became NaN or infinite.
    """
    run = task.run
    progress = _Progress()
    if checkpoint is not None and (saved := load_checkpoint(checkpoint, run)) is not None:
        task.model.load_state_dict(saved["model"])
        task.optimizer.load_state_dict(saved["optimizer"])
        task.scheduler.load_state_dict(saved["scheduler"])
        progress = _Progress(**saved["progress"])

    def save() -> None:
        if checkpoint is not None:
            save_checkpoint(
                checkpoint,
                run,
                {
                    "model": task.model.state_dict(),
                    "optimizer": task.optimizer.state_dict(),
                    "scheduler": task.scheduler.state_dict(),
                    "progress": vars(progress),
                },
            )

    with tqdm(total=task.steps, initial=progress.step, desc=task.label, unit="step", dynamic_ncols=True) as bar:
        started = time.monotonic() - progress.seconds
        saved_at = time.monotonic()
        while progress.step < task.steps:
            task.model.train()
            loss = _one_step(task, progress.step)
            stats: Statistics | None = getattr(task.model, "stats", None)
            progress.count(loss, stats)
            progress.seconds = time.monotonic() - started
            bar.update()
            bar.set_postfix(progress.summary(task.epochs), refresh=False)
            finished = len(progress.history)
            if progress.step == task.end_of(finished + 1):
                task.model.eval()
                with torch.no_grad():
                    numbers = task.evaluate(task.model)
                progress.seconds = time.monotonic() - started
                progress.close_epoch(progress.step - task.end_of(finished), numbers)
            elif time.monotonic() - saved_at < SECONDS_BETWEEN_CHECKPOINTS:
                continue
            save()
            saved_at = time.monotonic()
        bar.set_postfix(progress.summary(task.epochs))
    task.model.eval()
    return progress.history


def _one_step(task: Fit, step: int) -> float:
    task.optimizer.zero_grad(set_to_none=True)
    loss = task.loss(task.model, task.batch(step))
    torch.autograd.backward(loss)
    task.optimizer.step()
    task.scheduler.step()
    value = loss.item()
    if not abs(value) < float("inf"):
        raise NonFiniteError(f"the loss of {task.label} is {value} at step {step}: lower the learning rate")
    return value


class _Progress:
    """How far the run is: what a checkpoint needs besides the weights."""

    def __init__(
        self,
        step: int = 0,
        seconds: float = 0.0,
        sums: Row | None = None,
        history: list[Row] | None = None,
    ):
        self.step = step
        self.seconds = seconds
        self.sums: Row = sums or {"loss": 0.0, "nfe_forward": 0.0, "nfe_backward": 0.0}
        self.history: list[Row] = history or []

    def count(self, loss: float, stats: Statistics | None) -> None:
        self.step += 1
        self.sums["loss"] += loss
        if stats is not None:
            self.sums["nfe_forward"] += stats.nfe
            self.sums["nfe_backward"] += stats.backward.nfe if stats.backward is not None else 0

    def close_epoch(self, steps: int, numbers: Mapping[str, float]) -> None:
        means = {name: value / steps for name, value in self.sums.items()}
        loss = means.pop("loss")
        self.history.append(
            {"epoch": len(self.history) + 1, "loss": loss, **numbers, **means, "seconds": self.seconds}
        )
        self.sums = dict.fromkeys(self.sums, 0.0)

    def summary(self, epochs: int) -> dict[str, str]:
        """For the progress bar: the epoch under way, and the last finished one's numbers."""
        shown = {"epoch": f"{min(len(self.history) + 1, epochs)}/{epochs}"}
        if self.history:
            shown |= {
                name: f"{value:.3g}"
                for name, value in self.history[-1].items()
                if name not in ("epoch", "seconds") and not (name.startswith("nfe") and value == 0)
            }
        return shown


def history_csv(history: list[Row]) -> str:
    """The rows as CSV text, a header first."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(history[0]) if history else EMPTY, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()


def read_history(file: Path) -> list[Row]:
    """The rows of a file with the text of `history_csv`.

    Raises:
        FileError: it is missing or damaged: without the line of names or without rows, unless it says that there
            were none, or with a row that does not fit.
    """
    remedy = "restore it, or delete it and the weights beside it and train again"
    first, *others = list(csv.reader(io.StringIO(read_text(file, remedy)))) or [[]]
    if not first or not (others or first == EMPTY):
        raise FileError(f"{file} is damaged (it holds no history): {remedy}")
    try:
        return [
            {name: int(value) if value.isdigit() else float(value) for name, value in zip(first, row, strict=True)}
            for row in others
        ]
    except ValueError as error:
        raise FileError(f"{file} is damaged ({error}): {remedy}") from error
