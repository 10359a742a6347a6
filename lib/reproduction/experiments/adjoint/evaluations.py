"""What the backward solve costs under three norms of its error control."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from neural_ode.errors import SolverError
from neural_ode.gradients import Backsolve
from reproduction.experiments.trials import MAX_STEPS, Trial, all_trials, loss_gradient
from reproduction.progress import tqdm
from reproduction.results import csv_bytes

__all__ = ["backward_evaluations", "evaluations_run"]


def backward_evaluations(trial: Trial, tolerances: Sequence[float]) -> list[dict[str, Any]]:
    """Evaluations of the backward solve with all gradients in the error norm, with the seminorm (Kidger et al.
    2021), and with the parameters' gradients as a quadrature; `None` where one of them cannot be finished."""
    norms = {"all": Backsolve(), "seminorm": Backsolve(norm="seminorm"), "quadrature": Backsolve(quadrature=True)}
    rows = []
    for tolerance in tqdm(tolerances, desc="backward evaluations", unit="tolerance"):
        row: dict[str, Any] = {"tolerance": tolerance, "saved": None}
        for kind, gradient in norms.items():
            row[kind] = None
            with suppress(SolverError):
                _, stats = loss_gradient(
                    trial, rtol=tolerance, atol=tolerance, gradient=gradient, max_steps=MAX_STEPS
                )
                assert stats.backward is not None
                row["forward"], row[kind] = stats.nfe, stats.backward.nfe
        if row["all"] is not None and row["seminorm"] is not None:
            row["saved"] = 1 - row["seminorm"] / row["all"]
        rows.append(row)
    return rows


def evaluations_run(
    *,
    problem: str,
    weights: str | None,
    tolerances: Sequence[float],
    files: Mapping[str, Path],
    device: torch.device,
) -> dict[str, bytes]:
    """`backward_evaluations` as a run of `reproduction.results`; for the arguments see `accuracy_run`."""
    rows = backward_evaluations(all_trials(files, device)[problem], tolerances)
    return {".csv": csv_bytes([{"problem": problem, **row} for row in rows])}
