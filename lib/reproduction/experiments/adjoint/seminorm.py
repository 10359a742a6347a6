"""What the seminorm saves where parameters outnumber the state, and whether the gradient is worse for it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neural_ode import solve
from neural_ode.errors import SolverError
from neural_ode.gradients import Backsolve, RecursiveCheckpoint
from neural_ode.solution import State
from reproduction.experiments.trials import Trial, last_state, loss_gradient
from reproduction.experiments.wide_networks import task
from reproduction.progress import tqdm
from reproduction.results import csv_bytes
from reproduction.training.weights import load_weights

__all__ = ["NORMS", "TRAJECTORIES", "seminorm_counts", "seminorm_run", "sizes"]

NORMS = {"all": Backsolve(), "seminorm": Backsolve(norm="seminorm"), "quadrature": Backsolve(quadrature=True)}
"""What the error control of the backward solve sees: all gradients, none of the parameters', or they are summed."""

TRAJECTORIES = 4
"""Few, so that the parameters outnumber the state."""

MOST_STEPS = 10_000
REFERENCE = 1e-2
"""Tolerance of the solve of order 8 that stands for the exact result, over the least tolerance."""


def sizes(trial: Trial) -> dict[str, int]:
    """How many numbers the `parameters` of a problem are, and its `state`."""
    return {
        "parameters": sum(p.numel() for p in trial.f.parameters()),
        "state": sum(part.numel() for part in trial.parts()),
    }


def seminorm_counts(trial: Trial, tolerances: Sequence[float], scales: Sequence[float]) -> list[dict[str, Any]]:
    """Evaluations of the backward solve and errors of the gradient with each of `NORMS`.

    Args:
        trial: the problem.
        tolerances: of the solves with `dopri5`, forwards and backwards.
        scales: factors of the loss. The gradients' errors are measured against the tolerance as they are, so the
            larger they are, the more the norm sees of them.

    Returns:
        For each tolerance and scale: numbers of `parameters` and of the `state`, the `loss` without the factor,
        evaluations `forward` and by the name of the norm, `error, <norm>` relative to a far tighter solve of order
        8, and the share `saved` by the seminorm. What needs a solve that could not be finished is `None`.

    Raises:
        SolverError: a solve forwards, or that of the reference, could not be finished.
    """
    least = REFERENCE * min(tolerances)
    tight = {"method": "dopri8", "rtol": least, "atol": least, "gradient": RecursiveCheckpoint()}
    exact, _ = loss_gradient(trial, **tight, max_steps=MOST_STEPS)
    rows = []
    for tolerance, scale in tqdm(list(product(tolerances, scales)), desc="seminorm", unit="case"):
        how: dict[str, Any] = {"rtol": tolerance, "atol": tolerance, "max_steps": MOST_STEPS}
        with torch.no_grad():
            solution = solve(trial.f, trial.y0, [trial.start, trial.end], **how)
            loss = trial.loss(last_state(solution.y)).item()
        row = sizes(trial) | {"tolerance": tolerance, "scale": scale, "loss": loss, "forward": solution.stats.nfe}
        rows.append(row | _counts(replace(trial, loss=_times(scale, trial.loss)), scale * exact, how))
    return rows


def _times(scale: float, loss: Callable[[State], Tensor]) -> Callable[[State], Tensor]:
    return lambda state: scale * loss(state)


def _counts(trial: Trial, exact: Tensor, how: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of the norms, and `saved`."""
    row: dict[str, Any] = {}
    for name, gradient in NORMS.items():
        row[name] = row[f"error, {name}"] = None
        with suppress(SolverError):
            found, stats = loss_gradient(trial, gradient=gradient, **how)
            assert stats.backward is not None
            row[name] = stats.backward.nfe
            row[f"error, {name}"] = float((found - exact).norm() / exact.norm())
    finished = row["all"] is not None and row["seminorm"] is not None
    return row | {"saved": 1 - row["seminorm"] / row["all"] if finished else None}


def seminorm_run(
    *,
    network: str,
    weights: str | None,
    tolerances: Sequence[float],
    scales: Sequence[float],
    files: Mapping[str, Path],
    device: torch.device,
) -> dict[str, bytes]:
    """`seminorm_counts` as a run of `reproduction.results`.

    Args:
        network: a name in `TASKS`.
        weights: checksum of the file that has them; random ones for `None`.
        tolerances, scales: see `seminorm_counts`.
        files: weights by checksum.
        device: where to solve.
    """
    trial = task(network, TRAJECTORIES)
    if weights is not None:
        load_weights(trial.f, files[weights])
    return {".csv": csv_bytes(seminorm_counts(trial.to(device), tolerances, scales))}
