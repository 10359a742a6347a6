"""What code means, as a fingerprint: its syntax without docstrings, comments, annotations and layout.

Standard library only, because the pipeline asks at every `dvc repro`. The fingerprint is the same in all versions
of Python that the project supports.

An experiment is identified by the meaning of its own code and by the *behaviour* of the solver library, which
`neural_ode/numerics.json` records: a refactoring or a speed-up of the library changes no result, another
coefficient of a tableau changes all of them.
"""

import ast
import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

__all__ = [
    "LIBRARY",
    "NUMERICS",
    "SourceError",
    "behaviour",
    "code_cells",
    "experiment_modules",
    "imported_modules",
    "meaning",
    "meaning_of",
]

LIBRARY = Path(__file__).parents[1]
"""The folder of both packages."""

PACKAGES = ("neural_ode", "reproduction")

NUMERICS = LIBRARY / "neural_ode" / "numerics.json"
"""Steps, states and gradients of golden problems: how the solver library behaves."""

PLUMBING = (
    "reproduction/__init__.py",
    "reproduction/files.py",
    "reproduction/meaning.py",
    "reproduction/progress.py",
    "reproduction/results.py",
    "reproduction/sweep.py",
    "reproduction/training/checkpoint.py",
    "reproduction/training/weights.py",
    "reproduction/workspace.py",
)
"""Modules that carry results and make none: where they lie, how they are written and read, which are missing."""


class SourceError(ValueError):
    """A file is missing, or is no Python or notebook."""


def imported_modules(path: Path) -> set[Path]:
    """Files of both packages that running `path` (a notebook or a module) may import.

    Raises:
        SourceError: it, or one of them, cannot be read.
    """
    found: set[Path] = set()
    waiting = list(_imports(path))
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting.extend(_imports(file))
    return found


def experiment_modules(path: Path) -> set[Path]:
    """Of what `path` imports, and of itself, the modules that decide results: `reproduction` and `neural_ode.nn`.

    The plumbing does not count, nor does the solver library, whose behaviour `numerics.json` records. Of a package
    that only passes names on, those modules count whose names are imported: a further name in it changes no result.
    """
    return {file for file in {path, *imported_modules(path)} if _decides(file)}


def _decides(file: Path) -> bool:
    if not file.is_relative_to(LIBRARY):
        return file.suffix == ".py"
    name = file.relative_to(LIBRARY).as_posix()
    return name.startswith(("reproduction/", "neural_ode/nn/")) and name not in PLUMBING


def meaning(path: Path) -> str:
    """Fingerprint of what an experiment's module does: of the meaning of `experiment_modules(path)`.

    Raises:
        SourceError: one of them cannot be read.
    """
    digest = hashlib.sha256()
    for module in sorted(experiment_modules(path)):
        inside = module.is_relative_to(LIBRARY)
        name = module.relative_to(LIBRARY).as_posix() if inside else module.name
        digest.update(f"{name} {meaning_of(module)}\n".encode())
    return digest.hexdigest()


def behaviour() -> str:
    """Fingerprint of what the solver library computes: of the content of `numerics.json`, not of its layout."""
    content = json.loads(_read(NUMERICS))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def meaning_of(path: Path) -> str:
    """Fingerprint of the meaning of one module."""
    text = _read(path)
    return _meaning_of_text(text, path)


@cache
def _meaning_of_text(text: str, path: Path) -> str:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError) as error:
        raise SourceError(f"{path} is not Python ({error}): restore it") from error
    return hashlib.sha256("\n".join(_words(tree)).encode()).hexdigest()


WITHOUT_MEANING = {
    "annotation",
    "returns",
    "type_comment",
    "type_ignores",
    "type_params",
    "kind",
    "ctx",
    "simple",
    "str",
}
"""Fields of syntax nodes that change no value, or that only some versions of Python have."""


