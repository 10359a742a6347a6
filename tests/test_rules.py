"""The rules of claims: what each kind says about intervals on either side of its bounds."""

import math
from typing import Any

import pytest

from neural_ode.errors import InvalidArgumentError, NeuralODEError
from reproduction.measure.fits import Interval, proportion_interval
from reproduction.rules import Difference, Law, Value, Verdict, parse_rule

HOLDS, FAILS, UNDECIDED = Verdict.HOLDS, Verdict.FAILS, Verdict.UNDECIDED


def interval(low: float, high: float) -> Interval:
    return Interval((low + high) / 2, low, high, 5)


@pytest.mark.parametrize(
    ("bounds", "low", "high", "verdict"),
    [
        ({"at_least": 0.8}, 0.8, 9.0, HOLDS),
        ({"at_least": 0.8}, 0.7, 0.9, UNDECIDED),
        ({"at_least": 0.8}, 0.7, 0.79, FAILS),
        ({"at_least": 0.8}, math.inf, math.inf, HOLDS),
        ({"at_most": 1e-6}, 0.0, 1e-6, HOLDS),
        ({"at_most": 1e-6}, 0.0, 2e-6, UNDECIDED),
        ({"at_most": 1e-6}, 2e-6, 3e-6, FAILS),
        ({"at_most": 1e-6}, math.inf, math.inf, FAILS),
        ({"at_least": 1, "at_most": 2}, 1.0, 2.0, HOLDS),
        ({"at_least": 1, "at_most": 2}, 0.0, 3.0, UNDECIDED),
        ({"at_least": 1, "at_most": 2}, 2.1, 3.0, FAILS),
        ({"at_least": 1, "at_most": 2}, 0.0, 0.9, FAILS),
        ({"at_least": 1, "at_most": 1}, 1.0, 1.0, HOLDS),
        ({"at_least": 1, "at_most": 1}, 3.0, 3.0, FAILS),
    ],
)
def test_a_law(bounds: dict[str, float], low: float, high: float, verdict: Verdict) -> None:
    assert Law(**bounds).judge(interval(low, high), "") is verdict


@pytest.mark.parametrize(
    ("how", "low", "high", "verdict"),
    [
        ({"margin": 0.1}, 0.4, 0.6, HOLDS),
        ({"margin": 0.1}, 0.39, 0.55, UNDECIDED),
        ({"margin": 0.1}, 0.3, 0.7, UNDECIDED),
        ({"margin": 0.1}, 0.61, 0.7, FAILS),
        ({"factor": 1.25}, 0.4, 0.625, HOLDS),
        ({"factor": 1.25}, 0.39, 0.6, UNDECIDED),
        ({"factor": 1.25}, 0.63, 0.9, FAILS),
        ({"prediction": True}, 0.2, 0.5, HOLDS),
        ({"prediction": True}, 0.2, 0.49, FAILS),
        ({"prediction": True}, 0.51, 0.6, FAILS),
        ({"prediction": True, "widest": 0.3}, 0.2, 0.5, HOLDS),
        ({"prediction": True, "widest": 0.29}, 0.2, 0.5, UNDECIDED),
    ],
)
def test_a_value(how: dict[str, Any], low: float, high: float, verdict: Verdict) -> None:
    assert Value(published=0.5, **how).judge(interval(low, high), "") is verdict


def test_a_published_test_error_has_an_interval_of_its_own() -> None:
    """0.5 % of 10,000 images are 50 errors: Wilson's interval is 0.38 to 0.66 %."""
    own = proportion_interval(50, 10_000)
    assert (100 * own.low, 100 * own.high) == pytest.approx((0.380, 0.658), abs=1e-3)
    rule = Value(published=0.5, prediction=True, images=10_000)
    assert rule.judge(interval(0.3, 0.37), "") is FAILS
    assert rule.judge(interval(0.3, 0.39), "") is UNDECIDED
    assert rule.judge(interval(0.65, 0.7), "") is UNDECIDED
    assert rule.judge(interval(0.67, 0.7), "") is FAILS
    assert rule.judge(interval(0.4, 0.52), "") is HOLDS


def test_each_way_has_its_published_value() -> None:
    rule = Value(published={"30": 0.16, "100": 0.13}, factor=1.25)
    assert rule.judge(interval(0.19, 0.2), "30") is HOLDS
    assert rule.judge(interval(0.19, 0.2), "100") is FAILS
    with pytest.raises(NeuralODEError, match="unknown published value '50'"):
        rule.judge(interval(0.19, 0.2), "50")


