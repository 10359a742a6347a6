"""The site: what was reproduced, the notebooks as they ran, and the reference of the library, readable offline.

python -m reproduction.pipeline.site build/site

Every page has one source: a part of the README, an executed notebook, docstrings. This module lays them out in a
folder as Sphinx wants them; `docs/` holds the configuration of Sphinx and the first page of the reference.
"""

import argparse
import ast
import importlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from neural_ode.errors import FileError, NeuralODEError, needs
from reproduction.claims import WHOSE
from reproduction.files import read_text, write_atomically
from reproduction.pipeline.board import BOARD, OTHERS, PROFILE, RESULTS, by_verdict, read_board, sign, tally
from reproduction.pipeline.command import exit_status
from reproduction.pipeline.contents import captions, load_contents
from reproduction.pipeline.notebooks import read_notebook
from reproduction.pipeline.readme import notebook_of, pictures
from reproduction.pipeline.reference_tables import TABLES
from reproduction.rules import Verdict
from reproduction.workspace import project_root

with needs("notebooks"):
    import nbformat
    from nbformat import NotebookNode

__all__ = [
    "build",
    "landing",
    "main",
    "modules",
    "notebook_page",
    "scoreboard",
    "sections",
    "write_sources",
]

ORIGINALS = "download"
"""Where the notebooks lie as they ran, to download: their pages have notes and descriptions added."""

RESTORE = "restore it with `git checkout`"

GUIDES = ("library", "recipes", "running")
"""Pages of `docs/`, which link to the rest by `../`."""

CITATION = "Licence and citation"
"""The section of the README that the first page ends with."""

DOCUMENTS = ("RESULTS", "CONTRIBUTING", "CHANGELOG")
"""Pages as they are, under the names by which others link to them."""

TITLES = {"paper": "Claims of the paper", **OTHERS}

UNLISTED = {"compiled", "_moved", "torchdiffeq_options"}
"""Parts of the library that only the library calls, but for what `docs/api.md` shows."""


class OccupiedError(FileError, FileExistsError):
    """The folder for the site holds something else."""


def sections(markdown: str) -> dict[str, str]:
    """The parts of a text by their headings of second order; what stands before the first has an empty name."""
    intro, *parts = re.split(r"^## ", markdown, flags=re.MULTILINE)
    found = {"": intro.partition("\n")[2]}  # without the title
    for part in parts:
        heading, _, text = part.partition("\n")
        found[heading] = text
    return found


def scoreboard(rows: Iterable[Mapping[str, Any]]) -> str:
    """The claims as a table that the style sheet turns into a stack of cards on a phone."""
    lines = ["```{list-table}", ":class: scoreboard", ":header-rows: 1", ":widths: 9 36 12 32 11", ""]
    table = [["verdict", "claim", "published", "here", "notebook"]]
    for row in rows:
        name = row["notebook"]
        table.append(
            [
                f"{sign(row)} {row['verdict']}",
                f"{_plain(row['claim'])} ({_plain(row['source'])})\\\n    *Rule:* {_plain(row['rule'])}",
                _plain(row["published"]),
                # A line for each way of measuring.
                _plain(row["here"])
                .replace("; ", "\\\n    ")
                .replace("(n = ", "(n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}"),
                f"[{name}](notebooks/{name}.ipynb)",
            ]
        )
    for first, *others in table:
        lines += [f"* - {first}", *(f"  - {cell}" for cell in others)]
    return "\n".join([*lines, "```\n"])


def _plain(text: str) -> str:
    """Without a meaning in Markdown."""
    return re.sub(r"([\\`*_\[\]<>$|{}])", r"\\\1", text)


