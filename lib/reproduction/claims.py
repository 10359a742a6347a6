"""The claims of the paper, and of others about its method, as data; and how a measurement decides one."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from neural_ode.errors import FileError, InvalidArgumentError, UnknownNameError, needs
from reproduction.files import read_yaml
from reproduction.measure.fits import Interval, Line
from reproduction.notation import typeset_interval
from reproduction.rules import Bound, Rule, Verdict, parse_rule

with needs("notebooks"):
    import pandas as pd

__all__ = [
    "WHOSE",
    "Amendment",
    "Claim",
    "Measurement",
    "RuleChangedError",
    "as_json",
    "decide",
    "describe",
    "freeze",
    "load_claims",
    "verdict_table",
]

SCALES = ("quick", "paper")
"""What a claim's scale can be."""

FULL_SCALE = ("paper", "gpu")
"""The profiles that decide claims of scale `paper`."""

WHOSE = ("paper", "later", "background")
"""The paper's own; what others found later; what was known before, and belongs to the subject."""

PAPER_YEAR = 2018

INFINITE = ("inf", "-inf")
"""How what JSON has no number for is stored."""

Measurement = Mapping[str, Mapping[str, Any]]
"""By way of measuring, the quantities that the rule asks for, each an interval, as it is or as `as_json` gives it,
or a number that is exact."""


class RuleChangedError(InvalidArgumentError):
    """A frozen rule is another one, and nothing says why."""


@dataclass(frozen=True)
class Amendment:
    """A rule that was changed: what it was, what it said, and why it is no more.

    Attributes:
        date: of the change.
        reason: why.
        rule: the former rule, in words.
        verdict: what it said in the end.
        here: of which measurement.
    """

    date: str
    reason: str
    rule: str
    verdict: str
    here: str

    def __post_init__(self) -> None:
        if not isinstance(self.date, str):  # of YAML's own type, for which DVC has no place
            raise InvalidArgumentError(f"a date stands in quotes, got {self.date!r}")
        if self.verdict not in {*Verdict}:
            raise UnknownNameError("verdict", self.verdict, [str(v) for v in Verdict])


@dataclass(frozen=True)
class Claim:
    """A claim; `claims.yaml` explains the fields.

    Raises:
        UnknownNameError: there is no such scale, or a claim is of nobody.
        InvalidArgumentError: it is not the paper's, and has no reference with a year that fits.
    """

    id: str
    notebook: str
    sentence: str
    short: str
    item: str
    rule: Rule
    scale: str
    whose: str = "paper"
    reference: str = ""
    published: str = "–"
    needs: str = ""
    amended: tuple[Amendment, ...] = ()

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise UnknownNameError("scale", self.scale, SCALES)
        if self.whose not in WHOSE:
            raise UnknownNameError("whose", self.whose, WHOSE)
        years = [int(word) for word in self.reference.replace(",", " ").split() if word.isdecimal()]
        if self.whose != "paper" and not years:
            raise InvalidArgumentError("a claim that is not the paper's needs a reference with its year")
        if self.whose == "later" and min(years) < PAPER_YEAR:
            raise InvalidArgumentError(f"later than {PAPER_YEAR}, but its reference is {self.reference}")
        if self.whose == "background" and max(years) > PAPER_YEAR:
            raise InvalidArgumentError(f"background, but its reference is {self.reference}")

    @property
    def source(self) -> str:
        """Where the claim stands: in the paper, or in which other one."""
        return self.item if self.whose == "paper" else f"{self.reference}; the paper's {self.item}"


FILE = Path(__file__).with_name("claims.yaml")


@cache
def load_claims(file: Path = FILE) -> dict[str, Claim]:
    """All claims by their id, in the order of `claims.yaml`, where they stand below their notebooks.

    Raises:
        FileError: the file is damaged, or a claim lacks a field, has an unknown one, or has a value that it cannot
            have.
    """
    remedy = "the first lines of claims.yaml explain the fields"
    found = {}
    for notebook, claims in read_yaml(file, remedy).items():
        if not isinstance(claims, dict):
            raise FileError(f"{file}: {notebook} must hold claims by their names, got {claims!r}: {remedy}")
        for id, fields in claims.items():
            try:
                found[id] = _claim(id, notebook, fields)
            except (TypeError, InvalidArgumentError) as error:
                raise FileError(f"{file}: {id}: {error}: {remedy}") from error
    return found


def _claim(id: str, notebook: str, fields: Any) -> Claim:
    if not isinstance(fields, dict):
        raise InvalidArgumentError(f"a claim must have fields, got {fields!r}")
    amended = tuple(Amendment(**one) for one in fields.get("amended", []))
    given = {**fields, "amended": amended}
    if "rule" in fields:
        given["rule"] = parse_rule(fields["rule"])
    return Claim(id=id, notebook=notebook, **given)


