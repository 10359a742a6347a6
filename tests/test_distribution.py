"""The wheel and the source distribution hold the library alone, and the wheel works with what it requires."""

import re
import shutil
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from email import message_from_bytes
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import neural_ode

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SOURCES = ("lib", "tests", "pyproject.toml", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE")
NAME = f"neural_ode-{neural_ode.__version__}"
LIBRARY = {file.relative_to(ROOT / "lib").as_posix() for file in (ROOT / "lib" / "neural_ode").rglob("*.py")} | {
    "neural_ode/py.typed"
}
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(
    r"```python\n(.*?)```", README.partition("\n## The library\n")[2].partition("\n## ")[0], re.DOTALL
)


def build(kind: str, source: Path, target: Path) -> Path:
    """Call the build backend as pip does, in a process that says whether it came to import PyTorch."""
    script = f"""
        import sys
        from setuptools import build_meta
        name = build_meta.build_{kind}({str(target)!r})
        assert "torch" not in sys.modules
        print("built", name)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    shown = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    return target / shown.stdout.rpartition("built ")[2].strip()


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: what is built leaves folders behind."""
    copy = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / name, copy / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, copy / name)
    return build("sdist", copy, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source distribution, as for whoever has no wheel."""
    unpacked = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(unpacked, filter="data")
    return build("wheel", unpacked / NAME, tmp_path_factory.mktemp("wheel"))


def test_the_source_distribution_holds_the_library(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        files = {member.name.removeprefix(f"{NAME}/") for member in archive if member.isfile()}
    beside = {"pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "MANIFEST.in", "PKG-INFO", "setup.cfg"}
    assert {file for file in files if ".egg-info/" not in file} == beside | {f"lib/{file}" for file in LIBRARY}


def test_the_wheel_holds_the_library(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if not name.startswith(f"{NAME}.dist-info/")}
        metadata = message_from_bytes(archive.read(f"{NAME}.dist-info/METADATA"))
    assert files == LIBRARY
    assert metadata["Version"] == neural_ode.__version__
    needed = [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]
    assert {need.name for need in needed if need.marker is None} == {"torch", "numpy"}
    assert [need.name for need in needed if need.marker and need.marker.evaluate({"extra": "scipy"})] == ["scipy"]


def closure(*names: str) -> set[str]:
    """Everything that these distributions require, themselves included."""
    found: set[tuple[str, str]] = set()  # with their extras
    waiting = [Requirement(name) for name in names]
    while waiting:
        need = waiting.pop()
        for extra in {"", *need.extras}:
            if (need.name, extra) not in found:
                found.add((need.name, extra))
                for other in map(Requirement, distribution(need.name).requires or ()):
                    if other.marker is None or other.marker.evaluate({"extra": extra}):
                        waiting.append(other)
    return {name for name, _ in found}


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a virtual environment with the wheel, PyTorch, NumPy, and what those require: no more."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.run([python, "-c", where], capture_output=True, text=True, check=True).stdout.strip())
    for name in closure("torch", "numpy"):
        installed = distribution(name)
        tops = {file.parts[0] for file in installed.files or () if file.parts[0] not in {"..", "__pycache__"}}
        for top in tops:
            if not (site / top).exists():  # several share the folder `nvidia`
                (site / top).symlink_to(Path(str(installed.locate_file(top))))
    # Without an index: pip refuses if something that is required is not there.
    install = [sys.executable, "-m", "pip", "--isolated", "--python", python, "install", "--no-index", wheel]
    shown = subprocess.run(install, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    return python


def run(python: Path, code: str, folder: Path) -> str:
    """What a program prints that sees nothing of this repository."""
    shown = subprocess.run([python, "-I", "-c", code], cwd=folder, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    return shown.stdout


def test_the_environment_is_what_it_seems(python: Path, tmp_path: Path) -> None:
    code = """
import importlib.metadata, importlib.util
print(importlib.metadata.version("neural-ode"), importlib.util.find_spec("neural_ode").origin)
print([name for name in ("reproduction", "scipy", "pandas", "pytest") if importlib.util.find_spec(name)])
"""
    first, second = run(python, code, tmp_path).splitlines()
    version, origin = first.split()
    assert version == neural_ode.__version__
    assert Path(origin).is_relative_to(python.parents[1])
    assert second == "[]"


def test_the_library_works(python: Path, tmp_path: Path) -> None:
    code = """
import torch
from neural_ode import odeint_adjoint, solve
from neural_ode.nn import ContinuousFlow

y0 = torch.ones(3, dtype=torch.float64, requires_grad=True)
for gradient in ("direct", "backsolve"):
    y = solve(lambda t, y: -y, y0, [0.0, 1.0], rtol=1e-8, atol=1e-8, gradient=gradient, params=()).y
    torch.testing.assert_close(y[-1], y0 * torch.tensor(-1.0, dtype=torch.float64).exp())

decay = torch.nn.Linear(3, 3, bias=False, dtype=torch.float64)
t = torch.tensor([0.0, 1.0])
odeint_adjoint(lambda t, y: decay(y), y0, t, adjoint_params=decay.parameters())[-1].sum().backward()
assert decay.weight.grad.abs().min() > 0

flow = ContinuousFlow(lambda t, z: torch.tanh(z), dim=2)
assert flow.log_prob(flow.sample(5)).isfinite().all()
print("done")
"""
    assert run(python, code, tmp_path) == "done\n"


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_examples_of_the_readme_work(example: str, python: Path, tmp_path: Path) -> None:
    run(python, example, tmp_path)


def test_what_is_missing_is_said(python: Path, tmp_path: Path) -> None:
    """SciPy with its extra; what the wheel does not hold with the place that has it."""
    code = """
import warnings
import torch
import neural_ode
from neural_ode.methods import ScipySolver

try:
    neural_ode.solve(lambda t, y: -y, torch.ones(1), [0.0, 1.0], method=ScipySolver())
except Exception as error:
    print(error)
warnings.simplefilter("ignore")
for name in ("claims", "experiments.depth", "models.flows.planar"):
    try:
        __import__(f"neural_ode.{name}")
    except ModuleNotFoundError as error:
        print(error)
from neural_ode.models.flows import ContinuousFlow
try:
    from neural_ode.models.flows import HyperNetwork
except ImportError as error:
    print(error)
"""
    scipy, *moved = run(python, code, tmp_path).splitlines()
    assert "pip install scipy" in scipy
    assert [line.partition(",")[0] for line in moved] == [
        "neural_ode.claims is now reproduction.claims",
        "neural_ode.experiments.depth is now reproduction.experiments.depth",
        "neural_ode.models.flows.planar is now reproduction.models.flows.planar",
        "neural_ode.models.flows is now reproduction.models.flows",
    ]
    assert all("pip install --editable ." in line for line in moved)


def test_a_clone_has_both_packages(tmp_path: Path) -> None:
    """An editable installation puts `lib` on the path."""
    copy = tmp_path / "clone"
    shutil.copytree(ROOT / "lib", copy / "lib", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    with zipfile.ZipFile(build("editable", copy, tmp_path)) as archive:
        [pointer] = [name for name in archive.namelist() if name.endswith(".pth")]
        assert Path(archive.read(pointer).decode().strip()) == copy / "lib"
