"""What the rules of the claims ask for, from the errors of one problem over the tolerances."""

import math
from typing import Any

from neural_ode.errors import needs
from reproduction.measure.fits import fit_line

with needs("notebooks"):
    import pandas as pd

__all__ = ["FAILED", "error_slope", "worst_ratio"]

FAILED = 1e99
"""Stands for the error of a solve that could not be finished, where a number is needed."""


def error_slope(rows: pd.DataFrame) -> dict[str, Any]:
    """Slope of log error against log tolerance, as the rules ask for it; 0 if fewer than three solves finished.

    Args:
        rows: `tolerance` and `error`, which is missing where a solve could not be finished.
    """
    finished = rows[rows["error"] > 0]
    if len(finished) < 3:
        return {"estimate": 0.0, "low": 0.0, "high": 0.0, "r2": 0.0, "n": len(finished)}
    x, y = ([math.log10(value) for value in finished[name]] for name in ("tolerance", "error"))
    return fit_line(x, y).as_dict()


def worst_ratio(rows: pd.DataFrame) -> float:
    """The largest error over its tolerance; `FAILED` if one solve could not be finished. For `rows` see above."""
    ratios = (rows["error"].astype(float) / rows["tolerance"]).fillna(FAILED)
    return min(float(ratios.max()), FAILED)
