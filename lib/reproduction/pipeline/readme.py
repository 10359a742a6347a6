"""What shows the results of full scale, made from the committed files: RESULTS.md, and parts of the README.

python -m reproduction.pipeline.readme
"""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from neural_ode.errors import FileError
from reproduction.claims import Verdict
from reproduction.files import read_json, replace_between, write_atomically
from reproduction.pipeline.command import exit_status
from reproduction.workspace import project_root

__all__ = [
    "PROFILE",
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

FIELDS = ("claim", "item", "paper", "here", "rule", "verdict", "notebook")
HEADINGS = {
    "What does not hold": Verdict.FAILS,
    "What is undecided: the interval holds values that satisfy the rule and others": Verdict.UNDECIDED,
    "What holds": Verdict.HOLDS,
    "What is not measured at full scale yet": Verdict.UNTESTED,
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


def _by_verdict(board: Board) -> dict[Verdict, list[Mapping[str, Any]]]:
    return {verdict: [row for row in board.values() if row["verdict"] == str(verdict)] for verdict in Verdict}


def tally(board: Board) -> str:
    """How many claims hold, in a sentence."""
    groups = {verdict: len(rows) for verdict, rows in _by_verdict(board).items()}
    text = f"{groups[Verdict.HOLDS]} claims hold, {groups[Verdict.FAILS]} do not, "
    text += f"{groups[Verdict.UNDECIDED]} are undecided"
    waiting = groups[Verdict.UNTESTED]
    return f"{text}, {waiting} are not measured at full scale yet." if waiting else f"{text}."


def results_page(board: Board) -> str:
    """RESULTS.md: every claim with its rule, the paper's value, and ours; what does not hold comes first.

    Args:
        board: by claim, as the scoreboard's notebook writes it.
    """
    groups = _by_verdict(board)
    lines = [
        "# Results: every claim, one by one",
        "",
        "Made by `make paper` from the committed results of full scale (`results/paper/`): do not edit.",
        "",
        f"{tally(board)} In brackets the 95 % interval, n: seeds or measurements. A value of `1e+99` stands for a",
        "solve that could not be finished. The rules are in [claims.yaml](lib/reproduction/claims.yaml).",
    ]
    for title, verdict in HEADINGS.items():
        if groups[verdict]:
            lines += ["", f"## {title}", "", *_table(groups[verdict])]
    return "\n".join(lines) + "\n"


def _table(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    lines = ["| | claim | paper | here | notebook |", "|---|---|---|---|---|"]
    for row in rows:
        name, sign = row["notebook"], SIGNS[Verdict(row["verdict"])]
        cells = [
            sign,
            f"{row['claim']} ({row['item']})<br><sub>Rule: {row['rule']}</sub>",
            row["paper"],
            row["here"],
            f"[{name}]({RESULTS.as_posix()}/{name}/{name}.ipynb)",
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


def write(root: Path) -> list[str]:
    """Write RESULTS.md and those parts of the README; what is now another text, in words.

    Raises:
        FileError: the scoreboard, or a file that is written, is missing or damaged.
    """
    board, readme, page = read_board(root), root / "README.md", root / "RESULTS.md"
    before = {file: file.read_bytes() if file.exists() else b"" for file in (readme, page)}
    replace_between(readme, *marks("tally"), f"{tally(board)}\n")
    replace_between(readme, *marks("gallery"), gallery(root))
    write_atomically(page, results_page(board))
    return [f"{file.name} is another text" for file, content in before.items() if file.read_bytes() != content]


def main() -> int:
    """Write them; the exit status."""

    def work() -> None:
        write(project_root())

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
