"""The scoreboard of full scale, as notebook 11 leaves it: a row for each claim, counted and sorted."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from neural_ode.errors import FileError
from reproduction.claims import WHOSE
from reproduction.files import read_json
from reproduction.rules import Verdict

__all__ = [
    "BOARD",
    "OTHERS",
    "PROFILE",
    "RESULTS",
    "Board",
    "by_verdict",
    "counted",
    "read_board",
    "sign",
    "tally",
]

PROFILE = "paper"
RESULTS = Path("figures") / PROFILE
BOARD = RESULTS / "11_scoreboard" / "claims.json"
Board = Mapping[str, Mapping[str, Any]]
"""The scoreboard: a row for each claim, by its id."""

FIELDS = ("claim", "short", "whose", "source", "published", "here", "rule", "verdict", "needs", "notebook")
OTHERS = {
    "later": "What others found later, measured on the same models",
    "background": "What was known before, and belongs to the subject",
}
NOUNS = {
    "paper": ("claim of the paper", "claims of the paper"),
    "later": ("later finding", "later findings"),
    "background": ("result from before the paper", "results from before the paper"),
}


def read_board(root: Path) -> dict[str, Any]:
    """The scoreboard of full scale: a row for each claim, by its id.

    Raises:
        FileError: it is missing or damaged; names the file and, if there is one, the row.
    """
    remedy = "make it with `make paper`"
    board = read_json(root / BOARD, remedy)
    for id, row in board.items():
        absent = [field for field in FIELDS if not (isinstance(row, dict) and isinstance(row.get(field), str))]
        if absent or row["verdict"] not in {*Verdict}:
            wrong = f"no {', '.join(absent)}" if absent else f"unknown verdict {row['verdict']!r}"
            raise FileError(f"{root / BOARD} is damaged ({id}: {wrong}): {remedy}")
    return board


def by_verdict(rows: Iterable[Mapping[str, Any]]) -> dict[Verdict, list[Mapping[str, Any]]]:
    """Rows of the scoreboard by their verdict."""
    listed = list(rows)
    return {verdict: [row for row in listed if row["verdict"] == str(verdict)] for verdict in Verdict}


def sign(row: Mapping[str, Any]) -> str:
    """The verdict of a row of the scoreboard, as a sign."""
    return Verdict(row["verdict"]).sign


def counted(rows: Mapping[Verdict, Sequence[object]]) -> str:
    """How many rows have each verdict, in signs."""
    return " ".join(f"{len(found)} {verdict.sign}" for verdict, found in rows.items() if found)


def tally(board: Board, of: Iterable[str] = WHOSE) -> str:
    """How many claims hold, in a line for each of those who claim."""
    sentences = []
    for whose in of:
        rows = [row for row in board.values() if row["whose"] == whose]
        if rows:
            counts = {verdict: len(found) for verdict, found in by_verdict(rows).items()}
            text = f"Of {len(rows)} {NOUNS[whose][len(rows) > 1]}, "
            text += f"{_counted(counts[Verdict.HOLDS], 'holds', 'hold')}, "
            text += f"{_counted(counts[Verdict.FAILS], 'does not', 'do not')}, "
            text += _counted(counts[Verdict.UNDECIDED], "is undecided", "are undecided")
            waiting = counts[Verdict.UNTESTED]
            text += f", {_counted(waiting, 'is', 'are')} not measured at full scale yet" if waiting else ""
            sentences.append(f"{text}.")
    return "\n".join(sentences)


def _counted(n: int, one: str, several: str) -> str:
    return f"{n} {one if n == 1 else several}"
