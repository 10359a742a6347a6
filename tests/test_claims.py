"""The claims as data, and how a measurement decides them."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from neural_ode.errors import FileError, InvalidArgumentError, UnknownNameError
from reproduction.claims import (
    Amendment,
    Claim,
    RuleChangedError,
    as_json,
    decide,
    describe,
    freeze,
    load_claims,
    verdict_table,
)
from reproduction.measure.fits import Interval, fit_line
from reproduction.pipeline.freeze import frozen
from reproduction.rules import Verdict, parse_rule

ABOVE: dict[str, Any] = {"law": {"gain": {"at_least": 0}}}


def claim(scale: str = "quick", rule: dict[str, Any] | None = None, **fields: Any) -> Claim:
    return Claim("a.b", "04_mnist", "It works.", "works", "Table 1", parse_rule(rule or ABOVE), scale, **fields)


def gain(low: float | None, high: float | None, n: int = 5) -> dict[str, Any]:
    return {"gain": Interval(0.0 if low is None or high is None else (low + high) / 2, low, high, n)}


def test_every_claim_can_be_decided(root: Path) -> None:
    claims = load_claims()
    assert len(claims) >= 45
    for one in claims.values():
        assert one.sentence.endswith("."), one.id
        assert len(one.short) <= 50, one.id
        assert (root / "notebooks" / f"{one.notebook}.ipynb").exists(), one.id
        assert (one.whose == "paper") == (not one.reference), one.id
        for entry in one.amended:
            assert entry.rule != one.rule.words(), one.id


def test_an_undecided_claim_says_what_it_would_take(root: Path) -> None:
    from reproduction.pipeline.board import read_board

    undecided = {id for id, row in read_board(root).items() if row["verdict"] == str(Verdict.UNDECIDED)}
    assert {id for id in undecided if not load_claims()[id].needs} == set()


def test_every_claim_is_measured_by_its_notebook(root: Path) -> None:
    for one in load_claims().values():
        text = (root / "notebooks" / f"{one.notebook}.ipynb").read_text(encoding="utf-8")
        stem = one.id.rpartition("_")[2]  # those of Table 1 are put together
        assert re.search(rf'\\"{re.escape(one.id)}\\"|table1\.{{short}}_{stem}', text), one.id


GOOD = """
04_toy:
  group.name:
    sentence: It works.
    short: works
    item: Table 1
    rule:
      law: {gain: {at_least: 0, at_most: 1.5e-3}}
    scale: quick
    amended:
      - {date: "2026-11-29", reason: too vague, rule: it works, verdict: holds, here: it does}
