"""What solvers cost on one problem: evaluations and time, for each tolerance, with the error that came of it."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neural_ode import solve
from neural_ode.errors import SolverError
from neural_ode.methods import BlackBox, ScipySolver
from neural_ode.solution import Solution
from reproduction.experiments.stiffness.network import START, UNTIL, StiffNetwork
from reproduction.experiments.stiffness.problems import (
    Problem,
    network_problem,
    problem,
    reference,
    relative_error,
    stiffness,
)
from reproduction.measure.cpu_time import shortest_seconds
from reproduction.results import csv_bytes
from reproduction.training.weights import load_weights

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SOLVERS", "cheapest", "costs_of", "costs_run", "network_costs_run"]

SOLVERS: dict[str, str | BlackBox] = {
    "dopri5": "dopri5",
    "tsit5": "tsit5",
    "adams": "adams",
    "VODE, Adams": ScipySolver("vode-adams"),
    "VODE, Adams with Newton": ScipySolver("vode-adams-newton"),
    "VODE, BDF": ScipySolver("vode-bdf"),
    "kvaerno5": "kvaerno5",
    "Radau IIA": ScipySolver("Radau"),
}
"""By name: two explicit Runge-Kutta methods, three ways to use implicit Adams methods (the library's corrects once,
VODE iterates, or uses Newton's method), backward differentiation, and two implicit Runge-Kutta methods."""

LONG = 0.5
"""Seconds from which a solve is timed once: one that is as long is little disturbed."""


def costs_run(
    *, family: str, parameter: float, tolerances: Sequence[float], most_steps: int, repeats: int
) -> dict[str, bytes]:
    """`costs_of` a problem of `FAMILIES` as a run of `reproduction.results`."""
    return {".csv": csv_bytes(costs_of(problem(family, parameter), tolerances, most_steps, repeats))}


def network_costs_run(
    *,
    weights: str,
    hidden: int,
    tolerances: Sequence[float],
    most_steps: int,
    repeats: int,
    files: Mapping[str, Path],
) -> dict[str, bytes]:
    """`costs_of` a trained network as a run; `weights` is the checksum of one of the `files`."""
    model = StiffNetwork(hidden)
    load_weights(model, files[weights])
    given = network_problem(model, torch.tensor(START, dtype=torch.float64), UNTIL)
    return {".csv": csv_bytes(costs_of(given, tolerances, most_steps, repeats))}


@torch.no_grad()
def costs_of(given: Problem, tolerances: Sequence[float], most_steps: int, repeats: int) -> list[dict[str, Any]]:
    """Solve a problem with every solver and tolerance.

    Args:
        given: the problem.
        tolerances: relative ones; times the sizes of the components they are the absolute ones.
        most_steps: between two outputs. A solver that needs more is not tried with tighter tolerances.
        repeats: further solves whose CPU time is measured, where they are short.

    Returns:
        A row for each solve: `solver`, `stiffness` of the problem, `tolerance`, and, `None` where it was not
        finished, `nfe`, `error` (see `relative_error`) and `seconds` of CPU time.
    """
    expected = reference(given)
    measure = stiffness(given, expected)
    rows: list[dict[str, Any]] = []
    for name in SOLVERS:
        for tolerance in sorted(tolerances, reverse=True):
            row = {"solver": name, "stiffness": measure, "tolerance": tolerance}
            started = time.process_time()
            try:
                found = _solve(given, name, tolerance, most_steps)
            except SolverError:
                rows.append({**row, "nfe": None, "error": None, "seconds": None})
                break
            seconds = time.process_time() - started

            def again(name: str = name, tolerance: float = tolerance) -> Solution:
                return _solve(given, name, tolerance, most_steps)

            assert isinstance(found.y, Tensor)
            row |= {"nfe": found.stats.nfe, "error": relative_error(found.y[1:], expected, given)}
            shortest = min(seconds, shortest_seconds(again, repeats)) if seconds < LONG else seconds
            rows.append({**row, "seconds": shortest})
    return rows


def _solve(given: Problem, name: str, tolerance: float, most_steps: int) -> Solution:
    how: dict[str, Any] = {"rtol": tolerance, "atol": tolerance * given.scale, "max_steps": most_steps}
    return solve(given.f, given.y0, given.times, method=SOLVERS[name], **how)


def cheapest(costs: "pd.DataFrame", error: float) -> "pd.DataFrame":
    """Of each problem and solver the solve with the fewest evaluations whose error is at most `error`.

    Args:
        costs: a row for each solve: `family`, `parameter` and what `costs_of` gives.
        error: that all may have.

    Returns:
        A row for each problem and solver that has such a solve.
    """
    good = costs[costs["error"] <= error]
    return good.loc[good.groupby(["family", "parameter", "solver"], sort=False)["nfe"].idxmin()]