def _words(node: ast.AST) -> Iterator[str]:
    """The syntax below a node, in words; a field that is empty is left out, as it may not be there at all."""
    yield f"({type(node).__name__}"
    for field, value in ast.iter_fields(node):
        if field in WITHOUT_MEANING or value is None or value == []:
            continue
        yield field
        values = value if isinstance(value, list) else [value]
        for part in _without_docstring(node, field, values):
            if isinstance(part, ast.AST):
                yield from _words(part)
            else:
                yield f"{type(part).__name__} {part!r}"
    # A constant `None` is a value.
    if isinstance(node, ast.Constant) and node.value is None:
        yield "None"
    yield ")"


def _without_docstring(node: ast.AST, field: str, values: list[Any]) -> list[Any]:
    """The values without statements that are nothing but text: docstrings, also those below an attribute."""
    if field != "body" or isinstance(node, ast.Lambda | ast.IfExp):
        return values
    return [part for part in values if not _is_text(part)]


def code_cells(notebook: Path) -> list[str]:
    """The source of the code cells of a notebook.

    Raises:
        SourceError: it is missing or damaged.
    """
    try:
        cells = json.loads(_read(notebook))["cells"]
        return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{notebook} is not a notebook ({error!r}): restore it") from error


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error.strerror}): restore it") from error
    except UnicodeDecodeError as error:
        raise SourceError(f"{path} is damaged (not text in UTF-8): restore it") from error


def _imports(path: Path) -> Iterable[Path]:
    source = "\n".join(code_cells(path)) if path.suffix == ".ipynb" else _read(path)
    return _imports_of_text(source, path)


@cache
def _imports_of_text(source: str, path: Path) -> tuple[Path, ...]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise SourceError(f"{path} is not Python ({error}): restore it") from error
    found: list[Path] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found.extend(_files(alias.name))
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                found.extend(_files_of(node.module, alias.name))
    return tuple(dict.fromkeys(found))


def _files(module: str) -> Iterable[Path]:
    """The module's file, and the `__init__` of packages around it, where it does more than pass names on."""
    path = _path(module)
    if path is None:
        return
    folder = LIBRARY
    for part in module.split(".")[:-1]:
        folder /= part
        around = folder / "__init__.py"
        if around.exists() and _passed_on(around) is None:
            yield around
    yield path


def _files_of(module: str, name: str) -> Iterable[Path]:
    """The files behind `from module import name`: of a package that passes names on, those behind the name."""
    path = _path(module)
    if path is None:
        return
    if _path(f"{module}.{name}", exactly=True):
        yield from _files(f"{module}.{name}")
        return
    passed_on = _passed_on(path) if path.name == "__init__.py" else None
    if passed_on is not None and name in passed_on:
        yield from _files_of(*passed_on[name])
    else:
        yield from _files(module)


def _path(module: str, exactly: bool = False) -> Path | None:
    """The file of a module of the packages; of a name inside of a module, unless `exactly`, that of the module."""
    first, *rest = module.split(".")
    if first not in PACKAGES:
        return None
    folder = LIBRARY / first
    for i, part in enumerate(rest):
        if (folder / part / "__init__.py").exists():
            folder /= part
        elif (folder / f"{part}.py").exists():
            return folder / f"{part}.py" if i == len(rest) - 1 or not exactly else None
        elif exactly:
            return None
        else:
            break
    return folder / "__init__.py"


def _passed_on(file: Path) -> dict[str, tuple[str, str]] | None:
    """Where the names come from that an `__init__` passes on, `None` if it does anything besides."""
    return _names_passed_on(_read(file))


@cache
def _names_passed_on(source: str) -> dict[str, tuple[str, str]] | None:
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError):
        return None  # whoever reads it says so
    names: dict[str, tuple[str, str]] = {}
    for node in body:
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            if any(alias.asname not in (None, alias.name) for alias in node.names):
                return None  # what a name stands for could change, and nothing else
            names |= {alias.name: (node.module, alias.name) for alias in node.names}
        elif not (_is_text(node) or _lists_names(node)):
            return None
    return None if "*" in names else names


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _lists_names(node: ast.stmt) -> bool:
    """Whether it is `__all__ = ...`."""
    return isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]
