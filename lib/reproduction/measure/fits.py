"""Estimates with their 95 % confidence intervals."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from neural_ode.errors import InvalidArgumentError, needs

with needs("notebooks"):
    from scipy import stats

__all__ = [
    "Interval",
    "Line",
    "fit_line",
    "mean_interval",
    "median_interval",
    "proportion_interval",
    "rank_correlation",
    "ratio_interval",
]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % confidence interval, whose ends are `None` where one value is all there is."""

    estimate: float
    low: float | None
    high: float | None
    n: int

    def as_dict(self) -> dict[str, Any]:
        """The fields by their names, as the rules of the claims use them."""
        return asdict(self)


@dataclass(frozen=True)
class Line:
    """A straight line `y = intercept + slope · x` by least squares, with the 95 % interval of its slope.

    `r2` is the share of the variance of y that the line explains; 1 where y does not vary at all.
    """

    slope: float
    low: float
    high: float
    intercept: float
    r2: float
    n: int

    def as_dict(self) -> dict[str, Any]:
        """The fields, the slope under the name `estimate` that the rules of the claims use."""
        fields = asdict(self)
        return {"estimate": fields.pop("slope"), **fields}


def fit_line(x: Sequence[float], y: Sequence[float]) -> Line:
    """Fit a line; the interval of the slope is Student's with n - 2 degrees of freedom.

    Raises:
        InvalidArgumentError: fewer than three points.
    """
    if len(x) != len(y) or len(x) < 3:
        raise InvalidArgumentError(f"a line with an interval needs three points or more, got {len(x)} and {len(y)}")
    fit = stats.linregress(x, y)
    constant = min(y) == max(y)  # then SciPy divides zero by zero
    half = 0.0 if constant else float(stats.t.ppf((1 + CONFIDENCE) / 2, len(x) - 2) * fit.stderr)
    r2 = 1.0 if constant else float(fit.rvalue**2)
    slope = float(fit.slope)
    return Line(slope, slope - half, slope + half, float(fit.intercept), r2, len(x))


def ratio_interval(ratios: Sequence[float]) -> Interval:
    """Geometric mean of positive ratios of independent runs, with Student's interval of the logarithms.

    A ratio and its inverse say the same, and no end of the interval is negative.

    Raises:
        InvalidArgumentError: a ratio is not positive.
    """
    if not all(x > 0 for x in ratios):
        raise InvalidArgumentError(f"ratios must be positive, got {list(ratios)}")
    logs = mean_interval([math.log(x) for x in ratios])
    low, high = (None if end is None else math.exp(end) for end in (logs.low, logs.high))
    return Interval(math.exp(logs.estimate), low, high, logs.n)


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean of independent runs, with Student's interval."""
    n = len(values)
    mean = sum(values) / n
    if n < 2:
        return Interval(mean, None, None, n)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * stats.sem(values))
    return Interval(mean, mean - half, mean + half, n)


def median_interval(values: Sequence[float]) -> Interval:
    """Median of independent values, with the interval between two of them, the narrowest of 95 % or more.

    The number of values below the true median is binomial, whatever their distribution. Fewer than six values give
    no such interval.
    """
    ordered, n = sorted(values), len(values)
    estimate = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    left = -1  # values to leave out on either side
    while 1 - 2 * stats.binom.cdf(left + 1, n, 0.5) >= CONFIDENCE:
        left += 1
    if left < 0:
        return Interval(estimate, None, None, n)
    return Interval(estimate, ordered[left], ordered[n - 1 - left], n)


def proportion_interval(hits: int, n: int) -> Interval:
    """A share of `n` trials, with Wilson's interval."""
    interval = stats.binomtest(hits, n).proportion_ci(CONFIDENCE, "wilson")
    return Interval(hits / n, float(interval.low), float(interval.high), n)


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's coefficient; 0 where one of the two does not vary."""
    if min(x) == max(x) or min(y) == max(y):
        return 0.0
    return float(stats.spearmanr(x, y).statistic)
