"""What stiffness costs explicit and implicit methods: evaluations against the rate at which a solution attracts."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from neural_ode import solve
from neural_ode.methods import BlackBox, ScipySolver
from reproduction.results import csv_bytes

__all__ = ["STIFF_SOLVERS", "UNTIL", "Stiff", "attracted", "stiff_sweep", "stiffness_run"]


STIFF_SOLVERS: dict[str, str | BlackBox] = {
    "VODE, Adams": ScipySolver("vode-adams"),
    "VODE, Adams with Newton": ScipySolver("vode-adams-newton"),
    "VODE, BDF": ScipySolver("vode-bdf"),
    "LSODA": ScipySolver("LSODA"),
    "adams": "adams",
    "kvaerno5": "kvaerno5",
    "dopri5": "dopri5",
}
"""By name. VODE solves the equations of an Adams step by fixed-point iteration, unless it is told to use Newton's
method. LSODA changes to the BDF where a problem is stiff, and these use Newton's. `adams` of the library
corrects once, `kvaerno5` is an implicit Runge-Kutta method with Newton's, `dopri5` an explicit one."""

UNTIL = 2.0
"""Where the solves end."""


class Stiff(NamedTuple):
    """A solve of `y' = -k (y - cos t)` for the `stiffness` k; `error` is that at the end."""

    solver: str
    stiffness: float
    nfe: int
    error: float


def attracted(k: float, t: float) -> float:
    """The solution of `y' = -k (y - cos t)` that begins at 1: it follows the cosine, the closer the larger k."""
    followed = k * (k * math.cos(t) + math.sin(t)) / (k * k + 1)
    return followed + math.exp(-k * t) / (k * k + 1)


@torch.no_grad()
def stiff_sweep(name: str, method: str | BlackBox, stiffness: Sequence[float], tolerance: float) -> list[Stiff]:
    """Solve `y' = -k (y - cos t)` with one method for each stiffness k, from `y(0) = 1`.

    The solution is about as smooth for all k. Only stability can make a large k cost more.

    Args:
        name: of the solver.
        method: as `neural_ode.solve` takes it.
        stiffness: the values of k.
        tolerance: relative and absolute.
    """
    rows = []
    for k in stiffness:

        def f(t: Tensor, y: Tensor, k: float = k) -> Tensor:
            return -k * (y - torch.cos(t))

        y0 = torch.ones(1, dtype=torch.float64)
        solution = solve(f, y0, (0.0, UNTIL), method=method, rtol=tolerance, atol=tolerance)
        assert isinstance(solution.y, Tensor)
        rows.append(Stiff(name, k, solution.stats.nfe, abs(float(solution.y[-1]) - attracted(k, UNTIL))))
    return rows


def stiffness_run(*, solver: str, stiffness: Sequence[float], tolerance: float) -> dict[str, bytes]:
    """`stiff_sweep` of a solver in `STIFF_SOLVERS` as a run of `reproduction.results`."""
    rows = stiff_sweep(solver, STIFF_SOLVERS[solver], stiffness, tolerance)
    return {".csv": csv_bytes([row._asdict() for row in rows])}
