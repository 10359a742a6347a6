"""RESULTS.md: every claim with its rule, the published value, and ours."""

from collections.abc import Iterable, Mapping
from typing import Any

from reproduction.claims import Claim
from reproduction.pipeline.board import OTHERS, RESULTS, SIGNS, Board, by_verdict, tally
from reproduction.rules import Verdict

__all__ = ["results_page"]

HEADINGS = {
    "What does not hold": Verdict.FAILS,
    "What is undecided": Verdict.UNDECIDED,
    "What holds": Verdict.HOLDS,
    "What is not measured at full scale yet": Verdict.UNTESTED,
}


def results_page(board: Board, claims: Mapping[str, Claim]) -> str:
    """RESULTS.md: every claim with its rule, the published value, and ours; what does not hold comes first.

    Args:
        board: by claim, as the scoreboard's notebook writes it.
        claims: whose rules were changed.
    """
    lines = [
        "# Results: every claim, one by one",
        "",
        "Made by `make paper` from the committed results of full scale (`results/paper/`): do not edit.",
        "",
        tally(board),
        "",
        "In brackets the 95 % interval and what it is of: n seeds or measurements, or the points of a regression.",
        "A claim holds if the whole interval satisfies its rule, does not if none of it does, and is undecided in",
        "between, or with fewer seeds than the rule asks for. ∞ stands for a solve that could not be finished. The",
        "rules are in [claims.yaml](lib/reproduction/claims.yaml).",
    ]
    own = by_verdict(row for row in board.values() if row["whose"] == "paper")
    for title, verdict in HEADINGS.items():
        if own[verdict]:
            lines += ["", f"## {title}", "", *_table(own[verdict])]
    for whose, title in OTHERS.items():
        groups = by_verdict(row for row in board.values() if row["whose"] == whose)
        rows = [row for verdict in HEADINGS.values() for row in groups[verdict]]
        if rows:
            lines += ["", f"## {title}", "", *_table(rows)]
    return "\n".join([*lines, *_changed(board, claims)]) + "\n"


def _table(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    lines = ["| | claim | published | here | notebook |", "|---|---|---|---|---|"]
    for row in rows:
        name, sign = row["notebook"], SIGNS[Verdict(row["verdict"])]
        needs = row["needs"] if row["verdict"] == str(Verdict.UNDECIDED) else ""
        cells = [
            sign,
            f"{row['claim']} ({row['source']})<br><sub>Rule: {row['rule']}</sub>",
            row["published"],
            row["here"] + (f"<br><sub>To decide it: {needs}</sub>" if needs else ""),
            f"[{name}]({RESULTS.as_posix()}/{name}/{name}.ipynb)",
        ]
        lines.append(_row(cells))
    return lines


def _changed(board: Board, claims: Mapping[str, Claim]) -> list[str]:
    """The rules that are no more, with what they said."""
    rows = []
    for id, claim in claims.items():
        now = board.get(id, {})
        for entry in claim.amended:
            before = f"{entry.verdict}: {entry.here}<br><sub>Rule: {entry.rule}</sub>"
            after = f"{now.get('verdict', '–')}: {now.get('here', '–')}<br><sub>Rule: {claim.rule.words()}</sub>"
            rows.append(_row([f"`{id}`", before, after, f"{entry.reason} ({entry.date})"]))
    if not rows:
        return []
    title = ["", "## Rules that changed, and what they said before", ""]
    return [*title, "| claim | before | now | why |", "|---|---|---|---|", *rows]


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