def landing(root: Path) -> str:
    """The first page: the README's introduction, the figures, and the scoreboard."""
    readme = read_text(root / "README.md", RESTORE)
    parts, contents = sections(readme), load_contents()
    texts, board = captions(contents), read_board(root)
    rows = {whose: by_verdict(row for row in board.values() if row["whose"] == whose) for whose in WHOSE}
    order = (Verdict.FAILS, Verdict.UNDECIDED, Verdict.HOLDS, Verdict.UNTESTED)
    tables = {whose: [row for verdict in order for row in found[verdict]] for whose, found in rows.items()}
    gallery = ["::::{container} gallery"]
    for picture in pictures(root, contents):
        if picture.parent.name == BOARD.parent.name:
            continue  # the page has it as a table
        name = f"{picture.parent.name}/{picture.stem}"
        text = texts.get(name, name)
        gallery += [
            f":::{{figure}} {picture.relative_to(root).as_posix()}",
            f":target: notebooks/{notebook_of(picture).stem}.html",
            f":alt: {text}",
            "",
            text,
            ":::",
        ]
    return "\n".join(
        [
            readme.partition("\n")[0],
            re.sub(r"(?ms)^\[!\[.*?\n\n\*.*?\*\n", "", parts[""]),  # the figures come below, with captions
            "{.tally}",
            tally(board),
            "\n## Figures\n\nEach picture leads to the executed notebook.\n",
            *gallery,
            "::::",
            "\n## Scoreboard\n\nIn brackets the 95 % interval and what it is of. What does not hold comes first,",
            "then what is undecided: some of the interval satisfies the rule, and some does not.\n",
            *(f"### {TITLES[whose]}\n\n{scoreboard(found)}" for whose, found in tables.items() if found),
            f"## {CITATION}\n{parts[CITATION]}",
            _contents("Use", [*GUIDES, "benchmarks/benchmarks", *DOCUMENTS, "data/mnist/README"]),
            _contents("Figures and tables", ["notebooks/*"]),
            _contents("Reference", ["api/index"]),
        ]
    )


def _contents(caption: str, pages: list[str]) -> str:
    lines = ["```{toctree}", ":hidden:", ":glob:", f":caption: {caption}", "", *pages, "```\n"]
    return "\n".join(lines)


def notebook_page(notebook: NotebookNode, name: str, profile: str, texts: Mapping[str, str]) -> NotebookNode:
    """The notebook with a line below its title that says how it ran, and descriptions of its figures.

    Args:
        notebook: an executed notebook, which is changed and returned.
        name: its file name without suffix.
        profile: the one it ran in.
        texts: descriptions of figures, see `captions`.
    """
    command = f"`dvc repro notebook@{profile}-{name}`"
    files = f"{{download}}`Download the notebook </{ORIGINALS}/{name}.ipynb>`"
    if profile == PROFILE:
        note = f":::{{note}}\nFull scale. {command} makes it again. {files}\n:::"
    else:
        note = (
            ":::{warning}\n**Quick profile**: minutes on a laptop, too small to decide what the paper claims. "
            f"The run at full scale is not there yet: `dvc repro notebook@{PROFILE}-{name}`. {files}\n:::"
        )
    title, _, rest = notebook.cells[0].source.partition("\n")
    notebook.cells[0].source = f"{title}\n\n{note}\n{rest}"
    heading = title.lstrip("# ")
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = ([heading, *re.findall(r"^#+ (.*)$", cell.source, re.MULTILINE)])[-1]
            continue
        figure = re.search(r"work\.figure\(\"(\w+)\"\)", cell.source)
        drawn = f"{name}/{figure[1]}" if figure else ""
        cell.metadata["mystnb"] = {"image": {"alt": texts.get(drawn, f"Figure of the section {heading!r}")}}
    return notebook


def modules(library: Path) -> dict[str, dict[str, list[str]]]:
    """What the reference documents: by part of the library, by module, the names in `__all__` that it defines.

    The names of the package itself have a page of their own in `docs/` and are left out.

    Args:
        library: the folder `neural_ode`.
    """
    exported = set(_own_names(library / "__init__.py", defined=False))
    found: dict[str, dict[str, list[str]]] = {}
    for file in sorted(
        library.rglob("*.py"), key=lambda file: (file.parent == library, file.parts)
    ):  # packages first
        inside = file.relative_to(library).with_suffix("").parts
        if inside == ("__init__",) or inside[0] in UNLISTED:
            continue
        dotted = ".".join(["neural_ode", *(part for part in inside if part != "__init__")])
        names = [name for name in _own_names(file, defined=True) if name not in exported or name.isupper()]
        part = f"neural_ode.{inside[0]}" if len(inside) > 1 else "Inside solve"
        if names or (len(inside) == 2 and inside[1] == "__init__"):
            found.setdefault(part, {})[dotted] = names
    return found


def _own_names(file: Path, defined: bool) -> list[str]:
    """The names in `__all__` of a module, read without importing it; `defined`: without those that it imports."""
    listed: list[str] = []
    own: set[str] = set()
    for node in ast.parse(read_text(file, RESTORE)).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            own.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            own.update(names)
            if names == ["__all__"] and node.value is not None:
                listed = ast.literal_eval(node.value)
    return [name for name in listed if name in own] if defined else listed


