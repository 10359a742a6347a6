"""How far the gradients of all choices are from the exact ones, against the tolerance."""

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from neural_ode.errors import NeuralODEWarning, SolverError, needs
from neural_ode.gradients import (
    Backsolve,
    Direct,
    Gradient,
    Interpolating,
    RecursiveCheckpoint,
    Reversible,
)
from reproduction.experiments.adjoint.measuring import MAX_STEPS, loss_gradient, reference_gradient
from reproduction.experiments.adjoint.trials import Trial
from reproduction.measure.fits import fit_line

with needs("notebooks"):
    from tqdm import tqdm

__all__ = ["CHOICES", "FAILED", "accuracy", "error_slope", "worst_ratio"]

CHOICES: dict[str, Gradient] = {
    "direct": Direct(),
    "recursive_checkpoint": RecursiveCheckpoint(),
    "backsolve": Backsolve(),
    "backsolve, 16 checkpoints": Backsolve(checkpoints=16),
    "interpolating": Interpolating(),
    "reversible": Reversible(),
}

FAILED = 1e99
"""Stands for the error of a solve that could not be finished, where a number is needed."""


def accuracy(trials: Mapping[str, Trial], tolerances: Sequence[float]) -> list[dict[str, Any]]:
    """Relative error of the gradient for each problem, choice and tolerance, with `dopri5`.

    A solve that cannot be finished within a thousand steps has the error `None`. `drifted` says that the reversible
    solve warned.
    """
    references = {name: reference_gradient(trial) for name, trial in trials.items()}
    rows = []
    cases = list(itertools.product(trials.items(), CHOICES.items(), tolerances))
    for (name, trial), (choice, gradient), tolerance in tqdm(cases, desc="accuracy", unit="case"):
        row: dict[str, Any] = {"problem": name, "choice": choice, "tolerance": tolerance, "error": None}
        exact = references[name]
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


def error_slope(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Slope of log error against log tolerance, as the rules ask for it; 0 if fewer than three solves finished."""
    finished = [row for row in rows if row["error"]]
    if len(finished) < 3:
        return {"estimate": 0.0, "low": 0.0, "high": 0.0, "r2": 0.0, "n": len(finished)}
    x, y = ([math.log10(row[name]) for row in finished] for name in ("tolerance", "error"))
    return fit_line(x, y).as_dict()


def worst_ratio(rows: Sequence[Mapping[str, Any]]) -> float:
    """The largest error over its tolerance; `FAILED` if one solve could not be finished."""
    ratios = [FAILED if row["error"] is None else row["error"] / row["tolerance"] for row in rows]
    return min(max(ratios), FAILED)
