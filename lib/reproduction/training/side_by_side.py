"""Trainings of one task in turns, a step of each: what slows the machine down slows all of them alike."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from neural_ode.errors import NonFiniteError, SolverError
from neural_ode.solution import Statistics
from reproduction.training.loop import Fit, Row, Training, fit

__all__ = ["fit_side_by_side"]

COUNTS = ("forward", "backward")


def fit_side_by_side(
    models: Mapping[str, nn.Module],
    loss: Callable[[Any, Any], Tensor],
    batch: Callable[[int], Any],
    evaluate: Callable[[Any], Mapping[str, float]],
    training: Mapping[str, Any],
    settings: Mapping[str, Any],
    code: Path,
    label: str,
    checkpoint: Path | None = None,
) -> list[dict[str, Any]]:
    """Train models in place with Adam; the learning rate falls from `lr` to zero like half a cosine.

    A training whose solver fails, or whose loss or gradient is not finite, is given up, with the weights of before
    that step; the others go on.

    Args:
        models: by name; each is trained as if it were alone.
        loss, batch, evaluate, settings, code, label, checkpoint: see `Fit` and `fit`; the same for all.
        training: `steps`, `epochs`, `lr`, and what else identifies it.

    Returns:
        Rows of each model, by `name` and `epoch`: epoch 0 is before the first step, and one that was given up has
        no more after that. With the mean `loss` of the epoch's steps, what `evaluate` finds if no solve fails, and
        in all so far: `steps`, evaluations of the dynamics, `forward` and `backward`, and `seconds` of CPU time.
    """
    steps, epochs = training["steps"], training["epochs"]
    identity = {**settings, "models": list(models), "training": dict(training)}
    members = {}
    for name, model in models.items():
        optimizer = Adam(model.parameters(), lr=training["lr"])
        members[name] = _Member(
            model=model,
            loss=loss,
            batch=batch,
            optimizer=optimizer,
            scheduler=CosineAnnealingLR(optimizer, steps),
            steps=steps,
            epochs=epochs,
            evaluate=evaluate,
            settings=identity,
            code=code,
            label=f"{label}, {name}",
        )
    task = _SideBySide(steps=steps, epochs=epochs, settings=identity, code=code, label=label, members=members)
    fit(task, checkpoint)
    return [row for rows in task.rows.values() for row in rows]


@dataclass(frozen=True, kw_only=True)
class _Member(Fit):
    """A training that makes no step with numbers that are not finite."""

    def advance(self, done: int) -> tuple[int, Row]:
        """See `Fit.advance`."""
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(self.model, self.batch(done))
        torch.autograd.backward(loss)
        found = [loss, *(p.grad for p in self.model.parameters() if p.grad is not None)]
        if not all(bool(x.isfinite().all()) for x in found):
            raise NonFiniteError(f"the loss of {self.label} or its gradient is not finite at step {done}")
        self.optimizer.step()
        self.scheduler.step()
        # mypy takes what a module holds for a tensor or a module.
        stats: Statistics = self.model.stats  # type: ignore[assignment]
        backward = stats.backward.nfe if stats.backward is not None else 0
        return 1, {"loss": loss.item(), "forward": stats.nfe, "backward": backward}


@dataclass(frozen=True, kw_only=True)
class _SideBySide(Training):
    """A step of this training is one of each member that goes on.

    Attributes:
        members: trainings by name, of as many steps and epochs.
        rows: of the history of each.
        totals: of each so far: `steps`, evaluations, `seconds`; and the sum of `loss` in the epoch under way.
        given_up: names of those that do not go on.
    """

    members: Mapping[str, Fit]
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    totals: dict[str, Row] = field(default_factory=dict)
    given_up: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.members:
            self.totals[name] = dict.fromkeys(("steps", "loss", *COUNTS, "seconds"), 0)
            self.rows[name] = []
            self._close(name)

    def advance(self, done: int) -> tuple[int, Row]:
        """The mean `loss` of those that go on."""
        losses = []
        names = list(self.members)
        first = done % len(names)
        for name in (*names[first:], *names[:first]):  # whoever comes first finds cold caches
            if name in self.given_up:
                continue
            started = time.process_time()
            try:
                _, found = self.members[name].advance(done)
            except SolverError:
                self.given_up.append(name)
                continue
            totals = self.totals[name]
            totals["seconds"] += time.process_time() - started
            totals["steps"] += 1
            for key in ("loss", *COUNTS):
                totals[key] += found[key]
            losses.append(found["loss"])
        return 1, {"loss": sum(losses) / len(losses) if losses else math.nan}

    def at_end_of_epoch(self) -> Mapping[str, float]:
        """Nothing for the common history: each member has its own."""
        for name in self.members:
            if not self.rows[name][-1]["given up"]:
                self._close(name)
        return {}

    def _close(self, name: str) -> None:
        """A row for the epoch that ends."""
        rows, totals = self.rows[name], self.totals[name]
        steps = totals["steps"] - (rows[-1]["steps"] if rows else 0)
        mean = totals["loss"] / steps if steps else None
        try:
            found = self.members[name].at_end_of_epoch()
        except SolverError:
            found = {}
        row = {"name": name, "epoch": len(rows), "given up": name in self.given_up, "loss": mean, **found}
        rows.append({**row, **{key: value for key, value in totals.items() if key != "loss"}})
        totals["loss"] = 0

    def state_dict(self) -> dict[str, Any]:
        """Of all members, with their histories."""
        members = {name: member.state_dict() for name, member in self.members.items()}
        return {"members": members, "rows": self.rows, "totals": self.totals, "given_up": self.given_up}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Training`."""
        for name, member in self.members.items():
            member.load_state_dict(state["members"][name])
        self.rows.update(state["rows"])
        self.totals.update(state["totals"])
        self.given_up[:] = state["given_up"]
