"""Training with Adam and a cosine schedule, as all models of notebooks 08 to 10 are."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from reproduction.training.loop import Fit, Row, fit

__all__ = ["fit_with_adam"]


def fit_with_adam(
    net: nn.Module,
    loss: Callable[[Any, Any], Tensor],
    batch: Callable[[int], Any],
    evaluate: Callable[[Any], Mapping[str, float]],
    training: Mapping[str, Any],
    settings: Mapping[str, Any],
    code: Path,
    label: str,
    checkpoint: Path | None = None,
    evaluations: int = 20,
) -> list[Row]:
    """Train in place; the learning rate falls from `lr` to zero like half a cosine.

    Args:
        net, loss, batch, evaluate, settings, code, label: see `Fit`.
        training: `steps` and `lr`, and what else identifies the training.
        checkpoint: see `fit`.
        evaluations: the history's number of rows, if there are as many steps.
    """
    optimizer = Adam(net.parameters(), lr=training["lr"])
    steps = training["steps"]
    task = Fit(
        model=net,
        loss=loss,
        batch=batch,
        optimizer=optimizer,
        scheduler=CosineAnnealingLR(optimizer, steps),
        steps=steps,
        epochs=min(evaluations, steps),
        evaluate=evaluate,
        settings={**settings, "training": dict(training)},
        code=code,
        label=label,
    )
    return fit(task, checkpoint)
