"""What shows the results of full scale, made from the committed files: RESULTS.md, and parts of the README.

python -m reproduction.pipeline.readme
"""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from neural_ode.errors import FileError
from reproduction.claims import WHOSE, Claim, load_claims
from reproduction.files import read_json, replace_between, write_atomically
from reproduction.pipeline.command import exit_status
from reproduction.rules import Verdict
from reproduction.workspace import project_root

__all__ = [
    "PROFILE",
    "by_verdict",
    "gallery",
    "main",
    "marks",
    "notebook_of",
    "pictures",
    "read_board",
    "results_page",
    "tally",
    "write",
]

PROFILE = "paper"
RESULTS = Path("figures") / PROFILE
BOARD = RESULTS / "11_scoreboard" / "claims.json"
COLUMNS = 3
Board = Mapping[str, Mapping[str, Any]]
"""The scoreboard: a row for each claim, by its id."""

FIELDS = ("claim", "whose", "source", "published", "here", "rule", "verdict", "needs", "notebook")
HEADINGS = {
    "What does not hold": Verdict.FAILS,
    "What is undecided": Verdict.UNDECIDED,
    "What holds": Verdict.HOLDS,
    "What is not measured at full scale yet": Verdict.UNTESTED,
}
OTHERS = {
    "later": "What others found later, measured on the same models",
    "background": "What was known before, and belongs to the subject",
}
NOUNS = {
    "paper": ("claim of the paper", "claims of the paper"),
    "later": ("later finding", "later findings"),
    "background": ("result from before the paper", "results from before the paper"),
}
SIGNS = {Verdict.HOLDS: "✓", Verdict.FAILS: "✗", Verdict.UNDECIDED: "?", Verdict.UNTESTED: "·"}


def marks(part: str) -> tuple[str, str]:
    """What stands before and after a made part of the README."""
    return f"<!-- {part}: made by python -m reproduction.pipeline.readme -->\n", f"<!-- end of {part} -->"


def pictures(root: Path) -> list[Path]:
    """All figures of full scale as PNG, in the order of their notebooks."""
    return sorted((root / RESULTS).glob("*/*.png"))


def notebook_of(picture: Path) -> Path:
    """The executed notebook that has drawn a figure, from the root of the project.

    Raises:
        FileError: it is not there.
    """
    notebook = picture.with_name(f"{picture.parent.name}.ipynb")
    if not notebook.exists():
        raise FileError(f"{picture} has no notebook beside it: delete it, or run its notebook again")
    return RESULTS / picture.parent.name / notebook.name


def gallery(root: Path) -> str:
    """Small pictures of all figures of full scale, each a link to the notebook that made it."""
    cells = []
    for picture in pictures(root):
        name = f"{picture.parent.name}/{picture.stem}"
        image = f'<img src="{RESULTS.as_posix()}/{name}.png" width="270" alt="{name}">'
        cells.append(f"[{image}]({notebook_of(picture).as_posix()})")
    rows = [cells[k : k + COLUMNS] for k in range(0, len(cells), COLUMNS)]
    lines = ["| " + " | ".join(row + [""] * (COLUMNS - len(row))) + " |" for row in rows]
    return "\n".join(["| " * COLUMNS + "|", "|---" * COLUMNS + "|", *lines]) + "\n"


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


def tally(board: Board) -> str:
    """How many claims hold, in a line for each of those who claim."""
    sentences = []
    for whose in WHOSE:
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


def write(root: Path) -> list[str]:
    """Write RESULTS.md and those parts of the README; what is now another text, in words.

    Raises:
        FileError: the scoreboard, or a file that is written, is missing or damaged.
    """
    board, readme, page = read_board(root), root / "README.md", root / "RESULTS.md"
    before = {file: file.read_bytes() if file.exists() else b"" for file in (readme, page)}
    replace_between(readme, *marks("tally"), f"{tally(board)}\n")
    replace_between(readme, *marks("gallery"), gallery(root))
    write_atomically(page, results_page(board, load_claims()))
    return [f"{file.name} is another text" for file, content in before.items() if file.read_bytes() != content]


def main() -> int:
    """Write them; the exit status."""

    def work() -> None:
        write(project_root())

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
