"""How the time of a solve grows with what is solved: batch, width of the network, dimension, number of steps.

One network, whose size along one axis changes while the others stay.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from benchmarks import contenders
from benchmarks.cases import leave_out_others
from benchmarks.larger_problems import WideNetwork, perceptron
from benchmarks.problems import Problem
from benchmarks.timing import Contender, measure
from reproduction.measure.fits import fit_line

__all__ = ["AXES", "scaling_rows", "slopes"]

_TOLERANCE = 1e-5
_AGREEMENT = 1e-2
_BASE = {"batch": 64, "width": 64, "dimension": 8, "length": 1}

AXES: dict[str, Sequence[int]] = {
    "batch": (1, 8, 64, 512, 4096),
    "width": (16, 64, 256, 1024),
    "dimension": (2, 8, 64, 512),
    "length": (1, 4, 16, 64),
}
"""By name, the sizes along each axis; `length` is that of the interval, which decides how many steps there are."""


def _problem(batch: int, width: int, dimension: int, length: int) -> Problem:
    """A decay towards a network of the state, which stays smooth for as long as one likes."""

    def formula(xp: Any, t: Any, y: Any, params: Sequence[Any]) -> Any:
        return perceptron(xp, y, params) - y

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        f, y0 = _Decay(dimension, width), torch.randn(batch, dimension)
    return Problem("", f, y0, torch.linspace(0, 2 * length, 2), formula)


class _Decay(WideNetwork):
    def forward(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Shape (n, dimension) in and out."""
        return super().forward(t, y) - y


def _entries(problem: Problem) -> list[Contender]:
    tolerance = _TOLERANCE
    return [
        contenders.torchdiffeq(problem, "dopri5", tolerance),
        contenders.ours(problem, "dopri5", tolerance),
        contenders.ours(problem, "dopri5", tolerance, name="neural_ode, compiled", compile=True),
        contenders.diffrax(problem, "dopri5")(tolerance),
    ]


def scaling_rows(axis: str, threads: int, quick: bool) -> list[dict[str, Any]]:
    """Median time, evaluations and work of every library at every size along an axis."""
    rows = []
    for size in AXES[axis][:2] if quick else AXES[axis]:
        sizes = _BASE | {axis: size}
        entered = [one for one in _entries(_problem(**sizes)) if not (quick and one.compiles)]
        found, skipped = measure(entered, 0.0 if quick else 1.0, (1, 1) if quick else (3, 30))
        leave_out_others(found, skipped, "torchdiffeq", _AGREEMENT)
        for name in (one.name for one in entered):
            row: dict[str, Any] = {"axis": axis, "size": size, "library": name, "threads": threads}
            if name in skipped:
                rows.append(row | {"skipped": skipped[name]})
                continue
            nfe = found[name].nfe
            assert nfe is not None
            row |= {"seconds": float(np.median(found[name].seconds)), "nfe": nfe}
            rows.append(row | {"work": nfe * _multiplications(**sizes)})
    return rows


def _multiplications(batch: int, width: int, dimension: int, length: int) -> int:
    """Of one evaluation: those of the products with matrices."""
    return batch * 2 * (dimension * width + width * width)


def slopes(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, str], float]:
    """By axis and library, the slope of log time against log work over the three largest sizes, if measured."""
    found: dict[tuple[str, str], float] = {}
    for axis, library in dict.fromkeys((row["axis"], row["library"]) for row in rows):
        own = [row for row in rows if (row["axis"], row["library"]) == (axis, library) and "seconds" in row]
        largest = [row for row in own if row["size"] in AXES[axis][-3:]]
        if len(largest) == 3:
            x, y = ([float(np.log10(row[key])) for row in largest] for key in ("work", "seconds"))
            found[axis, library] = fit_line(x, y).slope
    return found
