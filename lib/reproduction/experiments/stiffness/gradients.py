"""Gradients of stiff solves, each way to differentiate against a closed form."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from neural_ode import solve
from neural_ode.errors import SolverError
from neural_ode.gradients import GRADIENTS
from reproduction.results import csv_bytes

__all__ = ["EXACT", "METHODS", "Amplitude", "choices", "gradient_run", "gradients_of"]

METHODS = {"dopri5": "dopri5", "kvaerno5": "kvaerno5"}
"""An explicit method and an implicit one."""

UNTIL = 2.0


class Amplitude(nn.Module):
    """`y' = -k (y³ - g³) / 3 + g'` with `g(t) = p (2 + cos t) / 3` and a learned amplitude p, which is 1.

    From `y(0) = g(0)` the solution is g, to which all others are drawn, at a rate of k at first. (After Prothero &
    Robinson 1974, but not linear: where the state is wrong, so is the Jacobian.)

    Args:
        k: the rate.
    """

    def __init__(self, k: float):
        super().__init__()
        self.k = k
        self.amplitude = nn.Parameter(torch.ones((), dtype=torch.float64))

    def followed(self, t: Tensor) -> Tensor:
        """The solution g at t, of the shape of t."""
        return self.amplitude * (2 + torch.cos(t)) / 3

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """The derivative of `y`, of the same shape."""
        return -self.k * (y**3 - self.followed(t) ** 3) / 3 - self.amplitude * torch.sin(t) / 3


EXACT = (2 + math.cos(UNTIL)) / 3
"""The derivative of `y(2)` by the amplitude, on which the initial state depends, too."""


def gradients_of(
    method: str, gradient: str, rates: Sequence[float], tolerance: float, most_steps: int
) -> list[dict[str, Any]]:
    """Differentiate the solution of `Amplitude` at t = 2 by the amplitude, for each rate k.

    Args:
        method: of the solver.
        gradient: a name in `GRADIENTS`.
        rates: the values of k.
        tolerance: relative and absolute, of both solves.
        most_steps: of a solve.

    Returns:
        A row for each rate: `method`, `gradient`, `stiffness` (the rate times the interval), and relative `error`
        of the gradient, evaluations `forward` and `backward`; `None` where it was not finished. `direct` makes no
        evaluations on the way back.
    """
    rows = []
    for k in rates:
        row = {"method": method, "gradient": gradient, "stiffness": k * UNTIL}
        f = Amplitude(k)
        y0 = f.followed(torch.zeros(1, dtype=torch.float64))
        how: dict[str, Any] = {"rtol": tolerance, "atol": tolerance, "max_steps": most_steps}
        try:
            found = solve(f, y0, (0.0, UNTIL), method=METHODS[method], gradient=gradient, **how)
            assert isinstance(found.y, Tensor)
            found.y[-1].sum().backward()  # type: ignore[no-untyped-call]
        except SolverError:
            rows.append({**row, "error": None, "forward": None, "backward": None})
            continue
        assert f.amplitude.grad is not None
        error = abs(float(f.amplitude.grad) - EXACT) / EXACT
        back = found.stats.backward
        counts = {"forward": found.stats.nfe, "backward": back.nfe if back else 0}
        rows.append({**row, "error": error if math.isfinite(error) else None, **counts})
    return rows


def gradient_run(
    *, method: str, gradient: str, rates: Sequence[float], tolerance: float, most_steps: int
) -> dict[str, bytes]:
    """`gradients_of` one method and choice as a run of `reproduction.results`."""
    return {".csv": csv_bytes(gradients_of(method, gradient, rates, tolerance, most_steps))}


def choices() -> list[tuple[str, str]]:
    """Each method with the choices that it can be differentiated with: a reversible solver is an explicit one."""
    return [(m, g) for m in METHODS for g in GRADIENTS if (m, g) != ("kvaerno5", "reversible")]
