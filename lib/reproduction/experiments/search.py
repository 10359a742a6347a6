"""The search for how to train: what the paper leaves unstated is found by trial, the same way for all models."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from neural_ode.errors import NonFiniteError, SolverError

__all__ = ["first_stable", "ranked"]

C = TypeVar("C")
T = TypeVar("T")


def ranked(
    candidates: Mapping[str, Sequence[C]], trial: Callable[[str, C], Mapping[str, float]]
) -> tuple[dict[str, list[C]], list[dict[str, Any]]]:
    """The candidates of each model, those whose trials have the lowest mean loss first.

    Args:
        candidates: such as learning rates, for each model; a model with one candidate needs no trial.
        trial: the losses that a model reaches with a candidate, by name. One that diverges, so that a loss is not
            finite or a solve fails, counts as infinite loss.

    Returns:
        The candidates by model, and a row for each trial: `model`, `candidate`, the losses and their `mean`.
    """
    order, rows = {}, []
    for model, choices in candidates.items():
        means = [0.0] * len(choices)
        for k, candidate in enumerate(choices if len(choices) > 1 else ()):
            losses: Mapping[str, float] = {}
            try:
                losses = trial(model, candidate)
                mean = sum(losses.values()) / len(losses)
            except SolverError:
                mean = math.inf
            means[k] = mean if math.isfinite(mean) else math.inf
            rows.append({"model": model, "candidate": candidate, **losses, "mean": means[k]})
        order[model] = [choices[k] for k in sorted(range(len(choices)), key=means.__getitem__)]
    return order, rows


def first_stable(candidates: Sequence[C], train: Callable[[C], T]) -> tuple[C, T]:
    """The first candidate whose training does not diverge, and what that training gives.

    Raises:
        NonFiniteError: it diverges with all of them.
    """
    for candidate in candidates:
        try:
            return candidate, train(candidate)
        except SolverError as error:
            print(f"{candidate}: {error}")
    raise NonFiniteError(f"training diverges with each of {list(candidates)}: try lower learning rates")