def _reference(part: str, contents: Mapping[str, list[str]]) -> str:
    title = part.removeprefix("neural_ode.")
    lines = [f"# {title}\n"]
    if part in TABLES:
        lines.append(TABLES[part]())
    for module, names in contents.items():
        if module != part:
            lines.append(f"## {module.removeprefix('neural_ode.').removeprefix(f'{title}.')}\n")
        lines += ["```{eval-rst}", f".. automodule:: {module}"]
        lines += [f"   :members: {', '.join(names)}"] if names else ["   :no-members:"]
        if module == "neural_ode.solve":
            lines.append("   :no-index:")  # a function has that name too
        lines.append("```\n")
    return "\n".join(lines)


def write_sources(root: Path, folder: Path) -> None:
    """Lay out everything that Sphinx reads: pages as Markdown and notebooks, and the files that they link to."""
    pages = {
        "index.md": landing(root),
        **{f"{name}.md": read_text(root / "docs" / f"{name}.md", RESTORE) for name in GUIDES},
        **{f"{name}.md": read_text(root / f"{name}.md", RESTORE) for name in DOCUMENTS},
    }
    reference = modules(root / "lib" / "neural_ode")
    names = [part.removeprefix("neural_ode.").lower().replace(" ", "-") for part in reference]
    for name, (part, contents) in zip(names, reference.items(), strict=True):
        pages[f"api/{name}.md"] = _reference(part, contents)
    first = read_text(root / "docs" / "api.md", RESTORE)
    pages["api/index.md"] = "\n".join([first, "```{toctree}", ":hidden:", "", *names, "```\n"])

    for page, text in pages.items():
        # On the site all pages lie side by side, and a link to an executed notebook is a link to its page.
        text = re.sub(r"\]\((?:\.\./|docs/)", "](", text)
        text = re.sub(rf"\]\({RESULTS.as_posix()}/\w+/(\w+\.ipynb)\)", r"](notebooks/\1)", text)
        write_atomically(folder / page, text)
        for target in re.findall(r"\]\(([^):#]+)\)|^:::\{figure\} (.*)$", text, re.MULTILINE):
            _copy(root, folder, next(filter(None, target)))
    _copy(root, folder, "benchmarks/benchmarks.ipynb")

    texts = captions(load_contents())
    for stored in sorted((root / "notebooks").glob("*.ipynb")):
        executed = root / RESULTS / stored.stem / stored.name
        profile, source = (PROFILE, executed) if executed.exists() else ("quick", stored)
        page = notebook_page(read_notebook(source, RESTORE), stored.stem, profile, texts)
        write_atomically(folder / "notebooks" / stored.name, nbformat.writes(page))
        (folder / ORIGINALS).mkdir(exist_ok=True)
        shutil.copy(source, folder / ORIGINALS / stored.name)


def _copy(root: Path, folder: Path, relative: str) -> None:
    """A file that a page shows or links to, to the same place; notebooks become pages of their own."""
    if (root / relative).is_file() and not relative.startswith("notebooks/"):
        (folder / relative).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / relative, folder / relative)


def build(root: Path, target: Path) -> int:
    """Build the site anew. Nothing is left of an earlier one, and `target` stays as it was if the build fails.

    Returns:
        The exit status of Sphinx; its warnings are errors.

    Raises:
        OccupiedError: `target` holds something else than an earlier site.
        FileError: a source of the site is missing or damaged.
        MissingPackageError: Sphinx is not installed.
    """
    if target.exists() and any(target.iterdir()) and not (target / "searchindex.js").exists():
        raise OccupiedError(f"{target} is no site: empty it, or name another folder")
    with needs("site"):
        importlib.import_module("sphinx")
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target: what is complete takes its place by a renaming.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".site-") as temporary:
        source, html = Path(temporary, "source"), Path(temporary, "html")
        write_sources(root, source)
        options = ["-b", "html", "--quiet", "--fail-on-warning", "--keep-going"]
        folders = ["-c", f"{root / 'docs'}", "-d", f"{Path(temporary, 'doctrees')}", f"{source}", f"{html}"]
        status = subprocess.run([sys.executable, "-m", "sphinx", *options, *folders], check=False).returncode
        if status == 0:
            if target.exists():
                target.rename(Path(temporary, "earlier"))
            html.rename(target)
    return status


def main(arguments: list[str] | None = None) -> int:
    """Build the site into the folder that is named."""
    parser = argparse.ArgumentParser(prog="python -m reproduction.pipeline.site", description="Build the site.")
    parser.add_argument("target", type=Path, help="folder for the site; it must be empty or hold an earlier one")
    target = parser.parse_args(arguments).target

    def work() -> None:
        if build(project_root(), target) != 0:
            raise NeuralODEError("Sphinx did not build the site: its messages above say why")
        print(f"the site is ready: {target / 'index.html'}")

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
