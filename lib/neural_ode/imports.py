"""Which modules of the library a notebook or module imports, directly and indirectly."""

import ast
import json
from collections.abc import Iterable
from pathlib import Path

__all__ = ["LIBRARY", "imported_modules"]

LIBRARY = Path(__file__).parent


def imported_modules(path: Path) -> set[Path]:
    """Files of the library that running `path` (a notebook or a module) may import."""
    found: set[Path] = set()
    waiting = list(_imports(path))
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting.extend(_imports(file))
    return found


def _imports(path: Path) -> Iterable[Path]:
    if path.suffix == ".ipynb":
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        source = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    else:
        source = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
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
    if first != LIBRARY.name:
        return
    folder = LIBRARY
    yield folder / "__init__.py"
    for part in rest:
        if (folder / part / "__init__.py").exists():
            folder = folder / part
            yield folder / "__init__.py"
        elif (folder / f"{part}.py").exists():
            yield folder / f"{part}.py"
            return
