"""What the width of a flow costs: a trace for a continuous one, a determinant for a wide planar layer."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from reproduction.measure.cpu_time import shortest_seconds
from reproduction.measure.operations import OperationCounter
from reproduction.models.flows import GatedUnits, PlanarDynamics
from reproduction.results import csv_bytes

__all__ = ["eliminated_log_det", "operations_run", "times_run", "width_operations", "width_times"]


def eliminated_log_det(matrix: Tensor) -> Tensor:
    """`log |det|` by Gaussian elimination, each operation one of PyTorch's, so that it can be counted.

    Args:
        matrix: whose diagonal dominates, as there are no pivots; shape (n, n).
    """
    left = matrix.clone()
    for k in range(len(left) - 1):
        factors = left[k + 1 :, k] / left[k, k]
        left[k + 1 :, k + 1 :] -= factors[:, None] * left[k, k + 1 :]
    log_det: Tensor = left.diagonal().abs().log().sum()
    return log_det


def width_operations(
    widths: Sequence[int], determinant_widths: Sequence[int], points: int
) -> dict[str, list[float]]:
    """Arithmetic operations for a point's share of the log-density, against the number of hidden units.

    Args:
        widths: numbers M of hidden units for the trace.
        determinant_widths: and for the determinant.
        points: how many points at once for the trace; the determinant is that of one.

    Returns:
        `"trace"`: of an evaluation of planar dynamics in two dimensions, with its trace. `"determinant"`: of that
        of the M × M matrix `I + diag(h') W Uᵀ` of a planar layer with M units, as a flow of layers needs it, by
        Gaussian elimination.
    """

    def counted(work: Callable[[], object]) -> float:
        with OperationCounter() as counter:
            work()
        total: float = counter.total
        return total

    return _for_each_width(counted, eliminated_log_det, widths, determinant_widths, points)


def width_times(
    widths: Sequence[int], determinant_widths: Sequence[int], points: int, repeats: int
) -> dict[str, list[float]]:
    """CPU seconds for the same, the shortest of `repeats`, with the determinant by LAPACK."""

    def timed(work: Callable[[], object]) -> float:
        return shortest_seconds(work, repeats)

    return _for_each_width(timed, torch.linalg.slogdet, widths, determinant_widths, points)


def operations_run(*, widths: Sequence[int], determinant_widths: Sequence[int], points: int) -> dict[str, bytes]:
    """The table of `width_operations`: `work`, `width`, `operations`."""
    found = width_operations(widths, determinant_widths, points)
    return _table(found, "operations", widths, determinant_widths)


def times_run(
    *, widths: Sequence[int], determinant_widths: Sequence[int], points: int, repeats: int
) -> dict[str, bytes]:
    """The table of `width_times`: `work`, `width`, `seconds`."""
    found = width_times(widths, determinant_widths, points, repeats)
    return _table(found, "seconds", widths, determinant_widths)


def _for_each_width(
    cost: Callable[[Callable[[], object]], float],
    log_det: Callable[[Tensor], object],
    widths: Sequence[int],
    determinant_widths: Sequence[int],
    points: int,
) -> dict[str, list[float]]:
    t, z = torch.zeros(()), torch.randn(points, 2)

    def trace(width: int) -> Callable[[], object]:
        dynamics = PlanarDynamics(GatedUnits(2, width))
        return lambda: dynamics.with_trace(t, z)

    def determinant(width: int) -> Callable[[], object]:
        w, u, b = GatedUnits(2, width)(t)
        return lambda: log_det(torch.eye(width) + (1 - torch.tanh(w @ z[0] + b).square())[:, None] * (w @ u.T))

    with torch.no_grad():
        return {
            "trace": [cost(trace(width)) / points for width in widths],
            "determinant": [cost(determinant(width)) for width in determinant_widths],
        }


def _table(
    found: Mapping[str, Sequence[float]], what: str, widths: Sequence[int], determinant_widths: Sequence[int]
) -> dict[str, bytes]:
    measured_at = {"trace": widths, "determinant": determinant_widths}
    rows = [
        {"work": name, "width": width, what: value}
        for name, values in found.items()
        for width, value in zip(measured_at[name], values, strict=True)
    ]
    return {".csv": csv_bytes(rows)}
