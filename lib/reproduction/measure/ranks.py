"""What the order of values says: quantiles and rank correlations, with their 95 % intervals."""

import math
from collections.abc import Sequence

from neural_ode.errors import InvalidArgumentError, needs
from reproduction.measure.fits import CONFIDENCE, Interval, rank_correlation

with needs("notebooks"):
    from scipy import stats

__all__ = ["quantile_ratio", "rank_correlation_interval"]

RANKS = 1.06
"""Variance of Fisher's z of a rank correlation, times n - 3 (Fieller, Hartley & Pearson 1957)."""


def rank_correlation_interval(x: Sequence[float], y: Sequence[float]) -> Interval:
    """Spearman's coefficient with the interval of Fisher's z, which is nearly normal: its `atanh`.

    Raises:
        InvalidArgumentError: fewer than four points.
    """
    n = len(x)
    if n < 4:
        raise InvalidArgumentError(f"a rank correlation with an interval needs four points or more, got {n}")
    found = rank_correlation(x, y)
    if abs(found) == 1:  # z is infinite
        return Interval(found, found, found, n, "Fisher's z")
    z, half = math.atanh(found), _normal() * math.sqrt(RANKS / (n - 3))
    return Interval(found, math.tanh(z - half), math.tanh(z + half), n, "Fisher's z")


def quantile_ratio(values: Sequence[float], low: float, high: float) -> Interval:
    """A high quantile over a low one of independent positive values.

    The number of values below a true quantile is binomial, whatever their distribution, so two values of the sample
    enclose it with a known probability. The interval of the ratio is that of both quantiles at half of the risk
    each.

    Args:
        values: the sample.
        low, high: shares of the values that lie below the two quantiles.

    Raises:
        InvalidArgumentError: too few values enclose one of the quantiles.
    """
    ordered, n = sorted(values), len(values)
    (low_from, low_at, low_to), (high_from, high_at, high_to) = (_enclosed(ordered, q) for q in (low, high))
    return Interval(high_at / low_at, high_from / low_to, high_to / low_from, n, "order statistics")


def _enclosed(ordered: Sequence[float], share: float) -> tuple[float, float, float]:
    """Values below and above a quantile, and the quantile of the sample between them."""
    n, risk = len(ordered), (1 - CONFIDENCE) / 2
    below = int(stats.binom.ppf(risk / 2, n, share))
    above = int(stats.binom.ppf(1 - risk / 2, n, share)) + 1
    if below < 1 or above > n:
        raise InvalidArgumentError(f"{n} values do not enclose their quantile at {share:g}")
    middle = math.ceil(share * n)
    return ordered[below - 1], ordered[middle - 1], ordered[above - 1]


def _normal() -> float:
    return float(stats.norm.ppf((1 + CONFIDENCE) / 2))
