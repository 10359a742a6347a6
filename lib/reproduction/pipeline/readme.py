"""What shows the results of full scale, made from the committed files.

    python -m reproduction.pipeline.readme

writes RESULTS.md, figures/README.md and the parts of the README that have marks.
"""

import csv
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from neural_ode.errors import FileError, UnknownNameError
from reproduction.claims import Claim, load_claims
from reproduction.files import read_json, read_text, replace_between, write_atomically
from reproduction.notation import typeset, typeset_interval
from reproduction.pipeline.board import PROFILE, RESULTS, Board, by_verdict, counted, read_board, sign, tally
from reproduction.pipeline.command import exit_status
from reproduction.pipeline.contents import Contents, Glance, captions, load_contents
from reproduction.pipeline.results_page import results_page
from reproduction.workspace import project_root

__all__ = ["figures_page", "glance", "main", "marks", "notebook_of", "notebooks", "parts", "pictures", "write"]

GALLERY = Path("figures") / "README.md"


def marks(part: str) -> tuple[str, str]:
    """What stands before and after a made part of the README."""
    return f"<!-- {part}: made by python -m reproduction.pipeline.readme -->\n", f"<!-- end of {part} -->"


def pictures(root: Path, contents: Contents) -> list[Path]:
    """All figures of full scale as PNG or GIF, in reading order; at the end those that `contents` does not list."""
    files = [file for file in sorted((root / RESULTS).glob("*/*")) if file.suffix in {".png", ".gif"}]
    found = {f"{file.parent.name}/{file.stem}": file for file in files}
    return [found.pop(name) for name in captions(contents) if name in found] + list(found.values())


def notebook_of(picture: Path) -> Path:
    """The executed notebook that has drawn a figure, from the root of the project.

    Raises:
        FileError: it is not there.
    """
    notebook = picture.with_name(f"{picture.parent.name}.ipynb")
    if not notebook.exists():
        raise FileError(f"{picture} has no notebook beside it: delete it, or run its notebook again")
    return RESULTS / picture.parent.name / notebook.name


def parts(root: Path, board: Board, claims: Mapping[str, Claim], contents: Contents) -> dict[str, str]:
    """The made parts of the README, by name."""
    return {
        "results": f"{tally(board, ['paper'])}\n\n{glance(root, board, claims, contents.glance)}",
        "front": front(contents),
        "notebooks": notebooks(root, board, contents),
    }


def glance(root: Path, board: Board, claims: Mapping[str, Claim], rows: Iterable[Glance]) -> str:
    """A short table of results: of what, the paper's number, ours, and the sign of the verdict.

    Raises:
        UnknownNameError: there is no such claim.
        FileError: its measurement is missing.
    """
    lines = ["| | paper | here | |", "|---|---|---|---|"]
    for row in rows:
        if row.claim not in claims:
            raise UnknownNameError("claim", row.claim, claims)
        claim = claims[row.claim]
        file = root / RESULTS / claim.notebook / "claims.json"
        measurement = read_json(file, "make it with `make paper`").get(claim.id)
        if measurement is None or claim.id not in board:
            raise FileError(f"{file} has no {claim.id}, of which contents.yaml tells: make it with `make paper`")
        quantity = row.quantity or next(iter(claim.rule.bounds))
        here = _brief([way[quantity] for way in measurement.values()], claim.rule.bounds[quantity].unit)
        lines.append(f"| {row.of} | {row.paper or claim.published} | {here} | {sign(board[claim.id])} |")
    return "\n".join(lines) + "\n"


def _brief(found: Sequence[Mapping[str, Any]], unit: str) -> str:
    """The interval if there is one, else the estimates, to two digits."""
    if len(found) == 1:
        estimate, low, high = (
            None if (x := found[0][key]) is None else float(x) for key in ("estimate", "low", "high")
        )
        assert estimate is not None
        text = typeset_interval(estimate, low, high)
    else:
        numbers = [float(one["estimate"]) for one in found]
        plain = all(x == 0 or 1e-4 <= abs(x) < 100 for x in numbers)
        text = " / ".join(f"{x:#.2g}".replace("-", "−") if plain and x else typeset(x, 2) for x in numbers)
    return f"{text} {unit}".rstrip()


