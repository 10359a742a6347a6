"""The rules that decide claims: three kinds, and what each says about a measured interval.

*value*: is our number the published one? *difference*: is one thing better than another, or equal within a margin?
*law*: a slope, a share or a bound. Each judges the whole 95 % interval of a quantity: it holds where every value of
the interval satisfies the rule, does not where none does, and is undecided in between.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Protocol

from neural_ode.errors import InvalidArgumentError, UnknownNameError
from reproduction.measure.fits import Interval, proportion_interval
from reproduction.notation import typeset

__all__ = ["KINDS", "Bound", "Difference", "Law", "Rule", "Value", "Verdict", "parse_rule"]


class Verdict(StrEnum):
    """What a measurement says about a claim."""

    HOLDS = "holds"
    FAILS = "does not hold"
    UNDECIDED = "undecided"
    UNTESTED = "not tested at this scale"

    @property
    def sign(self) -> str:
        """The verdict in one character."""
        return {"HOLDS": "✓", "FAILS": "✗", "UNDECIDED": "?", "UNTESTED": "·"}[self.name]


class Bound(Protocol):
    """What a rule asks of one quantity."""

    @property
    def unit(self) -> str:
        """What the quantity is measured in."""

    def judge(self, found: Interval, way: str) -> Verdict:
        """The verdict on a measured quantity; its interval must have both ends.

        Args:
            found: estimate with its 95 % interval.
            way: which of the ways in which the claim is measured.
        """

    def words(self, name: str) -> str:
        """The rule for the quantity of that name, for people."""


def within(found: Interval, low: float, high: float) -> Verdict:
    """Whether a whole interval lies between two bounds, or all of it outside."""
    assert found.low is not None
    assert found.high is not None
    if low <= found.low and found.high <= high:
        return Verdict.HOLDS
    return Verdict.FAILS if found.high < low or found.low > high else Verdict.UNDECIDED


@dataclass(frozen=True)
class Law:
    """A bound on one side, or on both: a slope, a share, an error.

    Raises:
        InvalidArgumentError: there is no bound.
    """

    at_least: float | None = None
    at_most: float | None = None
    unit: str = ""

    def __post_init__(self) -> None:
        if self.at_least is None and self.at_most is None:
            raise InvalidArgumentError("a law needs at_least or at_most")

    def judge(self, found: Interval, way: str) -> Verdict:
        """See `Bound`."""
        low = -math.inf if self.at_least is None else self.at_least
        return within(found, low, math.inf if self.at_most is None else self.at_most)

    def words(self, name: str) -> str:
        """See `Bound`."""
        if self.at_least is not None and self.at_least == self.at_most:
            return f"{name} exactly {_with(self.at_least, self.unit)}"
        if self.at_least is not None and self.at_most is not None:
            return f"{name} between {typeset(self.at_least)} and {_with(self.at_most, self.unit)}"
        if self.at_least is not None:
            return f"{name} at least {_with(self.at_least, self.unit)}"
        assert self.at_most is not None
        return f"{name} at most {_with(self.at_most, self.unit)}"


@dataclass(frozen=True)
class Value:
    """Agreement with a published number.

    A number that was published without its spread is compared with the interval that would hold the result of one
    more run, our *prediction interval* (`prediction: true`), or with a stated `margin` or `factor`.

    Attributes:
        published: the number, or one for each way of measuring.
        margin: the interval of ours lies within so much of it.
        factor: the ratio of ours to it lies within this factor.
        prediction: the number lies in our prediction interval. It does not if Wilson's interval of the published
            share of `images` lies outside altogether, too; in between nothing is decided.
        images: of the published test error in per cent.
        widest: a prediction interval that is wider decides nothing in favour: it would reward noise.
        unit: of the quantity.

    Raises:
        InvalidArgumentError: not exactly one of `margin`, `factor` and `prediction` is given.
    """

    published: float | Mapping[str, float]
    margin: float | None = None
    factor: float | None = None
    prediction: bool = False
    images: int | None = None
    widest: float = math.inf
    unit: str = ""

    def __post_init__(self) -> None:
        given = [self.margin is not None, self.factor is not None, self.prediction]
        if sum(given) != 1:
            raise InvalidArgumentError("a value needs one of margin, factor and prediction: true")

    def judge(self, found: Interval, way: str) -> Verdict:
        """See `Bound`.

        Raises:
            UnknownNameError: nothing was published for that way of measuring.
        """
        published = self._published(way)
        if self.margin is not None:
            return within(found, published - self.margin, published + self.margin)
        if self.factor is not None:
            return within(found, published / self.factor, published * self.factor)
        assert found.low is not None
        assert found.high is not None
        if found.low <= published <= found.high:
            return Verdict.HOLDS if found.high - found.low <= self.widest else Verdict.UNDECIDED
        if self.images is None:
            return Verdict.FAILS
        own = proportion_interval(round(published / 100 * self.images), self.images)
        assert own.low is not None
        assert own.high is not None
        apart = 100 * own.high < found.low or found.high < 100 * own.low
        return Verdict.FAILS if apart else Verdict.UNDECIDED

    def words(self, name: str) -> str:
        """See `Bound`."""
        numbers = self.published.values() if isinstance(self.published, Mapping) else [self.published]
        published = f"the published {' / '.join(f'{x:g}' for x in numbers)}{f' {self.unit}' if self.unit else ''}"
        if self.margin is not None:
            return f"{name} within {_with(self.margin, self.unit)} of {published}"
        if self.factor is not None:
            return f"{name} within {typeset(1 / self.factor)} to {typeset(self.factor)} times {published}"
        text = f"{published} lies in the 95 % prediction interval of our {name}"
        if self.widest < math.inf:
            text += f", which is no wider than {_with(self.widest, self.unit)}"
        return text

    def _published(self, way: str) -> float:
        if not isinstance(self.published, Mapping):
            return self.published
        if way not in self.published:
            raise UnknownNameError("published value", way, self.published)
        return self.published[way]


@dataclass(frozen=True)
class Difference:
    """A comparison, as a difference with a `margin` or as a ratio with a `factor`, positive or above 1 in favour.

    Two one-sided tests: what lies within the margin makes no relevant difference, so that *equal* is a result.

    Attributes:
        expected: `better` holds above `above` and fails below the margin; `equal` holds within the margin;
            `not worse` holds above minus the margin.
        margin: the least difference that matters.
        factor: the least ratio that matters, above 1.
        above: what *better* must exceed: 0, or 1 for a ratio, unless another number is given.
        unit: of the quantity.

    Raises:
        InvalidArgumentError: not exactly one of `margin` and `factor` is given, or it has no size.
        UnknownNameError: something else is expected.
    """

    expected: str
    margin: float | None = None
    factor: float | None = None
    above: float | None = None
    unit: str = ""

    def __post_init__(self) -> None:
        if self.expected not in EXPECTED:
            raise UnknownNameError("expected outcome", self.expected, EXPECTED)
        if (self.margin is None) == (self.factor is None):
            raise InvalidArgumentError("a difference needs one of margin and factor")
        if (self.margin is not None and self.margin <= 0) or (self.factor is not None and self.factor <= 1):
            raise InvalidArgumentError("a margin must be above 0, a factor above 1")

    def judge(self, found: Interval, way: str) -> Verdict:
        """See `Bound`."""
        worse, better = self._margins()
        if self.expected == "equal":
            return within(found, worse, better)
        if self.expected == "not worse":
            return within(found, worse, math.inf)
        assert found.low is not None
        assert found.high is not None
        if found.low > self._above():
            return Verdict.HOLDS
        return Verdict.FAILS if found.high < better else Verdict.UNDECIDED

    def words(self, name: str) -> str:
        """See `Bound`."""
        worse, better = self._margins()
        if self.expected == "equal":
            return f"equal, {name} between {typeset(worse)} and {_with(better, self.unit)}"
        if self.expected == "not worse":
            return f"not worse, {name} above {_with(worse, self.unit)}"
        text = f"better, {name} above {_with(self._above(), self.unit)}"
        return f"{text} (not better where it stays below {_with(better, self.unit)})"

    def _margins(self) -> tuple[float, float]:
        if self.margin is not None:
            return -self.margin, self.margin
        assert self.factor is not None
        return 1 / self.factor, self.factor

    def _above(self) -> float:
        return (0.0 if self.factor is None else 1.0) if self.above is None else self.above


EXPECTED = ("better", "equal", "not worse")

KINDS: Mapping[str, Callable[..., Bound]] = {"value": Value, "difference": Difference, "law": Law}


@dataclass(frozen=True)
class Rule:
    """How a claim is decided.

    Attributes:
        kind: `value`, `difference` or `law`.
        measured: on what, in words.
        bounds: what is asked of each quantity, by its name.
        least_n: with fewer seeds, or whatever a quantity's `n` counts, nothing is decided.
    """

    kind: str
    measured: str
    bounds: Mapping[str, Bound]
    least_n: int = 0

    def words(self) -> str:
        """The rule in a line."""
        asked = " and ".join(bound.words(name) for name, bound in self.bounds.items())
        text = f"{self.kind}, {self.measured}: {asked}" if self.measured else f"{self.kind}: {asked}"
        return f"{text}; n at least {self.least_n}" if self.least_n else text


def parse_rule(given: Any) -> Rule:
    """A rule as `claims.yaml` has it: the kind with its quantities, and `measured` and `least_n`.

    Raises:
        InvalidArgumentError: it is something else; says what.
        UnknownNameError: there is no such kind.
    """
    if not isinstance(given, Mapping):
        raise InvalidArgumentError(f"a rule must hold a kind ({', '.join(KINDS)}), got {given!r}")
    rest = dict(given)
    measured, least_n = rest.pop("measured", ""), rest.pop("least_n", 0)
    if len(rest) != 1:
        raise InvalidArgumentError(f"a rule must have one kind ({', '.join(KINDS)}), got {list(rest)}")
    ((kind, quantities),) = rest.items()
    if kind not in KINDS:
        raise UnknownNameError("kind of rule", kind, KINDS)
    if not isinstance(quantities, Mapping) or not quantities:
        raise InvalidArgumentError(f"{kind} must name quantities with what is asked of them, got {quantities!r}")
    return Rule(kind, measured, {name: _bound(kind, name, asked) for name, asked in quantities.items()}, least_n)


def _bound(kind: str, name: str, asked: Any) -> Bound:
    make = KINDS[kind]
    known = [field.name for field in fields(make)]  # type: ignore[arg-type]  # they are dataclasses
    if not isinstance(asked, Mapping):
        raise InvalidArgumentError(f"{name} must be asked for one of {', '.join(known)}, got {asked!r}")
    for field, value in asked.items():
        if field not in known:
            raise UnknownNameError(f"part of a {kind}", field, known)
        if field in ("unit", "expected", "prediction"):
            continue
        for number in value.values() if isinstance(value, Mapping) else [value]:
            if isinstance(number, bool) or not isinstance(number, int | float):
                raise InvalidArgumentError(f"{name}: {field} must be a number, got {number!r}")
    try:
        return make(**asked)
    except TypeError as error:
        raise InvalidArgumentError(f"{name}: {error}") from error


def _with(number: float, unit: str) -> str:
    return f"{typeset(number)} {unit}" if unit else typeset(number)
