"""RESULTS.md: every claim with its rule, the published value, and ours."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from reproduction.claims import Claim
from reproduction.pipeline.board import OTHERS, RESULTS, Board, by_verdict, counted, sign, tally
from reproduction.pipeline.contents import Contents
from reproduction.rules import Verdict

__all__ = ["results_page"]

INTRODUCTION = """\
✓ holds: the whole 95 % interval (in brackets) satisfies the rule. ✗ does not hold: none of it does. ? is undecided:
some of it does, or there are fewer seeds (n) than the rule asks for. Of several measurements all have to hold, and
one that fails is enough to fail. A *difference* fails, too, where the interval stays below the smallest gain that
would count, which the rule says. A published test error, and the best of five, hold if our interval has them.

Rules are of three kinds: a *value* agrees with the published one; a *difference* is in favour, or none within a
margin; a *law* bounds a slope, a share or an error. They stand in [claims.yaml](lib/reproduction/claims.yaml) and
are frozen: a test fails if one changes without a reason that is listed [below](#rules-that-changed).

This page is made from the committed results of full scale (`results/paper/`): `make paper` draws them anew, and
`make paper ONLY=04_mnist` those of one notebook. Do not edit it.
"""


def results_page(board: Board, claims: Mapping[str, Claim], contents: Contents) -> str:
    """The page: claims of the paper by notebook, those of others, and the rules that changed.

    Args:
        board: by claim, as the scoreboard's notebook writes it.
        claims: in the order in which they are shown, and what was amended.
        contents: what the notebooks show.
    """
    lines = ["# Results: every claim, one by one", "", *tally(board).split("\n"), "", INTRODUCTION.rstrip()]
    rows = [board[id] for id in claims if id in board]
    own = [row for row in rows if row["whose"] == "paper"]
    for verdict, found in by_verdict(own).items():
        if found and verdict is not Verdict.HOLDS:
            lines += ["", f"**{verdict.sign} {verdict}:** {'; '.join(row['short'] for row in found)}."]
    for notebook in dict.fromkeys(row["notebook"] for row in own):
        part = [row for row in own if row["notebook"] == notebook]
        signs = counted(by_verdict(part))
        listed = contents.notebooks.get(notebook)
        lines += ["", f"## {listed.shows if listed else notebook}"]
        lines += ["", f"{signs} · notebook {_link(notebook)}", *_entries(part, claims)]
    for whose, title in OTHERS.items():
        part = [row for row in rows if row["whose"] == whose]
        if part:
            lines += ["", f"## {title}", *_entries(part, claims)]
    return "\n".join([*lines, *_changed(board, claims)]) + "\n"


def _entries(rows: Iterable[Mapping[str, Any]], claims: Mapping[str, Claim]) -> Iterator[str]:
    for row in rows:
        yield from ("", f"### {sign(row)} {row['short']}", "", f"{row['claim']} ({row['source']})", "")
        if row["published"] != "–":
            yield f"* **Paper:** {row['published']}"
        yield from _measured("Here", row["here"])
        yield f"* **Rule:** {_by_title(row['rule'], claims)}"
        if row["verdict"] == str(Verdict.UNDECIDED) and row["needs"]:
            yield f"* **To decide it:** {row['needs']}"
        if row["whose"] != "paper":
            yield f"* **Notebook:** {_link(row['notebook'])}"


def _by_title(rule: str, claims: Mapping[str, Claim]) -> str:
    """With the titles of other claims that it refers to, in place of their keys, which the page does not show."""
    return re.sub(r"\w+\.\w+", lambda m: f"*{claims[m[0]].short}*" if m[0] in claims else m[0], rule)


def _measured(name: str, said: str) -> Iterator[str]:
    """A measurement in the words of `describe`, with a line for each way of measuring."""
    said = said.replace("∞", "not finished")
    quantity, dash, values = said.partition(" – ")
    ways = (values if dash else said).split("; ")
    if len(ways) == 1:
        yield f"* **{name}:** {said}"
    else:
        yield f"* **{name}:**{f' {quantity}' if dash else ''}"
        yield from (f"  * {way}" for way in ways)


def _link(notebook: str) -> str:
    return f"[{notebook}]({RESULTS.as_posix()}/{notebook}/{notebook}.ipynb)"


def _changed(board: Board, claims: Mapping[str, Claim]) -> Iterator[str]:
    """The rules that are no more, with what they said."""
    amended = [claim for claim in claims.values() if claim.amended]
    if amended:
        yield from (
            "",
            "## Rules that changed",
            "",
            "Each with its last verdict and measurement; above stands the rule of now.",
        )
    for claim in amended:
        verdict = board.get(claim.id, {}).get("verdict", "gone")
        yield from ("", f"### {claim.short} (now: {verdict})")
        for entry in claim.amended:
            yield from ("", f"{entry.date}: {entry.reason}", "", f"* **Rule before:** {entry.rule}")
            yield from _measured(f"It said *{entry.verdict}* of", entry.here)
