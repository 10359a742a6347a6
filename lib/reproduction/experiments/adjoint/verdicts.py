"""What the rules of the claims ask for, from what was measured over the tolerances.

`rows` always has the columns `tolerance` and `error`, which is missing where a solve could not be finished.
"""

import math
from collections.abc import Sequence
from typing import Any

from neural_ode.errors import needs
from reproduction.measure.fits import Interval, fit_line

with needs("notebooks"):
    import pandas as pd

__all__ = ["error_at", "error_ratio", "exactness", "saved_by_problem"]

TIGHT = 1e-5
"""From here on a solve is more than a few steps, so that its error follows the tolerance."""


def exactness(rows: pd.DataFrame, direct: pd.DataFrame) -> dict[str, Any]:
    """How exact a gradient is: the slope of log error against log tolerance, and the error at the tightest one.

    With fewer than three tolerances up to `TIGHT` the slope is 0, without an interval.

    Args:
        rows: of a way to differentiate, all of whose solves could be finished.
        direct: of backpropagation through the steps.
    """
    tight = rows[rows["tolerance"] <= TIGHT * (1 + 1e-9)]
    x, y = ([math.log10(value) for value in tight[name]] for name in ("tolerance", "error"))
    tightest = float(rows["tolerance"].min())
    return {
        "slope": fit_line(x, y).interval if len(x) > 2 else Interval(0.0, None, None, len(x), "regression"),
        "error at the tightest tolerance": error_at(rows, tightest),
        "the same over that of direct": error_ratio(rows, direct, tightest),
    }


def error_at(rows: pd.DataFrame, tolerance: float) -> float:
    """The error at the tolerance that is nearest; infinite if the solve could not be finished."""
    nearest = (rows["tolerance"] / tolerance).map(math.log).abs().idxmin()
    error = rows["error"].astype(float)[nearest]
    return math.inf if math.isnan(error) else float(error)


def error_ratio(rows: pd.DataFrame, other: pd.DataFrame, tolerance: float) -> float:
    """The error at a tolerance over that of another way to solve; infinite if the first could not be finished."""
    own = error_at(rows, tolerance)
    return own if math.isinf(own) else own / error_at(other, tolerance)


def saved_by_problem(counts: pd.DataFrame, names: Sequence[str]) -> pd.Series:
    """What the seminorm saves, in % of the evaluations: for each problem the median over tolerances.

    Args:
        counts: a row for each problem and tolerance, with the share `saved`; it is missing where a solve could not
            be finished.
        names: the columns that tell one problem from another.

    Returns:
        By problem, without those none of whose solves could be finished.
    """
    shares = 100 * counts["saved"].astype(float)
    found: pd.Series = shares.groupby([counts[name] for name in names], sort=False).median()
    return found.dropna()
