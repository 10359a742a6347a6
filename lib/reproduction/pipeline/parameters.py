"""The parameters of a notebook: what its `parameters` cell declares, and what it may be given."""

import ast
import contextlib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neural_ode.errors import InvalidArgumentError, nearest
from reproduction.files import read_yaml
from reproduction.pipeline.notebooks import read_notebook
from reproduction.workspace import checked_profile

__all__ = [
    "Declared",
    "ParameterError",
    "check_parameters",
    "declared_parameters",
    "notebook_parameters",
    "parameter_file",
    "read_parameters",
]

TYPES = {"bool": bool, "int": int, "float": float, "str": str, "list": list, "dict": dict}


class ParameterError(InvalidArgumentError):
    """A parameter is unknown or has the wrong type."""


@dataclass(frozen=True)
class Declared:
    """A parameter as the notebook declares it: `name: annotation = default`."""

    annotation: Any
    default: Any


def declared_parameters(notebook: Path) -> dict[str, Declared]:
    """Read the cell tagged `parameters`.

    Raises:
        ParameterError: there is no such cell, or a statement in it is not `name: type = literal`.
        FileError: the notebook is missing or damaged.
    """
    for cell in read_notebook(notebook, "copies in .identity are made by `dvc repro identity`").cells:
        if "parameters" in cell.metadata.get("tags", []):
            try:
                return dict(map(_declaration, ast.parse(cell.source).body))
            except SyntaxError as error:
                raise ParameterError(f"{notebook}: the parameters cell is not Python: {error}") from error
    raise ParameterError(f"{notebook} has no cell tagged 'parameters'")


def _declaration(statement: ast.stmt) -> tuple[str, Declared]:
    match statement:
        case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=ast.expr() as value):
            with contextlib.suppress(NameError, ValueError, TypeError):
                # Only the names of TYPES are in reach of eval.
                kind = eval(ast.unparse(annotation), {"__builtins__": {}}, dict(TYPES))
                return name, Declared(kind, ast.literal_eval(value))
    raise ParameterError(f"a parameters cell holds lines `name: type = literal`, got: {ast.unparse(statement)}")


def parameter_file(root: Path, profile: str) -> Path:
    """`params/<profile>.yaml` of the project at `root`.

    Raises:
        InvalidArgumentError: the profile is not a name but a path.
    """
    return root / "params" / f"{checked_profile(profile)}.yaml"


def read_parameters(file: Path, section: str) -> dict[str, Any]:
    """The section of a notebook in `params/<profile>.yaml`.

    Raises:
        ParameterError: there is no such file, no such section in it, or no names in the section.
        FileError: the file cannot be read, or is no YAML with sections.
    """
    if not file.exists():
        known = [path.stem for path in file.parent.glob("*.yaml")]
        raise ParameterError(f"no profile {file.stem!r}{nearest(file.stem, known)}: {file} does not exist")
    content = read_yaml(file, "it holds a section for each notebook, with lines `name: value`")
    if section not in content:
        raise ParameterError(f"{file} has no section {section!r}{nearest(section, content)}")
    found = {} if content[section] is None else content[section]
    if not (isinstance(found, dict) and all(isinstance(name, str) for name in found)):
        raise ParameterError(f"{file}: section {section!r} must hold lines `name: value`, got {found!r}")
    return found


def notebook_parameters(root: Path, notebook: str, profile: str) -> dict[str, Any]:
    """What `params/<profile>.yaml` says for a notebook, and the defaults of what it leaves out.

    Raises:
        ParameterError: there is no such profile, or a parameter is unknown or ill-typed.
        FileError: a file is missing or damaged.
    """
    given = read_parameters(parameter_file(root, profile), notebook)
    declared = declared_parameters(root / "notebooks" / f"{notebook}.ipynb")
    check_parameters(given, declared, f"params/{profile}.yaml, section {notebook}")
    return {name: one.default for name, one in declared.items() if name != "profile"} | given


def check_parameters(given: Mapping[str, Any], declared: Mapping[str, Declared], where: str) -> None:
    """Refuse what papermill would let pass: names that nothing reads, and values of another type.

    Raises:
        ParameterError: names the parameter, its value and what is expected.
    """
    for name, value in given.items():
        if name not in declared:
            raise ParameterError(
                f"{where}: unknown parameter {name!r}{nearest(name, declared)}; known: {', '.join(declared)}"
            )
        if not _fits(value, declared[name].annotation):
            kind = declared[name].annotation
            expected = kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)
            hint = ""
            if isinstance(value, str) and _is_number(value):
                hint = "; YAML reads numbers such as 1e-3 as text: write 1.0e-3"
            raise ParameterError(
                f"{where}: parameter {name!r} must be {expected}, got {value!r} ({type(value).__name__}){hint}"
            )


def _fits(value: Any, kind: Any) -> bool:
    if kind is None or kind is types.NoneType:
        return value is None
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return any(_fits(value, argument) for argument in arguments)
    if origin is list:
        return isinstance(value, list) and all(_fits(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            _fits(key, arguments[0]) and _fits(item, arguments[1]) for key, item in value.items()
        )
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
