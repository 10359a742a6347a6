"""What the stages of the pipeline depend on: what a notebook, an experiment and a drawing are.

For each notebook, into one folder:

* `<name>.ipynb`: the notebook without anything that running it changes;
* `<name>.experiment`: the meaning of the modules that compute its results;
* `<name>.drawing`: that of all modules that it imports, and the source that it shows.

So running a notebook in JupyterLab, a comment, or a docstring changes nothing that a stage depends on. Standard
library only, and run as a file, because it runs often:

    python lib/reproduction/pipeline/identity.py .identity
"""

import ast
import json
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from reproduction.meaning import (
    LIBRARY,
    SourceError,
    code_cells,
    experiment_modules,
    imported_modules,
    meaning_of,
)

__all__ = ["experiment_file", "main", "shown_source", "source_only"]


def source_only(notebook: dict[str, Any]) -> dict[str, Any]:
    """The notebook without outputs, execution counts, and metadata other than cell tags and the kernel."""
    cells = []
    for cell in notebook["cells"]:
        kept = {key: cell[key] for key in ("cell_type", "id")}
        # A list of lines and one string mean the same, and both are written.
        kept["source"] = "".join(cell["source"]).splitlines(keepends=True)
        kept["metadata"] = {key: value for key, value in cell["metadata"].items() if key == "tags"}
        if cell["cell_type"] == "code":
            kept |= {"execution_count": None, "outputs": []}
        cells.append(kept)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {
        "cells": cells,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": notebook["nbformat"],
        "nbformat_minor": notebook["nbformat_minor"],
    }


def experiment_file(notebook: str) -> Path | None:
    """The module or package that computes what a notebook draws; `None` for one that computes nothing."""
    base = LIBRARY / "reproduction" / "experiments" / notebook.split("_", 1)[-1]
    return next((file for file in (base.with_suffix(".py"), base / "__init__.py") if file.exists()), None)


def shown_source(notebook: Path) -> Iterator[str]:
    """The source that cells show by `show_source(name.of.function)`, comments and all."""
    trees = [ast.parse(cell) for cell in code_cells(notebook)]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    packages = {
        alias.name
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
        if (LIBRARY / node.module.replace(".", "/") / alias.name).with_suffix(".py").exists()
        or (LIBRARY / node.module.replace(".", "/") / alias.name).is_dir()
    }
    for node in nodes:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "show_source":
            names = ast.unparse(node.args[0]).split(".")
            if names[0] in packages:
                del names[0]
            yield from _definitions(names, [_parsed(module) for module in sorted(imported_modules(notebook))])


@cache
def _parsed(module: Path) -> tuple[ast.Module, str]:
    text = module.read_text(encoding="utf-8")
    return ast.parse(text), text


def _definitions(names: list[str], modules: list[tuple[ast.Module, str]]) -> Iterator[str]:
    """The source of the function or class `names[0]`, or of the method `names[1]`, which a class may inherit."""
    for tree, text in modules:
        for found in tree.body:
            if not isinstance(found, ast.ClassDef | ast.FunctionDef) or found.name != names[0]:
                continue
            if len(names) == 1:
                yield ast.get_source_segment(text, found) or ""
            elif isinstance(found, ast.ClassDef):
                methods = [x for x in found.body if isinstance(x, ast.FunctionDef) and x.name == names[1]]
                yield from (ast.get_source_segment(text, method) or "" for method in methods)
                for base in found.bases if not methods else ():
                    yield from _definitions([ast.unparse(base), names[1]], modules)


def main(arguments: list[str]) -> int:
    """Write the files of all notebooks into the folder that the command line names; the exit status."""
    folder = Path(arguments[0])
    folder.mkdir(parents=True, exist_ok=True)
    written = set()
    every = sorted((LIBRARY.parent / "notebooks").glob("*.ipynb"))
    for path in [Path(argument) for argument in arguments[1:]] or every:
        try:
            files = dict(_files(path))
        except SourceError as error:
            print(error, file=sys.stderr)
            return 1
        for name, content in files.items():
            temporary = folder / f".{name}.tmp"
            temporary.write_text(content, encoding="utf-8")
            temporary.replace(folder / name)
            written.add(name)
    for stale in folder.iterdir():
        if stale.name not in written:
            stale.unlink()
    return 0


def _files(notebook: Path) -> Iterable[tuple[str, str]]:
    """What is written for a notebook: names and contents.

    Raises:
        SourceError: it, or a module that it imports, cannot be read.
    """
    try:
        source = source_only(json.loads(notebook.read_text(encoding="utf-8")))
    except OSError as error:
        raise SourceError(f"{notebook} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"{notebook} is not a notebook of format 4.5 or later: {error!r}") from error
    yield f"{notebook.stem}.ipynb", json.dumps(source, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    modules = experiment_modules(notebook) - {notebook}
    yield f"{notebook.stem}.drawing", _listed(modules) + "\n".join(shown_source(notebook)) + "\n"
    experiment = experiment_file(notebook.stem)
    if experiment is not None:
        yield f"{notebook.stem}.experiment", _listed(experiment_modules(experiment))


def _listed(modules: Iterable[Path]) -> str:
    return "".join(f"{file.relative_to(LIBRARY).as_posix()} {meaning_of(file)}\n" for file in sorted(modules))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