"""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("scale: quick", "scale: quik"), r"group\.name: unknown scale 'quik', did you mean 'quick'\?"),
        (("at_least: 0", "at_lest: 0"), r"group\.name: unknown part of a law 'at_lest'"),
        (("      law: {gain: {at_least: 0, at_most: 1.5e-3}}", "      measured: x"), r"group\.name: .*one kind"),
        (("    item: Table 1\n", ""), r"group\.name: .*missing 1 required positional argument: 'item'"),
        (("item: Table 1", "itm: Table 1"), r"group\.name: .*unexpected keyword argument 'itm'"),
        (("scale: quick", "scale: quick\n    whose: mine"), r"group\.name: unknown whose 'mine'"),
        (("scale: quick", "scale: quick\n    whose: later"), r"group\.name: .*needs a reference with its year"),
        (
            ("scale: quick", "scale: quick\n    whose: later\n    reference: Griewank 1992"),
            r"group\.name: later than 2018, but its reference is Griewank 1992",
        ),
        (
            ("scale: quick", "scale: quick\n    whose: background\n    reference: Ott et al. 2021"),
            r"group\.name: background, but its reference is Ott et al\. 2021",
        ),
        (('"2026-11-29"', "2026-11-29"), r"group\.name: a date stands in quotes"),
        (("verdict: holds", "verdict: held"), r"group\.name: unknown verdict 'held'"),
        (("reason: too vague, ", ""), r"group\.name: .*missing 1 required positional argument: 'reason'"),
        (("  group.name:\n", "  - name\n  # "), r"claims\.yaml"),
        ((GOOD.partition("name:")[2], " 3"), r"group\.name: a claim must have fields, got 3"),
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
    found = load_claims(file)["group.name"]
    assert found.sentence == "It works."
    assert found.amended == (Amendment("2026-11-29", "too vague", "it works", "holds", "it does"),)
    load_claims.cache_clear()
    assert change[0] in GOOD
    file.write_text(GOOD.replace(*change))
    with pytest.raises(FileError, match=rf"claims\.yaml.*{words}" if not words.startswith("claims") else words):
        load_claims(file)


def test_missing_claims_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"claims\.yaml does not exist"):
        load_claims(tmp_path / "claims.yaml")


def test_all_ways_must_hold_and_one_that_fails_is_enough() -> None:
    holds, fails, open_ = gain(1, 2), gain(-2, -1), gain(-1, 1)
    assert decide(claim(), {"a": holds, "b": holds}, "quick") is Verdict.HOLDS
    assert decide(claim(), {"a": holds, "b": open_}, "quick") is Verdict.UNDECIDED
    assert decide(claim(), {"a": open_, "b": fails, "c": holds}, "quick") is Verdict.FAILS


def test_all_quantities_must_hold() -> None:
    rule = {"law": {"gain": {"at_least": 0}, "error": {"at_most": 1}}}
    assert decide(claim(rule=rule), {"": gain(1, 2) | {"error": 0.5}}, "quick") is Verdict.HOLDS
    assert decide(claim(rule=rule), {"": gain(1, 2) | {"error": math.inf}}, "quick") is Verdict.FAILS
    with pytest.raises(InvalidArgumentError, match=r"a\.b, way: the rule asks for 'error', got \['gain'\]"):
        decide(claim(rule=rule), {"way": gain(1, 2)}, "quick")


def test_one_run_and_too_few_runs_decide_nothing() -> None:
    assert decide(claim(), {"": gain(None, None, 1)}, "quick") is Verdict.UNTESTED
    several = claim(rule={**ABOVE, "least_n": 5})
    assert decide(several, {"": gain(1, 2, 4)}, "quick") is Verdict.UNDECIDED
    assert decide(several, {"": gain(-2, -1, 4)}, "quick") is Verdict.UNDECIDED
    assert decide(several, {"": gain(1, 2, 5)}, "quick") is Verdict.HOLDS
    assert decide(several, {"": {"gain": 1.0}}, "quick") is Verdict.HOLDS, "what is exact needs no repetition"


def test_a_claim_waits_for_its_scale() -> None:
    ways = {"a": gain(1, 2)}
    assert decide(claim("paper"), ways, "quick") is Verdict.UNTESTED
    for full in ("paper", "gpu"):
        assert decide(claim("paper"), ways, full) is Verdict.HOLDS
    assert decide(claim("paper"), ways, "medium") is Verdict.UNTESTED
    assert decide(claim(), ways, "medium") is Verdict.HOLDS
    assert decide(claim(), {}, "paper") is Verdict.UNTESTED


def test_what_is_stored_decides_the_same() -> None:
    line = fit_line([0, 1, 2, 3], [0.1, 0.9, 2.1, 2.9])
    rule = {"law": {"slope": {"at_least": 0.5}, "ratio": {"at_least": 2}, "share": {"at_most": 1}}}
    measured = {"a": {"slope": line, "ratio": math.inf, "share": Interval(0.5, None, None, 1)}}
    stored = as_json({"a.b": measured})["a.b"]
    assert stored["a"]["ratio"] == {"estimate": "inf", "low": "inf", "high": "inf", "n": 0, "method": "exact"}
    assert stored["a"]["slope"]["method"] == "regression"
    one = claim(rule=rule)
    assert describe(one, stored) == describe(one, measured)
    assert decide(one, stored, "quick") is decide(one, measured, "quick") is Verdict.UNTESTED
    measured["a"]["share"] = 0.5
    assert decide(one, as_json({"a.b": measured})["a.b"], "quick") is Verdict.HOLDS


def test_measured_values_in_words() -> None:
    rule = {"law": {"slope": {"at_least": 0, "unit": "MiB"}, "R²": {"at_least": 0.9}}}
    ways = {"kept": {"slope": Interval(1.4, 1.3, 1.5, 6, "regression"), "R²": 0.999}}
    assert describe(claim(rule=rule), ways) == "kept: slope 1.40 [1.30, 1.50] MiB (regression, 6 points), R² 0.999"
    assert describe(claim(rule=rule), {"": ways["kept"]}).startswith("slope 1.40 [")
    two = {"a": gain(-0.1, 0.2), "b": {"gain": math.inf}}
    assert describe(claim(), two) == "gain – a: 0.05 [−0.10, 0.20] (n = 5); b: ∞"
    assert describe(claim(), {"": {"gain": Interval(2.0, 1.0, 4.0, 3, "geometric mean")}}) == (
        "gain 2.0 [1.0, 4.0] (geometric mean, n = 3)"
    )
    assert describe(claim(), {}) == ""


def test_verdict_table() -> None:
    measured = {"": {"slope": Interval(-1.0, -1.1, -0.9, 9, "regression")}}
    table = verdict_table({"fig1.euler_limit": measured, "fig1.cannot_cross": {}}, "quick")
    assert list(table.columns) == ["claim", "rule", "published", "here"]
    assert list(table.index) == ["✓ holds", "· not tested at this scale"]
    assert table["here"].iloc[0] == "slope −1.00 [−1.10, −0.90] (regression, 9 points)"
    assert table["claim"].iloc[1].endswith("(Dupont et al. 2019)")
    with pytest.raises(UnknownNameError, match=r"did you mean 'memory\.rknet_linear'"):
        verdict_table({"memory.rknet_linea": {}}, "quick")


def test_the_rules_are_frozen() -> None:
    """Whoever changes a rule says so under `amended`, then runs `python -m reproduction.pipeline.freeze`."""
    assert freeze(load_claims(), frozen()) == frozen()


OLD = Amendment("2026-11-29", "too vague", "it works", "holds", "it does")
OTHER: dict[str, Any] = {"law": {"gain": {"at_least": -1}}}


def changed(before: dict[str, Any], **now: Any) -> dict[str, Any]:
    record = freeze({"a.b": claim(**before)}, {})
    return freeze({"a.b": claim(**now)}, record)


def test_a_rule_changes_only_with_an_entry() -> None:
    with pytest.raises(RuleChangedError, match=r"a\.b: the rule was changed without an entry under `amended`"):
        changed({}, rule=OTHER)
    with pytest.raises(RuleChangedError, match=r"a\.b: the rule was changed"):
        changed({}, scale="paper")
    assert changed({}, rule=OTHER, amended=(OLD,)) != freeze({"a.b": claim()}, {})
    assert changed({}, published="3", needs="more") == freeze({"a.b": claim()}, {}), "no part of the rule"


def test_what_was_amended_stays() -> None:
    with pytest.raises(RuleChangedError, match=r"a\.b: an entry under `amended` was changed"):
        changed({"amended": (OLD,)})
    with pytest.raises(RuleChangedError, match="an entry"):
        changed({"amended": (OLD,)}, amended=(replace(OLD, verdict="undecided"),), rule=OTHER)
    with pytest.raises(RuleChangedError, match="without an entry"):
        changed({"amended": (OLD,)}, amended=(OLD,), rule=OTHER)
    changed({"amended": (OLD,)}, amended=(OLD, OLD), rule=OTHER)


def test_a_claim_does_not_go_in_silence() -> None:
    record = freeze({"a.b": claim(), "a.c": claim()}, {})
    with pytest.raises(RuleChangedError, match=r"a\.c is gone, and no `amended` entry names it"):
        freeze({"a.b": claim()}, record)
    told = replace(OLD, reason="one sentence had two verdicts, here and in a.c")
    assert set(freeze({"a.b": claim(amended=(told,))}, record)) == {"a.b"}
