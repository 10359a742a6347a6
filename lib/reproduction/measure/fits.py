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
    "prediction_interval",
    "proportion_interval",
    "rank_correlation",
    "ratio_interval",
    "ratio_of_groups",
    "share_interval",
]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval, whose ends are `None` where one value is all there is.

    Attributes:
        estimate: the value in the middle.
        low, high: ends of the interval.
        n: of how many values.
        method: what the interval is of: a `mean`, the slope of a `regression`, ...
    """

    estimate: float
    low: float | None
    high: float | None
    n: int
    method: str = "mean"

    def as_dict(self) -> dict[str, Any]:
        """The fields by their names."""
        return asdict(self)

    def over(self, unit: float) -> "Interval":
        """The same as a multiple of a positive number that is known exactly."""
        low, high = (None if end is None else end / unit for end in (self.low, self.high))
        return Interval(self.estimate / unit, low, high, self.n, self.method)


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
        """The fields, the slope under the name `estimate`, as for an `Interval`."""
        fields = asdict(self)
        return {"estimate": fields.pop("slope"), **fields}

    @property
    def interval(self) -> Interval:
        """The slope with its interval: of a regression, so that of the points round the line, not of samples."""
        return Interval(self.slope, self.low, self.high, self.n, "regression")


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
    return Interval(math.exp(logs.estimate), low, high, logs.n, "geometric mean")


def ratio_of_groups(top: Sequence[float], bottom: Sequence[float]) -> Interval:
    """Geometric mean of one group of positive values over that of another, which is independent of it.

    With Welch's interval of the difference of the logarithms (Welch 1947, *The generalization of 'Student's'
    problem when several different population variances are involved*). Neither the numbers nor the spreads need
    be the same.

    Raises:
        InvalidArgumentError: a value is not positive.
    """
    if not all(x > 0 for x in (*top, *bottom)):
        raise InvalidArgumentError(f"values must be positive, got {list(top)} and {list(bottom)}")
    logs = [[math.log(x) for x in group] for group in (top, bottom)]
    difference = sum(logs[0]) / len(logs[0]) - sum(logs[1]) / len(logs[1])
    n = min(len(top), len(bottom))
    if n < 2:
        return Interval(math.exp(difference), None, None, n, "geometric mean")
    if all(min(group) == max(group) for group in logs):  # then SciPy divides zero by zero
        ratio = math.exp(difference)
        return Interval(ratio, ratio, ratio, n, "geometric mean")
    ends = stats.ttest_ind(*logs, equal_var=False).confidence_interval(CONFIDENCE)
    return Interval(math.exp(difference), math.exp(ends.low), math.exp(ends.high), n, "geometric mean")


def share_interval(hits: Sequence[int], totals: Sequence[int]) -> Interval:
    """Mean share of independent runs, with Student's interval of their empirical logits: it stays in 0 to 1.

    The empirical logit of h hits in n trials is `log((h + 1/2) / (n - h + 1/2))`, finite for all of them. One run,
    or several that do not differ, have Wilson's interval of all trials.

    Raises:
        InvalidArgumentError: more hits than trials, or not as many of one as of the other.
    """
    if len(hits) != len(totals) or not all(0 <= h <= n for h, n in zip(hits, totals, strict=False)):
        raise InvalidArgumentError(f"hits must be as many as totals, and below them, got {hits} of {totals}")
    logits = [math.log((h + 0.5) / (n - h + 0.5)) for h, n in zip(hits, totals, strict=True)]
    if min(logits) == max(logits):
        return proportion_interval(sum(hits), sum(totals))
    found = mean_interval(logits)
    assert found.low is not None
    assert found.high is not None
    mean, low, high = (1 / (1 + math.exp(-x)) for x in (found.estimate, found.low, found.high))
    return Interval(mean, low, high, found.n, "logit mean")


def prediction_interval(values: Sequence[float]) -> Interval:
    """What holds the result of one more run with a probability of 95 %, round the mean of independent runs.

    For normal values: Student's quantile times `s √(1 + 1/n)`. It compares a number that was published without its
    spread, so the result of one run or a mean of unknown many, with ours.
    """
    n, mean = len(values), sum(values) / len(values)
    if n < 2:
        return Interval(mean, None, None, n, "prediction")
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * stats.tstd(values) * math.sqrt(1 + 1 / n))
    return Interval(mean, mean - half, mean + half, n, "prediction")


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
        return Interval(estimate, None, None, n, "median")
    return Interval(estimate, ordered[left], ordered[n - 1 - left], n, "median")


def proportion_interval(hits: int, n: int) -> Interval:
    """A share of `n` trials, with Wilson's interval."""
    interval = stats.binomtest(hits, n).proportion_ci(CONFIDENCE, "wilson")
    return Interval(hits / n, float(interval.low), float(interval.high), n, "share")


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's coefficient; 0 where one of the two does not vary."""
    if min(x) == max(x) or min(y) == max(y):
        return 0.0
    return float(stats.spearmanr(x, y).statistic)
