"""The one training loop."""

import csv
import io
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from neural_ode.errors import FileError, InvalidArgumentError, NonFiniteError
from neural_ode.solution import Statistics
from reproduction.files import read_text
from reproduction.progress import tqdm
from reproduction.training.checkpoint import fingerprint, load_checkpoint, save_checkpoint

__all__ = ["Fit", "Row", "Training", "fit", "history_csv", "read_history"]

Row = dict[str, float]
"""One epoch of the history."""

SECONDS_BETWEEN_CHECKPOINTS = 30.0

EMPTY = ["epoch"]
"""The columns of a history without rows."""


@dataclass(frozen=True, kw_only=True)
class Training(ABC):
    """What the loop trains.

    Attributes:
        steps: how many are made.
        epochs: into how many parts of equal length they fall, up to a step where they cannot be equal.
        settings: everything that identifies the run; a checkpoint made under other settings is not resumed.
        code: the module that defines the run; neither is a checkpoint of other code.
        label: name in the progress bar.

    Raises:
        InvalidArgumentError: there is no step, no epoch, or an epoch without a step.
    """

    steps: int
    epochs: int
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

    @abstractmethod
    def advance(self, done: int) -> tuple[int, Row]:
        """Go on after `done` steps, not beyond the end of the epoch.

        Returns:
            How many steps were made, and the sums over them of what the history gives the means of.

        Raises:
            NonFiniteError: the training diverged.
        """

    @abstractmethod
    def at_end_of_epoch(self) -> Mapping[str, float]:
        """Further numbers for the history."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to hold, for `load_state_dict`; see `pack` for what can be held."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Be where the training was when `state_dict` was called; other entries of `state` are not looked at."""


@dataclass(frozen=True, kw_only=True)
class Fit(Training):
    """Descent along the gradient that autograd finds, one step a batch.

    Attributes:
        model: trained in place.
        loss: maps the model and a batch to a tensor of shape ().
        batch: gives the batch of a step by its number, always the same one.
        optimizer: over the parameters of the model.
        scheduler: stepped after every step of the optimizer.
        evaluate: called after every epoch; its numbers go into the history.
    """

    model: nn.Module
    loss: Callable[[nn.Module, Any], Tensor]
    batch: Callable[[int], Any]
    optimizer: Optimizer
    scheduler: LRScheduler
    evaluate: Callable[[nn.Module], Mapping[str, float]]

    def advance(self, done: int) -> tuple[int, Row]:
        """One step; its `loss`, `nfe_forward` and `nfe_backward`, which are 0 for a model that solves nothing.

        Raises:
            NonFiniteError: the loss became NaN or infinite.
        """
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(self.model, self.batch(done))
        torch.autograd.backward(loss)
        self.optimizer.step()
        self.scheduler.step()
        value = loss.item()
        if not abs(value) < float("inf"):
            raise NonFiniteError(f"the loss of {self.label} is {value} at step {done}: lower the learning rate")
        stats: Statistics = getattr(self.model, "stats", None) or Statistics()
        backward = stats.backward.nfe if stats.backward is not None else 0
        return 1, {"loss": value, "nfe_forward": stats.nfe, "nfe_backward": backward}

    def at_end_of_epoch(self) -> Mapping[str, float]:
        """What `evaluate` finds; the model is in eval mode."""
        self.model.eval()
        with torch.no_grad():
            return self.evaluate(self.model)

    def state_dict(self) -> dict[str, Any]:
        """Of the model, the optimizer and the scheduler."""
        return {name: getattr(self, name).state_dict() for name in ("model", "optimizer", "scheduler")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The model is in eval mode then."""
        for name in ("model", "optimizer", "scheduler"):
            getattr(self, name).load_state_dict(state[name])
        self.model.eval()


def fit(task: Training, checkpoint: Path | None = None) -> list[Row]:
    """Train, and return a row of history for each epoch.

    Killed at any moment and called again with the same `checkpoint`, it goes on where it was and, on a CPU, ends
    with the same weights bit for bit: a batch is a function of the step's number, and the checkpoint holds the
    rest (what `task.state_dict` gives, random state, history). A finished run's checkpoint makes it return at
    once.

    Args:
        task: the training run.
        checkpoint: the file, written every half minute and after every epoch; `None` for no checkpoints.

    Returns:
        Rows with `epoch`, the means of what `task.advance` gives over the steps of the epoch, of which the `loss`
        comes first, the numbers of its evaluation, and `seconds` (spent training since the beginning, interruptions
        left out).

    Raises:
        NonFiniteError: the training diverged.
    """
    run = task.run
    progress = _Progress()
    if checkpoint is not None and (saved := load_checkpoint(checkpoint, run)) is not None:
        task.load_state_dict(saved)
        progress = _Progress(**saved["progress"])

    def save() -> None:
        if checkpoint is not None:
            save_checkpoint(checkpoint, run, {**task.state_dict(), "progress": vars(progress)})

    with tqdm(total=task.steps, initial=progress.step, desc=task.label, unit="step", dynamic_ncols=True) as bar:
        started = time.monotonic() - progress.seconds
        saved_at = time.monotonic()
        while progress.step < task.steps:
            made, sums = task.advance(progress.step)
            progress.count(made, sums)
            progress.seconds = time.monotonic() - started
            bar.update(made)
            bar.set_postfix(progress.summary(task.epochs), refresh=False)
            finished = len(progress.history)
            if progress.step == task.end_of(finished + 1):
                numbers = task.at_end_of_epoch()
                progress.seconds = time.monotonic() - started
                progress.close_epoch(progress.step - task.end_of(finished), numbers)
            elif time.monotonic() - saved_at < SECONDS_BETWEEN_CHECKPOINTS:
                continue
            save()
            saved_at = time.monotonic()
        bar.set_postfix(progress.summary(task.epochs))
    return progress.history


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
        self.sums: Row = sums or {}
        self.history: list[Row] = history or []

    def count(self, made: int, sums: Row) -> None:
        self.step += made
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def close_epoch(self, steps: int, numbers: Mapping[str, float]) -> None:
        means = {name: value / steps for name, value in self.sums.items()}
        loss = {name: means.pop(name) for name in ("loss",) if name in means}
        self.history.append({"epoch": len(self.history) + 1, **loss, **numbers, **means, "seconds": self.seconds})
        self.sums = {}

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
