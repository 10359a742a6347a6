"""What shows the results of full scale, made from the committed files: RESULTS.md, and parts of the README.

python -m reproduction.pipeline.readme
"""

import sys
from pathlib import Path

from neural_ode.errors import FileError
from reproduction.claims import load_claims
from reproduction.files import replace_between, write_atomically
from reproduction.pipeline.board import RESULTS, read_board, tally
from reproduction.pipeline.command import exit_status
from reproduction.pipeline.results_page import results_page
from reproduction.workspace import project_root

__all__ = ["gallery", "main", "marks", "notebook_of", "pictures", "write"]

COLUMNS = 3


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
