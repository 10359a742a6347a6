"""The claims as data, and the rules that decide them."""

import operator
import re
from pathlib import Path

import pytest

from neural_ode.errors import FileError, InvalidArgumentError, UnknownNameError
from reproduction.claims import OPERATORS, Claim, Verdict, decide, load_claims, verdict_table


def claim(scale: str = "quick", **holds_if) -> Claim:
    return Claim("a.b", "It works.", "Table 1", "it works", holds_if, scale, "04_mnist")


def test_every_claim_can_be_decided(root: Path) -> None:
    claims = load_claims()
    assert len(claims) >= 35
    for one in claims.values():
        assert one.scale in ("quick", "paper")
        assert one.sentence.endswith(".")
        assert one.holds_if
        for conditions in one.holds_if.values():
            for condition in [conditions] if isinstance(conditions, str) else conditions:
                sign, bound = condition.split()
                assert sign in OPERATORS
                float(bound)
        assert (root / "notebooks" / f"{one.notebook}.ipynb").exists(), one.id


GOOD = """
04_toy:
  group.name:
    sentence: It works.
    item: Table 1
    rule: it works
    holds_if: {estimate: ["> 0", "<= 1.5e-3"]}
    scale: quick
"""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("scale: quick", "scale: quik"), r"group\.name: unknown scale 'quik', did you mean 'quick'\?"),
        (
            ('"> 0"', '"=> 0"'),
            r"group\.name: estimate must be an operator \(< <= > >= ==\) and .*got '=> 0'",
        ),
        (('"> 0"', '">0"'), r"group\.name: estimate must be an operator.*got '>0'"),
        (('"> 0"', '"> nought"'), r"group\.name: estimate must be .*got '> nought'"),
        (('"> 0"', "3"), r"group\.name: estimate must be .*got 3"),
        (('{estimate: ["> 0", "<= 1.5e-3"]}', "{}"), r"group\.name: holds_if must name fields.*got {}"),
        (('{estimate: ["> 0", "<= 1.5e-3"]}', '"> 0"'), r"group\.name: holds_if must name fields.*got '> 0'"),
        (("    item: Table 1\n", ""), r"group\.name: .*missing 1 required positional argument: 'item'"),
        (("item: Table 1", "itm: Table 1"), r"group\.name: .*unexpected keyword argument 'itm'"),
        (("  group.name:\n", "  - name\n  # "), r"claims\.yaml"),
        (("04_toy:", "04_toy: ["), r"claims\.yaml is not valid YAML"),
        ((GOOD, "04_toy: 3"), r"04_toy must hold claims by their names, got 3"),
        ((GOOD, "- group"), r"claims\.yaml must hold names with values, got list"),
    ],
)
def test_a_mistake_in_the_claims_is_refused_when_they_are_loaded(
    change: tuple[str, str], words: str, tmp_path: Path
) -> None:
    file = tmp_path / "claims.yaml"
    file.write_text(GOOD)
    assert load_claims(file)["group.name"].sentence == "It works."
    load_claims.cache_clear()
    file.write_text(GOOD.replace(*change))
    with pytest.raises(FileError, match=rf"claims\.yaml.*{words}" if not words.startswith("claims") else words):
        load_claims(file)


def test_missing_claims_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"claims\.yaml does not exist"):
        load_claims(tmp_path / "claims.yaml")


def test_every_claim_is_measured_by_its_notebook(root: Path) -> None:
    for one in load_claims().values():
        text = (root / "notebooks" / f"{one.notebook}.ipynb").read_text(encoding="utf-8")
        assert re.search(rf'\\"{re.escape(one.id)}\\"', text), one.id


@pytest.mark.parametrize(
    ("fields", "verdict"),
    [
        ({"low": -0.1, "high": 0.1}, Verdict.HOLDS),
        ({"low": 0.0, "high": 0.0}, Verdict.HOLDS),
        ({"low": 0.01, "high": 0.1}, Verdict.FAILS),
        ({"low": -0.2, "high": -0.1}, Verdict.FAILS),
        ({"low": None, "high": None}, Verdict.UNTESTED),
    ],
)
def test_interval_contains_zero(fields: dict, verdict: Verdict) -> None:
    assert decide(claim(low="<= 0", high=">= 0"), {"way": {"estimate": 0, **fields}}, "quick") is verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.05, 0.05, Verdict.HOLDS),
        (-0.05, 0.15, Verdict.UNDECIDED),
        (-0.15, 0.05, Verdict.UNDECIDED),
        (-0.3, 0.3, Verdict.UNDECIDED),
        (0.11, 0.15, Verdict.FAILS),
        (-0.3, -0.11, Verdict.FAILS),
    ],
)
def test_an_interval_around_a_bound_decides_nothing(low: float, high: float, verdict: Verdict) -> None:
    within = claim(low=">= -0.1", high="<= 0.1")
    assert decide(within, {"way": {"estimate": 0, "low": low, "high": high}}, "quick") is verdict


