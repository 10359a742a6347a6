"""Begin an experiment: everything that a notebook needs, in its place, and it runs.

    python -m reproduction.pipeline.new 17_name "Title of the notebook"

Makes the notebook, the module that computes, a section of parameters in each profile, a claim, the captions, and
the places in `dvc.yaml`. They measure something small, to be replaced piece by piece. Files that are there are
changed by insertion only.
"""

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from string import Template
from typing import Any

from neural_ode.errors import InvalidArgumentError
from reproduction.files import read_text, write_atomically
from reproduction.pipeline.command import exit_status
from reproduction.workspace import project_root

__all__ = ["begin", "insert_item", "insert_section", "main"]

TEMPLATES = Path(__file__).with_name("template")
NAME = re.compile(r"(\d\d)_([a-z][a-z0-9_]*)")
REMEDY = "restore it with `git checkout`"
WIDTH = 118

AFTERWARDS = """\
Begun: {files}.

Now                                       do
see it run                                dvc repro notebook@quick-{notebook}
make it measure something else            edit these files
freeze the rules, before you measure      python -m reproduction.pipeline.freeze
store the outputs of the quick profile    make notebooks
compute full scale                        python -m reproduction.pipeline.compute {notebook} --profile paper
draw it, and the README's tables          make paper
"""


def begin(root: Path, notebook: str, title: str) -> list[Path]:
    """Make the files of an experiment, and its places in others.

    Args:
        root: of the project.
        notebook: `NN_name`, with a number and a name that no other has.
        title: of the notebook.

    Returns:
        The files that were made or changed.

    Raises:
        InvalidArgumentError: the name cannot be used.
    """
    match = NAME.fullmatch(notebook)
    if not match:
        raise InvalidArgumentError(
            f"the name must be two digits and lower-case words, like 17_name, got {notebook!r}"
        )
    number, name = match.groups()
    for taken in sorted((root / "notebooks").glob("*.ipynb")):
        if taken.stem.startswith(number):
            raise InvalidArgumentError(f"number {number} is taken by {taken.stem}: take another one")
    library = root / "lib" / "reproduction"
    module = library / "experiments" / f"{name}.py"
    if module.exists() or module.with_suffix("").exists():
        raise InvalidArgumentError(f"an experiment {name!r} is there: take another name")

    def filled(template: str) -> str:
        text = Template(read_text(TEMPLATES / f"{template}.txt", REMEDY))
        return text.substitute(number=number, name=name, notebook=notebook, title=title)

    def inserted(template: str, indent: str = "") -> Callable[[str], str]:
        return lambda text: insert_section(text, notebook, filled(template), indent)

    changes: dict[Path, Callable[[str], str]] = {
        root / "params" / "quick.yaml": inserted("params"),
        root / "params" / "paper.yaml": inserted("params"),
        library / "claims.yaml": inserted("claims"),
        library / "contents.yaml": inserted("contents", "  "),
        root / "dvc.yaml": lambda text: _staged(text, notebook),
    }
    # All texts first: what cannot be made leaves everything as it is.
    texts = {file: change(read_text(file, REMEDY)) for file, change in changes.items()}
    texts[module] = filled("experiment")
    texts[root / "notebooks" / f"{notebook}.ipynb"] = _notebook(filled("notebook"))
    for file, text in texts.items():
        write_atomically(file, text)
    return list(texts)


def insert_section(text: str, name: str, section: str, indent: str = "") -> str:
    """YAML with a further section, before the first one whose name is larger; sections have names like `01_depth`.

    Args:
        text: the YAML.
        name: of the section.
        section: its lines, its name among them.
        indent: of such names.
    """
    gap = "\n" if re.search(rf"\n\n{indent}\d\d_\w+:", text) else ""
    for found in re.finditer(rf"^{indent}(\d\d_\w+):", text, re.MULTILINE):
        if found[1] > name:
            return text[: found.start()] + section + gap + text[found.start() :]
    return text.rstrip("\n") + "\n" + gap + section


def insert_item(text: str, begin: str, item: str) -> str:
    """YAML with a further item in a list in brackets, which is kept in order and broken into lines anew.

    Args:
        text: the YAML.
        begin: what stands before the first item, its bracket and perhaps a line break included.
        item: to insert.

    Raises:
        InvalidArgumentError: there is no such list.
    """
    before, found, rest = text.partition(begin)
    if not found:
        raise InvalidArgumentError(f"dvc.yaml has no list {begin!r}, where {item} belongs")
    inside, _, after = rest.partition("]")
    items = sorted([*(one.strip() for one in inside.split(",")), item])
    margin = begin.rpartition("\n")[2]
    lines = textwrap.wrap(
        ", ".join(items),
        WIDTH,
        initial_indent=margin,
        subsequent_indent=" " * len(margin),
        break_long_words=False,
        break_on_hyphens=False,
    )
    return before + begin.removesuffix(margin) + "\n".join(lines) + "]" + after


def _staged(text: str, notebook: str) -> str:
    """dvc.yaml with the stages of a notebook, its claims in the scoreboard, and its numbers and figure shown."""
    for begin in ("  - alone: [", "  - drawn: ["):
        text = insert_item(text, begin, notebook)
    for profile in ("paper", "quick"):
        text = insert_item(text, "metrics: [\n  ", f"figures/{profile}/{notebook}/metrics.json")
    text = insert_item(text, "plots: [\n  ", f"figures/paper/{notebook}/result.svg")
    return insert_item(text, "    deps: [\n      ", f'"figures/${{item.profile}}/{notebook}/claims.json"')


def _notebook(text: str) -> str:
    """A notebook from cells that begin with a line `%% kind id tags`."""
    cells: list[dict[str, Any]] = []
    for part in text.split("%% ")[1:]:
        head, _, source = part.partition("\n")
        kind, id, *tags = head.split()
        cell: dict[str, Any] = {"cell_type": kind, "id": id, "metadata": {"tags": tags} if tags else {}}
        if kind == "code":
            cell |= {"execution_count": None, "outputs": []}
        cells.append(cell | {"source": source.rstrip("\n").splitlines(keepends=True)})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    notebook = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Begin the experiment that the command line names; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m reproduction.pipeline.new", description="Begin an experiment.")
    parser.add_argument("notebook", help="like 17_name")
    parser.add_argument("title", help="of the notebook")
    options = parser.parse_args(arguments)

    def work() -> None:
        root = project_root()
        made = begin(root, options.notebook, options.title)
        files = ", ".join(file.relative_to(root).as_posix() for file in made)
        print(AFTERWARDS.format(files=files, notebook=options.notebook), end="")

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
