"""The parts of the README that show the results of full scale, made from the committed files.

python -m reproduction.pipeline.readme
"""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from neural_ode.errors import FileError
from reproduction.claims import Verdict
from reproduction.files import read_json, replace_between
from reproduction.pipeline.command import exit_status
from reproduction.workspace import project_root

__all__ = ["gallery", "made_by", "main", "marks", "read_board", "scoreboard"]

PROFILE = "paper"
RESULTS = Path("figures") / PROFILE
BOARD = RESULTS / "11_scoreboard.claims.json"
COLUMNS = 3
FIELDS = ("claim", "item", "paper", "here", "rule", "verdict", "notebook")
SIGNS = {Verdict.HOLDS: "✓", Verdict.FAILS: "✗", Verdict.UNDECIDED: "?", Verdict.UNTESTED: "·"}


def marks(part: str) -> tuple[str, str]:
    """What stands before and after a made part of the README."""
    return f"<!-- {part}: made by python -m reproduction.pipeline.readme -->\n", f"<!-- end of {part} -->"


def gallery(root: Path) -> str:
    """Small pictures of all figures of full scale, each a link to the notebook that made it."""
    cells = []
    for figure in sorted((root / RESULTS).glob("*.png")):
        image = f'<img src="{RESULTS.as_posix()}/{figure.name}" width="270" alt="{figure.stem}">'
        cells.append(f"[{image}]({RESULTS.as_posix()}/{made_by(figure)}.ipynb)")
    rows = [cells[k : k + COLUMNS] for k in range(0, len(cells), COLUMNS)]
    lines = ["| " + " | ".join(row + [""] * (COLUMNS - len(row))) + " |" for row in rows]
    return "\n".join(["| " * COLUMNS + "|", "|---" * COLUMNS + "|", *lines]) + "\n"


def made_by(figure: Path) -> str:
    """The name, without suffix, of the executed notebook beside a figure that has made it.

    Raises:
        FileError: there is none.
    """
    for path in figure.parent.glob("*.ipynb"):
        if figure.stem.startswith(path.stem) and not path.name.endswith(".failed.ipynb"):
            return path.stem
    raise FileError(f"{figure} was made by no notebook beside it: delete it, or run its notebook again")


def read_board(root: Path) -> dict[str, Any]:
    """The scoreboard of full scale: a row for each claim, by its id.

    Raises:
        FileError: it is missing or damaged; names the file and, if there is one, the row.
    """
    remedy = f"make it with `dvc repro scoreboard@{PROFILE}`"
    board = read_json(root / BOARD, remedy)
    for id, row in board.items():
        absent = [field for field in FIELDS if not (isinstance(row, dict) and isinstance(row.get(field), str))]
        if absent or row["verdict"] not in {*Verdict}:
            wrong = f"no {', '.join(absent)}" if absent else f"unknown verdict {row['verdict']!r}"
            raise FileError(f"{root / BOARD} is damaged ({id}: {wrong}): {remedy}")
    return board


def scoreboard(board: Mapping[str, Mapping[str, Any]]) -> str:
    """Every claim with the paper's value, ours, and the command that measures it; what does not hold comes first.

    Args:
        board: by claim, as the scoreboard's notebook writes it.
    """
    groups = {verdict: [row for row in board.values() if row["verdict"] == str(verdict)] for verdict in Verdict}
    failing, undecided, holding, waiting = (
        groups[v] for v in (Verdict.FAILS, Verdict.UNDECIDED, Verdict.HOLDS, Verdict.UNTESTED)
    )
    counts = f"{len(holding)} claims hold, {len(failing)} do not, {len(undecided)} are undecided"
    counts += f", {len(waiting)} are not measured at full scale yet." if waiting else "."
    lines = [
        f"{counts} In brackets the 95 % interval, n: seeds or measurements.\n",
        "**What does not hold**\n",
        *_table(failing),
    ]
    if undecided:
        lines += [
            "\n**What is undecided**: the interval contains values that satisfy the rule and values that do not\n",
            *_table(undecided),
        ]
    lines += ["\n**What holds**\n", *_table(holding)]
    if waiting:
        lines += [
            "\n<details><summary>Not measured at full scale yet</summary>\n",
            *_table(waiting),
            "\n</details>",
        ]
    return "\n".join(lines) + "\n"


def _table(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    lines = ["| | claim | paper | here | measured by |", "|---|---|---|---|---|"]
    for row in rows:
        name, sign = row["notebook"], SIGNS[Verdict(row["verdict"])]
        command = f"[{name}](notebooks/{name}.ipynb): `dvc repro {name.split('_', 1)[-1]}@{PROFILE}`"
        cells = [
            sign,
            f"{row['claim']} ({row['item']})<br><sub>Rule: {row['rule']}</sub>",
            row["paper"],
            row["here"],
            "–" if name == "–" else command,
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


def main() -> int:
    """Write those parts of the README; the exit status."""
    return exit_status(_write)


def _write() -> None:
    root = project_root()
    readme = root / "README.md"
    replace_between(readme, *marks("scoreboard"), scoreboard(read_board(root)))
    replace_between(readme, *marks("gallery"), gallery(root))


if __name__ == "__main__":
    sys.exit(main())