@pytest.mark.parametrize(
    ("how", "low", "high", "verdict"),
    [
        ({"expected": "equal", "margin": 0.1}, -0.1, 0.1, HOLDS),
        ({"expected": "equal", "margin": 0.1}, -0.05, 0.11, UNDECIDED),
        ({"expected": "equal", "margin": 0.1}, -0.3, 0.3, UNDECIDED),
        ({"expected": "equal", "margin": 0.1}, -0.3, -0.11, FAILS),
        ({"expected": "equal", "factor": 1.25}, 0.8, 1.25, HOLDS),
        ({"expected": "equal", "factor": 1.25}, 0.79, 1.0, UNDECIDED),
        ({"expected": "equal", "factor": 1.25}, 1.26, 2.0, FAILS),
        ({"expected": "better", "margin": 0.1}, 0.01, 0.5, HOLDS),
        ({"expected": "better", "margin": 0.1}, -0.01, 0.5, UNDECIDED),
        ({"expected": "better", "margin": 0.1}, -0.01, 0.09, FAILS),
        ({"expected": "better", "margin": 0.1, "above": 0.05}, 0.04, 0.5, UNDECIDED),
        ({"expected": "better", "margin": 0.1, "above": 0.05}, 0.06, 0.5, HOLDS),
        ({"expected": "better", "factor": 1.25}, 1.01, 1.1, HOLDS),
        ({"expected": "better", "factor": 1.25}, 0.5, 1.24, FAILS),
        ({"expected": "better", "factor": 1.25}, 0.5, 1.26, UNDECIDED),
        ({"expected": "not worse", "margin": 0.1}, -0.1, 5.0, HOLDS),
        ({"expected": "not worse", "margin": 0.1}, -0.11, 5.0, UNDECIDED),
        ({"expected": "not worse", "margin": 0.1}, -0.5, -0.11, FAILS),
    ],
)
def test_a_difference(how: dict[str, Any], low: float, high: float, verdict: Verdict) -> None:
    assert Difference(**how).judge(interval(low, high), "") is verdict


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("above 0", r"a rule must hold a kind \(value, difference, law\), got 'above 0'"),
        ({"measured": "on all"}, r"must have one kind \(value, difference, law\), got \[\]"),
        ({"law": {"x": {"at_least": 1}}, "value": {}}, r"must have one kind .* got \['law', 'value'\]"),
        ({"lav": {"x": {"at_least": 1}}}, r"unknown kind of rule 'lav', did you mean 'law'\?"),
        ({"law": {}}, r"law must name quantities .* got {}"),
        ({"law": {"x": 3}}, r"x must be asked for one of at_least, at_most, unit, got 3"),
        ({"law": {"x": {}}}, r"a law needs at_least or at_most"),
        ({"law": {"x": {"at_lest": 1}}}, r"unknown part of a law 'at_lest', did you mean 'at_least'"),
        ({"law": {"x": {"at_least": "1"}}}, r"x: at_least must be a number, got '1'"),
        ({"value": {"x": {"margin": 1}}}, r"x: .*missing 1 required positional argument: 'published'"),
        ({"value": {"x": {"published": 1}}}, r"a value needs one of margin, factor and prediction"),
        ({"value": {"x": {"published": 1, "margin": 1, "factor": 2}}}, r"a value needs one of margin, factor"),
        ({"value": {"x": {"published": {"a": None}, "margin": 1}}}, r"x: published must be a number, got None"),
        ({"difference": {"x": {"expected": "better"}}}, r"a difference needs one of margin and factor"),
        ({"difference": {"x": {"expected": "best", "margin": 1}}}, r"unknown expected outcome 'best'"),
        ({"difference": {"x": {"expected": "equal", "margin": 0}}}, r"a margin must be above 0"),
        ({"difference": {"x": {"expected": "equal", "factor": 0.8}}}, r"a factor above 1"),
    ],
)
def test_a_mistake_in_a_rule_is_named(given: Any, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        parse_rule(given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"law": {"slope": {"at_least": 0.8}, "error": {"at_most": 1e-6}}},
            "law: slope at least 0.8 and error at most 10⁻⁶",
        ),
        (
            {"measured": "by seed", "law": {"x": {"at_least": -1, "at_most": 2, "unit": "s"}}},
            "law, by seed: x between −1 and 2 s",
        ),
        ({"law": {"turns": {"at_least": 1, "at_most": 1}}, "least_n": 5}, "law: turns exactly 1; n at least 5"),
        (
            {"value": {"error": {"published": 1.6, "prediction": True, "widest": 0.6, "unit": "%"}}},
            "value: the published 1.6 % lies in the 95 % prediction interval of our error, "
            "which is no wider than 0.6 %",
        ),
        (
            {"value": {"x": {"published": {"a": 1, "b": 2}, "factor": 1.25}}},
            "value: x within 0.8 to 1.25 times the published 1 / 2",
        ),
        ({"value": {"x": {"published": 3, "margin": 0.1}}}, "value: x within 0.1 of the published 3"),
        ({"difference": {"x": {"expected": "equal", "margin": 0.1}}}, "difference: equal, x between −0.1 and 0.1"),
        ({"difference": {"x": {"expected": "not worse", "margin": 0.1}}}, "difference: not worse, x above −0.1"),
        (
            {"difference": {"x": {"expected": "better", "factor": 1.25}}},
            "difference: better, x above 1 (not better where it stays below 1.25)",
        ),
    ],
)
def test_rules_in_words(given: Any, words: str) -> None:
    assert parse_rule(given).words() == words