def front(contents: Contents) -> str:
    """The figures of the first page, two a row, with short captions."""
    names = list(contents.front)
    lines = []
    for pair in zip(names[::2], names[1::2], strict=True):
        told = [contents.front[name] for name in pair]
        images = [
            f"![{text.partition(':')[0]}]({RESULTS.as_posix()}/{name}.png)"
            for name, text in zip(pair, told, strict=True)
        ]
        lines += [f"| {' | '.join(images)} |", f"| {' | '.join(told)} |"]
    lines.insert(1, "|---|---|")  # the first two are the head of the table
    return "\n".join(lines) + "\n"


def notebooks(root: Path, board: Board, contents: Contents) -> str:
    """The notebooks: what they show, what it takes, what became of the paper's claims, what had to be chosen.

    Where a notebook has no claim of the paper those of others are counted, and marked by an asterisk.
    """
    lines = [
        "| | shows | quick | full scale | claims | left open |",
        "|---|---|---|---|---|---|",
    ]
    for name, listed in contents.notebooks.items():
        rows = [row for row in board.values() if row["notebook"] == name]
        of_paper = [row for row in rows if row["whose"] == "paper"]
        claims = counted(by_verdict(of_paper or rows))
        claims += " *" if rows and not of_paper else ""
        cells = [f"[{name[:2]}](notebooks/{name}.ipynb)", listed.shows, f"{listed.minutes} min"]
        cells += [_duration(trained(root, name)), claims, listed.unstated]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def trained(root: Path, notebook: str) -> float:
    """Seconds that the trainings of full scale have taken: the sum of `seconds` of their histories.

    A table with a column `name` has the histories of several trainings.
    """
    total = 0.0
    for file in (root / "results" / PROFILE / notebook).rglob("*.csv"):
        rows = list(csv.DictReader(read_text(file, "restore it with `git checkout`").splitlines()))
        kept = file.with_suffix(".safetensors").exists()  # of others only the history is
        if rows and "seconds" in rows[-1] and (kept or "epoch" in rows[-1]):
            ends = {row.get("name", ""): float(row["seconds"]) for row in rows}  # the last of each
            total += sum(ends.values())
    return total


def _duration(seconds: float) -> str:
    hours = seconds / 3600
    return "minutes" if hours < 0.1 else f"{hours:.0f} h" if hours >= 10 else f"{hours:.1f} h"


def figures_page(root: Path, contents: Contents) -> str:
    """figures/README.md: all figures of full scale in reading order, with captions."""
    lines = [
        "# Figures",
        "",
        "All figures of full scale, drawn by `make paper` from the committed results. Each leads to the executed",
        "notebook; beside it lies the same as SVG, but for animations. `make figures` draws the quick profile.",
    ]
    told = captions(contents)
    notebook = ""
    for picture in pictures(root, contents):
        if picture.parent.name != notebook:
            notebook = picture.parent.name
            listed = contents.notebooks.get(notebook)
            lines += ["", f"## {notebook}: {listed.shows}" if listed else f"## {notebook}"]
        name = f"{notebook}/{picture.stem}"
        caption = told.get(name, name)
        target = notebook_of(picture).relative_to(GALLERY.parent).as_posix()
        lines += ["", f"[![{caption}]({PROFILE}/{notebook}/{picture.name})]({target})", "", f"*{caption}.*"]
    return "\n".join(lines) + "\n"


def write(root: Path) -> list[str]:
    """Write RESULTS.md, figures/README.md and the made parts of the README; what is now another text, in words.

    Raises:
        FileError: the scoreboard, or a file that is written, is missing or damaged.
    """
    board, claims, contents = read_board(root), load_claims(), load_contents()
    pages = {
        root / "RESULTS.md": results_page(board, claims, contents),
        root / GALLERY: figures_page(root, contents),
    }
    readme = root / "README.md"
    before = {file: file.read_bytes() if file.exists() else b"" for file in (readme, *pages)}
    for part, text in parts(root, board, claims, contents).items():
        replace_between(readme, *marks(part), text)
    for page, text in pages.items():
        write_atomically(page, text)
    changed = [file for file, content in before.items() if file.read_bytes() != content]
    return [f"{file.relative_to(root)} is another text" for file in changed]


def main() -> int:
    """Write them; the exit status."""

    def work() -> None:
        write(project_root())

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
