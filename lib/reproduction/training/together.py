"""Training several small models at once: their losses are summed, and nothing else is shared.

See `reproduction.models.stacked`. Adam works on each number alone, so each model goes its own way; only the steps
of an adaptive solver are in common, and serve the model that needs the shortest ones.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import LambdaLR

from neural_ode.errors import InvalidArgumentError, NonFiniteError
from neural_ode.solution import Statistics
from reproduction.models.stacked import stack, unstack
from reproduction.training.loop import Fit, Row, fit

__all__ = ["SCHEDULES", "train_together"]

SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda share: float(0.5 * (1 + torch.cos(torch.tensor(torch.pi * share)))),
    "constant": lambda share: 1.0,
}
"""The learning rate over its peak, by the share of the steps that are made."""


def train_together(
    models: Sequence[nn.Module],
    loss: Callable[[Any, Any], Tensor],
    batch: Callable[[int], Any],
    evaluate: Callable[[Any, int], Mapping[str, float]],
    training: Mapping[str, Any],
    settings: Mapping[str, Any],
    code: Path,
    label: str,
    checkpoint: Path | None = None,
    device: str | torch.device = "cpu",
    evaluations: int = 20,
) -> list[list[Row]]:
    """Train models in place with Adam.

    Args:
        models: of one class and shape, on the CPU, where they are again at the end, in eval mode.
        loss: maps the stacked models and a batch to the loss of each, shape (models,).
        batch: gives the batch of a step by its number, for all models.
        evaluate: maps one model, and its number, to numbers for its history.
        training: `steps`, `lr` (the peak) and perhaps the name of a `schedule`, `cosine` if there is none; and what
            else identifies the training.
        settings, code, label: see `Training`.
        checkpoint: see `fit`.
        device: where to train.
        evaluations: rows of a history, if there are as many steps.

    Returns:
        The history of each model: rows as `fit` gives them. `seconds` are its share of the time of all.

    Raises:
        InvalidArgumentError: there is no such schedule.
        NonFiniteError: the loss of a model became NaN or infinite.
    """
    schedule = training.get("schedule", "cosine")
    if schedule not in SCHEDULES:
        raise InvalidArgumentError(f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}")
    steps = training["steps"]
    stacked = stack(models).to(device)
    optimizer = Adam(stacked.parameters(), lr=training["lr"])

    def evaluate_all() -> list[Mapping[str, float]]:
        return [evaluate(_unstacked(stacked, model, k), k) for k, model in enumerate(models)]

    task = _Together(
        model=stacked,
        loss=loss,
        batch=batch,
        optimizer=optimizer,
        scheduler=LambdaLR(optimizer, lambda step: SCHEDULES[schedule](step / steps)),
        steps=steps,
        epochs=min(evaluations, steps),
        evaluate=lambda _: {},
        evaluate_all=evaluate_all,
        settings={**settings, "training": dict(training)},
        code=code,
        label=label,
        sums=torch.zeros(len(models), dtype=torch.float64),
    )
    shared = fit(task, checkpoint)
    for k, model in enumerate(models):
        _unstacked(stacked, model, k)
    return [
        [_row(together, own[k], len(models)) for together, own in zip(shared, task.rows, strict=True)]
        for k in range(len(models))
    ]


def _unstacked(stacked: nn.Module, model: nn.Module, k: int) -> nn.Module:
    """The model with its weights of now, in eval mode."""
    model.load_state_dict(unstack(stacked.state_dict(), k))
    return model.eval()


def _row(together: Row, own: Row, models: int) -> Row:
    epoch, seconds = together["epoch"], together["seconds"] / models
    nfe = {name: value for name, value in together.items() if name.startswith("nfe")}
    return {"epoch": epoch, **own, **nfe, "seconds": seconds}


@dataclass(frozen=True, kw_only=True)
class _Together(Fit):
    """Stacked models with a loss each.

    Attributes:
        evaluate_all: called after every epoch; numbers for the history of each model.
        sums: of the losses since the last epoch, shape (models,).
        rows: of the history of each model, by epoch.
    """

    evaluate_all: Callable[[], list[Mapping[str, float]]]
    sums: Tensor
    rows: list[list[Row]] = field(default_factory=list)

    def advance(self, done: int) -> tuple[int, Row]:
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.loss(self.model, self.batch(done))
        torch.autograd.backward(losses.sum())
        self.optimizer.step()
        self.scheduler.step()
        values = losses.detach().double().cpu()
        if not values.isfinite().all():
            raise NonFiniteError(
                f"a loss of {self.label} is not finite at step {done}, {values.tolist()}: lower the learning rate"
            )
        self.sums.add_(values)
        stats: Statistics = getattr(self.model, "stats", None) or Statistics()
        backward = stats.backward.nfe if stats.backward is not None else 0
        return 1, {"loss": float(values.mean()), "nfe_forward": stats.nfe, "nfe_backward": backward}

    def at_end_of_epoch(self) -> Mapping[str, float]:
        number = self.end_of(len(self.rows) + 1) - self.end_of(len(self.rows))
        found = self.evaluate_all()
        self.rows.append(
            [{"loss": loss, **own} for loss, own in zip((self.sums / number).tolist(), found, strict=True)]
        )
        self.sums.zero_()
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "sums": self.sums, "rows": self.rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.sums.copy_(state["sums"])
        self.rows[:] = state["rows"]
