"""pyproject.toml, the lock and environment.yml say the same, and the package is what it seems."""

import ast
import os
import re
import subprocess
import sys
import textwrap
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
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
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


def test_the_version_stands_in_one_place() -> None:
    """In the library itself; `tests/test_distribution.py` looks for it in what is built."""
    assert PROJECT["dynamic"] == ["version"]
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "neural_ode.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", neural_ode.__version__)
    assert "version" not in yaml.safe_load((ROOT / "CITATION.cff").read_text())


def test_package_data() -> None:
    assert files("neural_ode").joinpath("py.typed").is_file()
    assert files("reproduction").joinpath("claims.yaml").is_file()


def test_importing_the_library_is_light() -> None:
    """It loads the standard library and its own modules, and nothing of PyTorch that was not there already."""
    script = (
        "import sys, torch, numpy; before = set(sys.modules); import neural_ode;"
        "print(*sorted(set(sys.modules) - before))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "neural_ode.solve" in loaded
    others = {name for name in loaded if name.partition(".")[0] not in {"neural_ode", *sys.stdlib_module_names}}
    assert others <= {"numpy.typing", "numpy._typing._add_docstring"}  # names of types, no code


EXTRAS = {
    "notebooks": {
        "claims": ["pandas", "yaml"],
        "data.mnist": ["torchvision"],
        "data.points": ["PIL"],
        "display": ["pandas", "IPython"],
        "experiments.adjoint.results": ["pandas"],
        "experiments.density_matching": ["pandas"],
        "experiments.depth": ["pandas"],
        "experiments.extrapolation": ["pandas"],
        "experiments.latent_paths": ["pandas"],
        "experiments.maximum_likelihood": ["pandas"],
        "experiments.memory": ["pandas"],
        "experiments.mnist": ["pandas"],
        "experiments.poisson": ["pandas"],
        "experiments.spirals": ["pandas"],
        "experiments.tolerance.results": ["pandas"],
        "figures.animation": ["matplotlib", "PIL"],
        "figures.edges": ["matplotlib"],
        "figures.interactive": ["ipywidgets", "matplotlib"],
        "figures.scoreboard": ["pandas", "seaborn", "matplotlib"],
        "figures.spirals": ["seaborn"],
        "figures.theme": ["seaborn", "matplotlib", "PIL"],
        "measure.fits": ["scipy"],
        "pipeline.parameters": ["yaml", "nbformat"],
        "pipeline.refresh": ["nbformat"],
        "pipeline.run": ["nbformat", "papermill"],
        "pipeline.site": ["nbformat"],
        "progress": ["tqdm"],
        "training.weights": ["safetensors"],
    },
    "cluster": {"sweep": ["distributed"]},
    "site": {"pipeline.site": ["sphinx"]},
}
CALLS = {
    "PIL": "module.picture_of_letters('ODE')",
    "yaml": "from reproduction.files import read_yaml; read_yaml(Path('pyproject.toml'), '')",
    "torchvision": "module.load_mnist('data/mnist')",
    "papermill": "module._execute(Path('a'), Path('b'), {}, Path('c'))",
    "distributed": "module._client(1).__enter__()",
    "sphinx": "module.build(Path.cwd(), Path('nowhere'))",
}
"""How to come to an import that waits until it is needed."""


@pytest.mark.parametrize("extra", EXTRAS)
def test_a_missing_package_is_named_with_the_extra_that_installs_it(extra: str, tmp_path: Path) -> None:
    """In processes that see everything but the package, all made from one that has loaded PyTorch."""
    script = f"""
        import importlib, os, sys
        from pathlib import Path
        import torch
        from neural_ode.errors import MissingPackageError

        for name, packages in {EXTRAS[extra]!r}.items():
            for package in packages:
                if child := os.fork():
                    os.waitpid(child, 0)
                    continue
                if package == "sphinx":  # SciPy, which is there, asks whether Sphinx is loaded
                    import scipy.stats
                sys.modules[package] = None
                try:
                    module = importlib.import_module(f"reproduction.{{name}}")
                    exec({CALLS!r}.get(package, ""))
                    print(name, package, "is not missed", flush=True)
                except MissingPackageError as error:
                    expected = f"the package {{package!r}} is missing: pip install '.[{extra}]' in a clone"
                    if str(error) != expected or error.name != package:
                        print(name, package, error, flush=True)
                except BaseException as error:
                    print(name, package, repr(error), flush=True)
                os._exit(0)
    """
    shown = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT / "lib")},
        capture_output=True,
        text=True,
    )
    assert (shown.stdout, shown.returncode) == ("", 0), shown.stdout + shown.stderr


def test_every_package_of_an_extra_is_imported_within_needs() -> None:
    """No module imports at its top what PyTorch alone does not bring."""
    core = {"torch", "numpy", "neural_ode", "reproduction", *sys.stdlib_module_names}
    for file in (ROOT / "lib").rglob("*.py"):
        for node in ast.parse(file.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            assert {name.split(".")[0] for name in names} <= core, file


LAYERS = (
    *("neural_ode.errors", "neural_ode.problem", "neural_ode.control", "neural_ode.methods", "neural_ode.solution"),
    *("neural_ode.stepping", "neural_ode.compiled", "neural_ode.gradients", "neural_ode.solve"),
    *("neural_ode.torchdiffeq_options", "neural_ode.torchdiffeq", "neural_ode.nn"),
    ("reproduction.files", "reproduction.meaning", "reproduction.progress"),
    *("reproduction.notation", "reproduction.display"),
    ("reproduction.models", "reproduction.data", "reproduction.measure"),
    *("reproduction.rules", "reproduction.claims"),
    *("reproduction.training", "reproduction.sweep", "reproduction.results", "reproduction.workspace"),
    *(("reproduction.figures", "reproduction.experiments"), "reproduction.pipeline"),
)
"""From the ground up: each imports from itself and what stands before it. Those in brackets stand side by side."""


def test_imports_go_one_way() -> None:
    """No module imports from a storey above its own."""
    level = {name: n for n, floor in enumerate(LAYERS) for name in ([floor] if isinstance(floor, str) else floor)}
    for file in (ROOT / "lib").rglob("*.py"):
        package, *inside = file.relative_to(ROOT / "lib").with_suffix("").parts
        if inside == ["__init__"]:
            continue
        own = f"{package}.{inside[0]}"
        for imported in re.findall(r"^\s*from ((?:neural_ode|reproduction)\.\w+)", file.read_text(), re.MULTILINE):
            assert level[imported] <= level[own], f"{own}: {file.name} imports {imported}"
        assert not re.search(rf"^\s*from {package} import", file.read_text(), re.MULTILINE), file
