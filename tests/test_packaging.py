"""pyproject.toml, the lock and environment.yml say the same, and the package is what it seems."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from importlib.resources import files
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import neural_ode

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DECLARED = [*PROJECT["dependencies"], *(r for extra in PROJECT["optional-dependencies"].values() for r in extra)]
LOCK = (ROOT / "requirements.lock.txt").read_text().splitlines()
PINNED = {
    canonicalize_name(pin.name): str(pin.specifier).removeprefix("==")
    for pin in (Requirement(line) for line in LOCK if line and not line.startswith("#"))
}


@pytest.mark.parametrize("text", DECLARED)
def test_the_lock_satisfies_what_is_declared(text: str) -> None:
    requirement = Requirement(text)
    assert requirement.specifier.contains(PINNED[canonicalize_name(requirement.name)]) or not requirement.specifier


def test_the_lock_is_complete() -> None:
    """Everything that a locked and installed package requires is locked too."""
    for name in PINNED:
        try:
            needs = [Requirement(text) for text in requires(name) or []]
        except ModuleNotFoundError:
            continue  # of an extra that is not installed here
        for need in needs:
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                assert canonicalize_name(need.name) in {*PINNED, "pip", "setuptools", "wheel"}, (name, str(need))


def test_the_lock_names_versions_and_nothing_else() -> None:
    for line in LOCK:
        assert line.startswith("#") or re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!_-]+", line), line


def test_environment_installs_the_project() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == PROJECT["name"]
    python, pip, packages = environment["dependencies"]
    assert (python, pip) == ("python=3.11", "pip")
    assert packages == {"pip": ["--editable .[notebooks]"]}
    assert "notebooks" in PROJECT["optional-dependencies"]
    assert PROJECT["requires-python"] == ">=3.11"


def test_package_data() -> None:
    assert neural_ode.__version__ == PROJECT["version"]
    assert files("neural_ode").joinpath("py.typed").is_file()
    assert files("neural_ode").joinpath("claims.yaml").is_file()


def test_importing_the_library_is_light() -> None:
    """The core needs PyTorch; plotting, pandas and DVC come in with what uses them."""
    script = (
        "import sys, torch; before = set(sys.modules); import neural_ode;"
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"matplotlib", "pandas", "scipy", "seaborn", "torchvision", "yaml", "papermill"} & set(loaded)


def test_imports_go_one_way() -> None:
    """No module imports from a layer above its own."""
    layers = [
        ["errors", "files", "imports", "tableaus", "implicit_tableaus", "dependence"],
        ["state"],
        ["dynamics"],
        ["step_size", "methods", "clock"],
        ["solution", "scheme", "events"],
        ["replay"],
        ["adaptive", "per_sample"],
        ["fixed_grid"],
        ["integrate", "structure"],
        ["compiled"],
        ["gradients"],
        ["solve"],
        ["odeint"],
        ["models", "data", "measure", "claims", "workspace", "display"],
        ["training", "experiments", "figures"],
        ["sweep"],
        ["pipeline"],
    ]
    level = {name: depth for depth, names in enumerate(layers) for name in names}
    library = ROOT / "lib" / "neural_ode"
    for file in library.rglob("*.py"):
        own = file.relative_to(library).parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        for imported in re.findall(r"^\s*from neural_ode\.(\w+)", file.read_text(), re.MULTILINE):
            assert level[imported] <= level[own], f"{file.name} imports {imported}"
