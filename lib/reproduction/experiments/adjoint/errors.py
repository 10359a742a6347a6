"""How far the gradients of all choices are from the exact ones, against the tolerance."""

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from neural_ode.errors import NeuralODEWarning, SolverError
from reproduction.experiments.trials import (
    CHOICES,
    MAX_STEPS,
    Trial,
    all_trials,
    loss_gradient,
    reference_gradient,
)
from reproduction.progress import tqdm
from reproduction.results import csv_bytes

__all__ = ["accuracy", "accuracy_run"]


def accuracy(trial: Trial, tolerances: Sequence[float]) -> list[dict[str, Any]]:
    """Relative error of the gradient of a problem for each choice and tolerance, with `dopri5`.

    A solve that cannot be finished within a thousand steps has the error `None`. `drifted` says that the reversible
    solve warned.
    """
    exact = reference_gradient(trial)
    rows = []
    cases = list(itertools.product(CHOICES.items(), tolerances))
    for (choice, gradient), tolerance in tqdm(cases, desc="accuracy", unit="case"):
        row: dict[str, Any] = {"choice": choice, "tolerance": tolerance, "error": None}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", NeuralODEWarning)
            with suppress(SolverError):
                found, _ = loss_gradient(
                    trial, rtol=tolerance, atol=tolerance, gradient=gradient, max_steps=MAX_STEPS
                )
                error = float((found - exact).norm() / exact.norm())
                row["error"] = error if math.isfinite(error) else None
        rows.append(row | {"drifted": any(w.category is NeuralODEWarning for w in caught)})
    return rows


def accuracy_run(
    *,
    problem: str,
    weights: str | None,
    tolerances: Sequence[float],
    files: Mapping[str, Path],
    device: torch.device,
) -> dict[str, bytes]:
    """`accuracy` as a run of `reproduction.results`.

    Args:
        problem: a name in `all_trials`.
        weights: checksum of those that the problem has been trained to, if it has.
        tolerances: of the solves.
        files: see `all_trials`.
        device: where to solve.
    """
    rows = accuracy(all_trials(files, device)[problem], tolerances)
    return {".csv": csv_bytes([{"problem": problem, **row} for row in rows])}
