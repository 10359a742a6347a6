"""The paper's claims as data, and how a measurement decides one."""

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

from neural_ode.errors import FileError, InvalidArgumentError, UnknownNameError, needs
from reproduction.files import read_yaml

with needs("notebooks"):
    import pandas as pd

__all__ = ["Claim", "Measurement", "Verdict", "decide", "load_claims", "verdict_table"]

OPERATORS = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
}

INTERVAL = {
    "estimate": ("low", "high"),
    "low": ("high",),
    "high": ("low",),
    "share_low": ("share_high",),
    "share_high": ("share_low",),
}
"""For an estimate both ends of its 95 % interval, for one end the other one."""

SCALES = ("quick", "paper")
"""What a claim's scale can be."""

FULL_SCALE = ("paper", "gpu")
"""The profiles that decide claims of scale `paper`."""

Measurement = Mapping[str, Mapping[str, Any]]
"""Ways in which a claim was measured, by name, each with the fields that the claim's conditions ask for."""


class Verdict(StrEnum):
    """What a measurement says about a claim."""

    HOLDS = "holds"
    FAILS = "does not hold"
    UNDECIDED = "undecided"
    UNTESTED = "not tested at this scale"


@dataclass(frozen=True)
class Claim:
    """A claim of the paper; `claims.yaml` explains the fields.

    Raises:
        UnknownNameError: there is no such scale.
        InvalidArgumentError: a condition is not an operator and a number, or there is none.
    """

    id: str
    sentence: str
    item: str
    rule: str
    holds_if: Mapping[str, Any]
    scale: str
    notebook: str
    paper: str = "–"

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise UnknownNameError("scale", self.scale, SCALES)
        if not isinstance(self.holds_if, Mapping) or not self.holds_if:
            raise InvalidArgumentError(f"holds_if must name fields with their conditions, got {self.holds_if!r}")
        for field, conditions in self.holds_if.items():
            for condition in _listed(conditions):
                _parsed(condition, field)


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
                found[id] = Claim(id=id, notebook=notebook, **fields)
            except (TypeError, InvalidArgumentError) as error:
                raise FileError(f"{file}: {id}: {error}: {remedy}") from error
    return found


def decide(claim: Claim, measurement: Measurement, profile: str) -> Verdict:
    """Apply the claim's rule.

    A claim holds if every way of measuring it satisfies every condition. A condition on an estimate, or on an end
    of its interval, decides nothing if another value of the interval would satisfy it. Any other condition that is
    not satisfied refutes the claim.

    Raises:
        InvalidArgumentError: the measurement lacks a field of the rule. A field that is `None` (an interval from
            one run) leaves the claim untested.
    """
    # A profile of the user's own counts as a small one.
    if not measurement or (claim.scale == "paper" and profile not in FULL_SCALE):
        return Verdict.UNTESTED
    verdicts = set()
    for way, fields in measurement.items():
        for field, conditions in claim.holds_if.items():
            if field not in fields:
                raise InvalidArgumentError(f"{claim.id}, {way}: the rule asks for {field!r}, got {sorted(fields)}")
            if fields[field] is None:
                return Verdict.UNTESTED
            for condition in _listed(conditions):
                verdicts.add(_apply(condition, field, fields))
    return next(v for v in (Verdict.FAILS, Verdict.UNDECIDED, Verdict.HOLDS) if v in verdicts)


def _apply(condition: str, field: str, fields: Mapping[str, Any]) -> Verdict:
    if _satisfies(fields[field], condition):
        return Verdict.HOLDS
    ends = [fields[end] for end in INTERVAL.get(field, ()) if fields.get(end) is not None]
    return Verdict.UNDECIDED if any(_satisfies(end, condition) for end in ends) else Verdict.FAILS


def _satisfies(value: float, condition: str) -> bool:
    sign, bound = _parsed(condition, "condition")
    return bool(OPERATORS[sign](value, bound))


def _listed(conditions: Any) -> Any:
    """One condition, or a list of them, as a list."""
    return conditions if isinstance(conditions, list) else [conditions]


def _parsed(condition: Any, field: str) -> tuple[str, float]:
    """A condition such as `"<= 0.1"` as operator and bound.

    Raises:
        InvalidArgumentError: it is something else; names the field.
    """
    try:
        sign, bound = condition.split()
        if sign in OPERATORS:
            return sign, float(bound)
    except (AttributeError, ValueError):
        pass
    raise InvalidArgumentError(
        f"{field} must be an operator ({' '.join(OPERATORS)}) and a number, such as '<= 0.1', got {condition!r}"
    )


def verdict_table(measurements: Mapping[str, Measurement], profile: str) -> pd.DataFrame:
    """The table that closes a notebook: *claim | rule | paper | here | holds?*, a row for each claim.

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
    rows = [
        {
            "claim": claims[id].sentence,
            "rule": claims[id].rule,
            "paper": claims[id].paper,
            "here": describe(claims[id], measurement),
            "holds?": str(decide(claims[id], measurement, profile)),
        }
        for id, measurement in measurements.items()
    ]
    return pd.DataFrame(rows, index=pd.Index(list(measurements), name="id"))


def describe(claim: Claim, measurement: Measurement) -> str:
    """The measured values in a line: of each way estimate, interval and unit, and what else decides."""
    return "; ".join(_describe_one(claim, way, fields) for way, fields in measurement.items())


def _describe_one(claim: Claim, way: str, fields: Mapping[str, Any]) -> str:
    if fields.get("n") == 0:
        return f"{way}: nothing finite to measure"
    text = f"{way}: {fields['estimate']:.3g}"
    if fields.get("low") is not None and fields.get("high") is not None:
        text += f" [{fields['low']:.3g}, {fields['high']:.3g}]"
    if fields.get("unit"):
        text += f" {fields['unit']}"
    shown = {fields["estimate"], fields.get("low"), fields.get("high")}
    for name in claim.holds_if:
        if fields.get(name) is not None and fields[name] not in shown:
            text += f", {name.replace('_', ' ').replace('r2', 'R²')} {fields[name]:.3g}"
    if fields.get("n"):
        text += f" (n = {fields['n']})"
    return text
