"""What the reproduction uses of the library is what its users have; what is public says what it is."""

import ast
import importlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from reproduction.meaning import LIBRARY

ROOT = Path(__file__).parents[1]

PUBLIC = (
    *("neural_ode", "neural_ode.compiled", "neural_ode.errors", "neural_ode.gradients", "neural_ode.methods"),
    *("neural_ode.nn", "neural_ode.solution"),
)
"""Modules whose `__all__` is for users."""

INSIDE = LIBRARY / "reproduction" / "pipeline" / "numerics.py"
"""Golden numbers are those of the parts, too."""

USERS = [
    *(file for file in sorted((LIBRARY / "reproduction").rglob("*.py")) if file != INSIDE),
    *sorted((ROOT / "notebooks").glob("*.ipynb")),
    *sorted(file for file in (ROOT / "benchmarks").iterdir() if file.suffix in (".py", ".ipynb")),
]


def imports(file: Path) -> Iterator[tuple[str, str]]:
    """Module and name of every import from the library; no name where the module itself is imported."""
    text = file.read_text()
    if file.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    for node in ast.walk(ast.parse(text)):
        found = []
        if isinstance(node, ast.ImportFrom) and node.module:
            found = [(node.module, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            found = [(alias.name, "") for alias in node.names]
        yield from (one for one in found if one[0].split(".")[0] == "neural_ode")


@pytest.mark.parametrize("file", USERS, ids=lambda file: str(file.relative_to(ROOT)))
def test_only_public_names_of_the_library_are_used(file: Path) -> None:
    for module, name in imports(file):
        assert module in PUBLIC, f"{module} is no public module"
        assert not name or name in importlib.import_module(module).__all__, f"{module} does not offer {name}"


def test_the_test_sees_what_is_not_public() -> None:
    assert [module for module, _ in imports(INSIDE) if module not in PUBLIC]


# Docstrings ------------------------------------------------------------------------------------------------------


def undocumented(file: Path) -> list[str]:
    """What a module defines of its `__all__` without saying what it is, public methods of classes among it."""
    tree = ast.parse(file.read_text())
    public = {
        name
        for node in tree.body
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]
        for name in ast.literal_eval(node.value)
    }
    kinds = (ast.FunctionDef, ast.ClassDef)
    found = {node.name: node for node in tree.body if isinstance(node, kinds) and node.name in public}
    for name, node in list(found.items()):
        inside = [part for part in node.body if isinstance(part, kinds)] if isinstance(node, ast.ClassDef) else []
        found |= {f"{name}.{part.name}": part for part in inside if not part.name.startswith("_")}
    # PyTorch says what `extra_repr` is.
    return [name for name, node in found.items() if not ast.get_docstring(node) and "extra_repr" not in name]


@pytest.mark.parametrize("package", ["neural_ode", "reproduction"])
def test_everything_public_has_a_docstring(package: str) -> None:
    files = sorted((LIBRARY / package).rglob("*.py"))
    assert [file.name for file in files if not ast.get_docstring(ast.parse(file.read_text()))] == []
    assert {str(file.relative_to(LIBRARY)): names for file in files if (names := undocumented(file))} == {}
