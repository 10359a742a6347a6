"""Whether a solve backwards finds the initial state again (section 6)."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from neural_ode import solve
from neural_ode.errors import SolverError
from neural_ode.solution import State
from reproduction.experiments.trials import MAX_STEPS, Trial, all_trials, last_state
from reproduction.results import csv_bytes

__all__ = ["RoundTrip", "reconstruction", "reconstruction_run", "round_trip"]


def reconstruction(trial: Trial, tolerances: Sequence[float]) -> list[dict[str, Any]]:
    """`‖z0 - ẑ0‖ / ‖z0‖` where `ẑ0` comes from solving forwards and back again; `None` if that fails."""
    rows = []
    for tolerance in tolerances:
        how: dict[str, Any] = {"rtol": tolerance, "atol": tolerance, "max_steps": MAX_STEPS}
        error: float | None = None
        with torch.no_grad(), suppress(SolverError):
            end = last_state(solve(trial.f, trial.y0, [trial.start, trial.end], **how).y)
            back = last_state(solve(trial.f, end, [trial.end, trial.start], **how).y)
            z0, z = trial.parts()[0], (back if isinstance(back, tuple) else (back,))[0]
            distance = float((z - z0).norm() / z0.norm())
            error = distance if math.isfinite(distance) else None
        rows.append({"tolerance": tolerance, "error": error})
    return rows


def reconstruction_run(
    *,
    problem: str,
    weights: str | None,
    tolerances: Sequence[float],
    files: Mapping[str, Path],
    device: torch.device,
) -> dict[str, bytes]:
    """`reconstruction` as a run of `reproduction.results`; for the arguments see `accuracy_run`."""
    rows = reconstruction(all_trials(files, device)[problem], tolerances)
    return {".csv": csv_bytes([{"problem": problem, **row} for row in rows])}


class RoundTrip(NamedTuple):
    """A solve forwards, and one back from where it ended; on the CPU.

    Attributes:
        t, there: times, shape (n,), and states, shape (n, numbers).
        t_back, back: the same of the way back, descending; shorter if it could not be finished.
        error: `‖z0 - ẑ0‖ / ‖z0‖`, or `None` if the way back could not be finished.
    """

    t: Tensor
    there: Tensor
    t_back: Tensor
    back: Tensor
    error: float | None


@torch.no_grad()
def round_trip(trial: Trial, tolerance: float, points: int = 200) -> RoundTrip:
    """Both ways of a problem, as the adjoint method solves its state.

    Args:
        trial: with a tensor as its state.
        tolerance: of both solves.
        points: on each way.

    Raises:
        SolverError: the way there could not be finished.
    """
    assert isinstance(trial.y0, Tensor)
    # Counted from point to point: far more than a solve needs, few enough to give up one that diverges at once.
    how: dict[str, Any] = {"rtol": tolerance, "atol": tolerance, "max_steps": 50}
    times = torch.linspace(trial.start, trial.end, points, dtype=torch.float64)
    there = _tensor(solve(trial.f, trial.y0, times, **how).y)
    try:
        solution, finished = solve(trial.f, there[-1], times.flip(0), **how), True
    except SolverError as error:
        solution, finished = error.partial, False
    back = _tensor(solution.y)
    distance = float((back[-1] - trial.y0).norm() / trial.y0.norm()) if finished else None
    return RoundTrip(times, there.flatten(1).cpu(), solution.t.cpu(), back.flatten(1).cpu(), distance)


def _tensor(state: State) -> Tensor:
    assert isinstance(state, Tensor)
    return state