def test_a_way_that_fails_outweighs_one_that_is_undecided() -> None:
    ways = {"a": {"low": -1.0, "high": 1.0}, "b": {"low": -2.0, "high": -1.0}}
    assert decide(claim(low="> 0"), {"a": ways["a"]}, "quick") is Verdict.UNDECIDED
    assert decide(claim(low="> 0"), ways, "quick") is Verdict.FAILS


@pytest.mark.parametrize(("low", "high", "verdict"), [(-2, 52, Verdict.UNDECIDED), (-2, 20, Verdict.FAILS)])
def test_an_estimate_decides_where_its_interval_is_narrow(low: float, high: float, verdict: Verdict) -> None:
    within = claim(estimate=[">= 30", "<= 50"])
    assert decide(within, {"way": {"estimate": 0, "low": low, "high": high}}, "quick") is verdict


def test_a_share_has_an_interval_of_its_own() -> None:
    ways = {"way": {"share_low": 0.4, "share_high": 0.6}}
    assert decide(claim(share_low="> 0.5"), ways, "quick") is Verdict.UNDECIDED
    assert decide(claim(share_high="< 0.5"), ways, "quick") is Verdict.UNDECIDED
    assert decide(claim(share_low="> 0.7"), ways, "quick") is Verdict.FAILS
    assert decide(claim(share_high="< 0.3"), ways, "quick") is Verdict.FAILS


def test_without_the_other_end_a_condition_decides() -> None:
    assert decide(claim(low="> 0"), {"a": {"low": -1.0, "high": None}}, "quick") is Verdict.FAILS


def test_one_way_of_measuring_that_fails_is_enough() -> None:
    ways = {"a": {"estimate": 1.0}, "b": {"estimate": 3.0}}
    assert decide(claim(estimate=["> 0", "< 2"]), ways, "quick") is Verdict.FAILS
    assert decide(claim(estimate=["> 0", "< 4"]), ways, "quick") is Verdict.HOLDS


def test_a_claim_waits_for_its_scale() -> None:
    ways = {"a": {"estimate": 1.0}}
    assert decide(claim("paper", estimate="> 0"), ways, "quick") is Verdict.UNTESTED
    for full in ("paper", "gpu"):
        assert decide(claim("paper", estimate="> 0"), ways, full) is Verdict.HOLDS
    assert decide(claim("paper", estimate="> 0"), ways, "medium") is Verdict.UNTESTED
    assert decide(claim(estimate="> 0"), ways, "medium") is Verdict.HOLDS
    assert decide(claim(estimate="> 0"), {}, "paper") is Verdict.UNTESTED


def test_a_measurement_without_the_field_of_the_rule() -> None:
    with pytest.raises(InvalidArgumentError, match=r"a\.b, way: the rule asks for 'r2'"):
        decide(claim(r2="> 0.9"), {"way": {"estimate": 1}}, "quick")


@pytest.mark.parametrize("sign", OPERATORS)
@pytest.mark.parametrize("value", [0.9, 1.0, 1.1])
def test_conditions_are_what_they_look_like(sign: str, value: float) -> None:
    names = {"<": "lt", "<=": "le", ">": "gt", ">=": "ge", "==": "eq"}
    expected = Verdict.HOLDS if getattr(operator, names[sign])(value, 1.0) else Verdict.FAILS
    assert decide(claim(estimate=f"{sign} 1.0"), {"way": {"estimate": value}}, "quick") is expected


def test_verdict_table() -> None:
    measured = {"estimate": 1.4, "low": 1.3, "high": 1.5, "r2": 0.999, "n": 6, "unit": "MiB"}
    table = verdict_table({"memory.rknet_linear": {"bytes kept": measured}}, "quick")
    assert list(table.columns) == ["claim", "rule", "paper", "here", "holds?"]
    assert table.loc["memory.rknet_linear", "here"] == "bytes kept: 1.4 [1.3, 1.5] MiB, R² 0.999 (n = 6)"
    assert table.loc["memory.rknet_linear", "holds?"] == "holds"
    with pytest.raises(UnknownNameError, match=r"did you mean 'memory\.rknet_linear'"):
        verdict_table({"memory.rknet_linea": {}}, "quick")
