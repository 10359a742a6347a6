"""Which modules of the two packages a notebook or module imports, directly and indirectly."""

import ast
from collections.abc import Iterable
from pathlib import Path

from neural_ode.errors import FileError
from reproduction.files import read_json, read_text

__all__ = ["LIBRARY", "imported_modules"]

LIBRARY = Path(__file__).parents[1]
"""The folder of both packages."""

PACKAGES = ("neural_ode", "reproduction")


def imported_modules(path: Path) -> set[Path]:
    """Files of the packages that running `path` (a notebook or a module) may import.

    Raises:
        FileError: it is missing, or no notebook or Python.
    """
    found: set[Path] = set()
    waiting = list(_imports(path))
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting.extend(_imports(file))
    return found


def _imports(path: Path) -> Iterable[Path]:
    remedy = "restore it"
    try:
        if path.suffix == ".ipynb":
            cells = read_json(path, remedy)["cells"]
            source = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        else:
            source = read_text(path, remedy)
        tree = ast.parse(source)
    except (KeyError, TypeError) as error:
        raise FileError(f"{path} is not a notebook ({error!r}): {remedy}") from error
    except (SyntaxError, ValueError) as error:
        raise FileError(f"{path} is not Python ({error}): {remedy}") from error
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            yield from _files(name)


def _files(module: str) -> Iterable[Path]:
    """The module's file, and the `__init__` of every package around it, which an import runs first."""
    first, *rest = module.split(".")
    if first not in PACKAGES:
        return
    folder = LIBRARY / first
    yield folder / "__init__.py"
    for part in rest:
        if (folder / part / "__init__.py").exists():
            folder = folder / part
            yield folder / "__init__.py"
        elif (folder / f"{part}.py").exists():
            yield folder / f"{part}.py"
            return
