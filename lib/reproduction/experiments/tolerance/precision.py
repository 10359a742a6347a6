"""Work-precision curves."""

import itertools
from collections.abc import Sequence

import numpy as np

from reproduction.experiments.tolerance.solves import Forward

__all__ = ["evaluations_at"]


def evaluations_at(rows: Sequence[Forward], error: float) -> float | None:
    """Evaluations that bring the error down to `error`, between the points of a work-precision curve.

    Interpolates the logarithm of the evaluations linearly in the logarithm of the error.

    Args:
        rows: solves of one batch with one solver.
        error: to be reached.

    Returns:
        `None` where the rows do not reach from above to below that error.
    """
    points = sorted((row.error, row.nfe) for row in rows)
    for (e0, n0), (e1, n1) in itertools.pairwise(points):
        if e0 <= error <= e1 and e0 < e1:
            share = (np.log(error) - np.log(e0)) / (np.log(e1) - np.log(e0))
            return float(np.exp(np.log(n0) + share * (np.log(n1) - np.log(n0))))
    return None
