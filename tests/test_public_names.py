"""What the reproduction uses of the library is what its users have."""

import ast
import importlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from reproduction.imports import LIBRARY

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
