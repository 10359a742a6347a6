"""Import paths from before there were two packages work, and say what the new ones are."""

import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import neural_ode
from neural_ode._moved import MODULES, NAMES, ROOMS

# Those beside the one that a test is about: of parent packages, for example.
pytestmark = pytest.mark.filterwarnings("ignore:neural_ode.* is now:DeprecationWarning")

ROOT = Path(__file__).parents[1]
IN_ROOMS = [
    ".".join(file.relative_to(ROOT / "lib" / "reproduction").with_suffix("").parts)
    for room in ROOMS
    for file in sorted((ROOT / "lib" / "reproduction" / room).rglob("*.py"))
    if file.stem != "__init__" and file.parent.name not in ("adjoint", "stiffness", "tolerance")  # with no old path
]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
INSIDE = tuple(f"neural_ode.{part}." for part in ("problem", "control", "methods", "stepping", "gradients"))
"""Where solves are made."""

SHOWN = """
from neural_ode.claims import Verdict, decide, describe, load_claims, verdict_table
from neural_ode.data.densities import get_target
from neural_ode.data.events import RATES, draw_events
from neural_ode.data.mnist import Mnist, Split, load_mnist
from neural_ode.data.oscillators import draw_oscillators, oscillator_rate
from neural_ode.data.points import points
from neural_ode.data.spirals import draw_spirals
from neural_ode.display import show_source, show_table
from neural_ode.experiments import adjoint
from neural_ode.experiments import flows as experiment
from neural_ode.experiments.classifiers import step_costs
from neural_ode.experiments.memory import CHOICES, checkpoint_bound, memory_sweep, trade_offs
from neural_ode.experiments.search import first_stable, ranked
from neural_ode.figures.animation import save_animation
from neural_ode.figures.interactive import interactive_figure
from neural_ode.figures.scoreboard import draw_scoreboard
from neural_ode.figures.spirals import DIRECTIONS, LOOKS, draw_latent_ode, draw_prediction
from neural_ode.figures.theme import COLORS, MARKERS, save_figure, use_theme
from neural_ode.files import read_json, replace_between, replacing, write_atomically
from neural_ode.measure import prediction
from neural_ode.measure.curves import largest_step, linear_accuracy, sign_changes, signed_area
from neural_ode.measure.fits import fit_line, mean_interval, median_interval, proportion_interval, ratio_interval
from neural_ode.models.flows import ContinuousFlow, HyperNetwork, PlanarDynamics
from neural_ode.models.flows import WithLogDensity
from neural_ode.models.flows.base import standard_normal
from neural_ode.models.gaussian import kl_to_standard_normal, normal_log_density, sample_normal
from neural_ode.models.latent_ode import LatentODE, spiral_latent_ode
from neural_ode.models.mnist import MNIST_MODELS, ConvDynamics, mnist_net
from neural_ode.models.ode_block import OdeBlock
from neural_ode.models.poisson import PoissonODE
from neural_ode.models.rnn import NextObservationRNN
from neural_ode.sweep import grid, sweep
from neural_ode.training import poisson
from neural_ode.training.flows import Likelihood, Matching, PictureLikelihood, train_continuous, train_planar
from neural_ode.training.mnist import error_rate, train_classifier
from neural_ode.training.weights import load_classifier, save_run
from neural_ode.workspace import MissingResultError, Workspace, choose_device, project_root
"""
"""What the README and the notebooks imported then."""


@pytest.fixture(autouse=True)
def _nothing_imported_yet() -> Iterator[None]:
    """Old paths, before and after each test."""
    moved = type(sys.modules["neural_ode.odeint"])

    def forget() -> None:
        for name, module in list(sys.modules.items()):
            if isinstance(module, moved) and name != "neural_ode.odeint":
                del sys.modules[name]
                parent, _, child = name.rpartition(".")
                if isinstance(vars(sys.modules.get(parent, neural_ode)).get(child), moved):
                    delattr(sys.modules[parent], child)

    forget()
    yield
    forget()


@pytest.mark.parametrize(("old", "new"), [*MODULES.items(), *((name, f"reproduction.{name}") for name in IN_ROOMS)])
def test_a_module_has_the_names_of_the_new_one(old: str, new: str) -> None:
    if old == "odeint":  # a function of the package: its names warn
        found = sys.modules["neural_ode.odeint"]
    else:
        with pytest.warns(DeprecationWarning, match=rf"^neural_ode\.{old} is now {MODULES.get(old, new)};"):
            found = import_module(f"neural_ode.{old}")
    module = import_module(new)
    for name in getattr(module, "__all__", ()):
        if f"{old}.{name}" not in NAMES:
            assert getattr(found, name) is getattr(module, name)


@pytest.mark.parametrize("old", NAMES)
def test_a_name_that_went_elsewhere(old: str) -> None:
    module, _, name = old.rpartition(".")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = import_module(f"neural_ode.{module}")
    with pytest.warns(DeprecationWarning, match=rf"^neural_ode\.{old} is now {NAMES[old]};") as caught:
        value = getattr(found, name)
    assert Path(caught[0].filename) == Path(__file__)  # the line that uses it
    module, _, name = NAMES[old].rpartition(".")
    assert value is getattr(import_module(module), name)


@pytest.mark.parametrize("line", SHOWN.strip().splitlines())
def test_what_readme_and_notebooks_imported_works(line: str) -> None:
    with pytest.warns(DeprecationWarning, match="the old path goes away with version"):
        exec(line, {})


def test_a_warning_points_to_the_import() -> None:
    with pytest.warns(DeprecationWarning, match="Tolerance is now") as caught:
        from neural_ode.step_size import Tolerance
    assert {Path(warning.filename) for warning in caught} == {Path(__file__)}
    assert Tolerance is import_module("neural_ode.control.tolerance").Tolerance


def test_functions_of_the_package_stay_functions() -> None:
    with pytest.warns(DeprecationWarning, match=r"is now neural_ode\.odeint;"):
        from neural_ode.odeint import odeint
    import_module("neural_ode.odeint")
    assert neural_ode.odeint is odeint is import_module("neural_ode.torchdiffeq").odeint
    assert callable(neural_ode.solve)


def test_a_package_of_old_modules_is_silent() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for room in ROOMS:
            assert not [name for name in vars(import_module(f"neural_ode.{room}")) if not name.startswith("__")]


@pytest.mark.parametrize("name", ["nowhere", "data.nowhere", "models.flows.nowhere", "solve.nowhere"])
def test_what_never_was_is_not_found(name: str) -> None:
    with pytest.raises(ModuleNotFoundError, match="nowhere"):
        import_module(f"neural_ode.{name}")
    with pytest.raises(ImportError, match="nowhere"):
        exec("from neural_ode.measure import nowhere", {})


def test_a_command_runs_under_its_old_name() -> None:
    """`python -m` shows the warning too."""
    command = [sys.executable, "-m", "neural_ode.pipeline.run", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Run one notebook of the pipeline" in shown.stdout
    assert "neural_ode.pipeline.run is now reproduction.pipeline.run;" in shown.stderr


def test_the_changelog_names_what_users_imported() -> None:
    rows = dict(re.findall(r"^\| `neural_ode\.([\w.]+)` \| `([\w.]+)` \|$", CHANGELOG, re.MULTILINE))
    known = {**{room: f"reproduction.{room}" for room in ROOMS}, **MODULES, **NAMES}
    assert rows.items() <= known.items()
    elsewhere = {old for old, new in known.items() if not new.startswith(INSIDE)}
    assert not elsewhere - set(rows)