def decide(claim: Claim, measurement: Measurement, profile: str) -> Verdict:
    """Apply the claim's rule.

    A claim holds if every way of measuring it satisfies the rule for every quantity, and does not if one fails.

    Raises:
        InvalidArgumentError: the measurement lacks a quantity of the rule.
    """
    # A profile of the user's own counts as a small one.
    if not measurement or (claim.scale == "paper" and profile not in FULL_SCALE):
        return Verdict.UNTESTED
    verdicts = set()
    for way, quantities in measurement.items():
        for name, bound in claim.rule.bounds.items():
            if name not in quantities:
                raise InvalidArgumentError(
                    f"{claim.id}, {way}: the rule asks for {name!r}, got {sorted(quantities)}"
                )
            found = _interval(quantities[name])
            if found.low is None or found.high is None:
                verdicts.add(Verdict.UNTESTED)
            elif found.n and found.n < claim.rule.least_n:
                verdicts.add(Verdict.UNDECIDED)
            else:
                verdicts.add(bound.judge(found, way))
    order = (Verdict.UNTESTED, Verdict.FAILS, Verdict.UNDECIDED, Verdict.HOLDS)
    return next(verdict for verdict in order if verdict in verdicts)


def _interval(found: Any) -> Interval:
    """A quantity of a measurement as an interval; one that is exact has no width."""
    if isinstance(found, Interval):
        return found
    if isinstance(found, Line):
        return found.interval
    if isinstance(found, Mapping):
        stored: dict[str, Any] = {key: float(x) if x in INFINITE else x for key, x in found.items()}
        return Interval(**stored)
    return Interval(float(found), float(found), float(found), 0, "exact")


def as_json(measurements: Mapping[str, Measurement]) -> dict[str, Any]:
    """Measurements by claim as they are stored: intervals by their fields, infinity as text."""

    def plain(found: Any) -> dict[str, Any]:
        stored = _interval(found).as_dict()
        return {key: str(x) if isinstance(x, float) and math.isinf(x) else x for key, x in stored.items()}

    return {
        id: {way: {name: plain(x) for name, x in quantities.items()} for way, quantities in measurement.items()}
        for id, measurement in measurements.items()
    }


def freeze(claims: Mapping[str, Claim], frozen: Mapping[str, Any]) -> dict[str, Any]:
    """The record of the rules as they are now, if every change since `frozen`, the last record, is explained.

    A rule, and the scale at which it decides, may change only with a further entry under `amended`; entries that
    are there stay as they are. A claim may come, and go as an entry of another that names it.

    Args:
        claims: as they are now.
        frozen: by id, the digest of the `rule` and of each entry `amended`.

    Raises:
        RuleChangedError: a change is not explained; names the claims.
    """
    record = {id: _record(claim) for id, claim in claims.items()}
    problems = []
    told = " ".join(entry.reason for claim in claims.values() for entry in claim.amended)
    for id, before in frozen.items():
        if id not in record:
            if id not in told:
                problems.append(f"{id} is gone, and no `amended` entry names it")
            continue
        now, old = record[id], before["amended"]
        if now["amended"][: len(old)] != old:
            problems.append(f"{id}: an entry under `amended` was changed")
        elif now["rule"] != before["rule"] and len(now["amended"]) == len(old):
            problems.append(f"{id}: the rule was changed without an entry under `amended`")
    if problems:
        raise RuleChangedError("; ".join(problems))
    return record


def _record(claim: Claim) -> dict[str, Any]:
    rule = {**asdict(claim.rule), "scale": claim.scale}
    return {"rule": _digest(rule), "amended": [_digest(asdict(entry)) for entry in claim.amended]}


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def verdict_table(measurements: Mapping[str, Measurement], profile: str) -> pd.DataFrame:
    """The table that closes a notebook: *claim | rule | published | here*, a row for each claim, with its verdict.

    Args:
        measurements: by claim id.
        profile: the profile the measurements were made in.

    Raises:
        UnknownNameError: there is no claim of that id.
    """
    claims = load_claims()
    for id in measurements:
        if id not in claims:
            raise UnknownNameError("claim", id, claims)
    verdicts = {id: decide(claims[id], measurement, profile) for id, measurement in measurements.items()}
    rows = [
        {
            "claim": claims[id].sentence
            if claims[id].whose == "paper"
            else f"{claims[id].sentence} ({claims[id].reference})",
            "rule": claims[id].rule.words(),
            "published": claims[id].published,
            "here": describe(claims[id], measurement),
        }
        for id, measurement in measurements.items()
    ]
    return pd.DataFrame(rows, index=[f"{verdict.sign} {verdict}" for verdict in verdicts.values()])


def describe(claim: Claim, measurement: Measurement) -> str:
    """The measured values in a line: what the rule asks for, for each way, with intervals and units."""
    bounds = claim.rule.bounds
    alone = len(bounds) == 1 and "" not in measurement  # then its name stands in front, once
    parts = []
    for way, quantities in measurement.items():
        values = [_described(bound, _interval(quantities[name])) for name, bound in bounds.items()]
        named = values if alone else [f"{name} {value}" for name, value in zip(bounds, values, strict=True)]
        parts.append(f"{way}: {', '.join(named)}" if way else ", ".join(named))
    text = "; ".join(parts)
    return f"{next(iter(bounds))} – {text}" if alone and text else text


def _described(bound: Bound, found: Interval) -> str:
    text = typeset_interval(found.estimate, found.low, found.high)
    text = f"{text} {bound.unit}" if bound.unit else text
    if found.method == "regression":
        return f"{text} (regression, {found.n} points)"
    if found.n:
        return f"{text} (n = {found.n})" if found.method == "mean" else f"{text} ({found.method}, n = {found.n})"
    return text
