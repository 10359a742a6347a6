"""Import paths from before the library and the reproduction were two packages: they work, with a warning.

Version 1 has them and 2 will not. A finder at the end of `sys.meta_path` knows them, so it is asked only for
what is not there.
"""

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from types import CodeType, ModuleType
from typing import Any

__all__ = ["MODULES", "NAMES", "ROOMS", "install"]

ROOMS = ("data", "experiments", "figures", "measure", "models", "pipeline", "training")
"""Folders that went to `reproduction` with all that is in them, except for what `MODULES` names."""

MODULES = {
    "adaptive": "neural_ode.stepping.adaptive",
    "captured": "neural_ode.problem.captured",
    "claims": "reproduction.claims",
    "clock": "neural_ode.stepping.times",
    "dependence": "neural_ode.problem.dependence",
    "display": "reproduction.display",
    "dynamics": "neural_ode.problem.dynamics",
    "events": "neural_ode.stepping.events",
    "experiments.classifiers": "reproduction.experiments.mnist",
    "files": "reproduction.files",
    "fixed_grid": "neural_ode.stepping.fixed_grid",
    "gradients.problem": "neural_ode.problem.initial_value",
    "gradients.stepwise": "neural_ode.gradients.step_replay",
    "implicit_tableaus": "neural_ode.methods.tableaus.implicit",
    "imports": "reproduction.meaning",
    "integrate": "neural_ode.stepping.integrate",
    "methods.black_box": "neural_ode.methods.external",
    "models.flows": "neural_ode.nn",
    "models.flows.base": "neural_ode.nn.base_distribution",
    "models.flows.continuous": "neural_ode.nn.continuous_flow",
    "models.ode_block": "neural_ode.nn.ode_block",
    "models.own_times": "neural_ode.nn.own_times",
    "odeint": "neural_ode.torchdiffeq",
    "per_sample": "neural_ode.stepping.per_sample",
    "replay": "neural_ode.stepping.step_records",
    "scheme": "neural_ode.stepping.settings",
    "state": "neural_ode.problem.state",
    "step_size": "neural_ode.control.controllers",
    "structure": "neural_ode.problem.layout",
    "sweep": "reproduction.sweep",
    "tableaus": "neural_ode.methods.tableaus.explicit",
    "workspace": "reproduction.workspace",
}
"""Old module, below `neural_ode`, and the one that has its names now."""

NAMES = {
    "events.Event": "neural_ode.Event",
    "events.EventFunction": "neural_ode.problem.event.EventFunction",
    "experiments.flows.Flow": "reproduction.measure.flow_quality.Flow",
    "experiments.flows.divergence": "reproduction.measure.flow_quality.divergence",
    "experiments.flows.reversal_error": "reproduction.measure.reversal.reversal_error",
    "gradients.problem.Problem": "neural_ode.problem.initial_value.InitialValueProblem",
    "methods.black_box.SCIPY_SOLVERS": "neural_ode.methods.scipy.SCIPY_SOLVERS",
    "methods.black_box.ScipySolver": "neural_ode.methods.ScipySolver",
    "models.flows.Carried": "neural_ode.nn.continuous_flow.Carried",
    "models.flows.GatedUnits": "reproduction.models.flows.GatedUnits",
    "models.flows.HamiltonianDynamics": "reproduction.models.flows.HamiltonianDynamics",
    "models.flows.HyperNetwork": "reproduction.models.flows.HyperNetwork",
    "models.flows.PlanarDynamics": "reproduction.models.flows.PlanarDynamics",
    "models.flows.PlanarFlow": "reproduction.models.flows.PlanarFlow",
    "models.flows.TRACES": "neural_ode.nn.continuous_flow.TRACES",
    "models.flows.WithLogDensity": "neural_ode.nn.continuous_flow.WithLogDensity",
    "models.flows.standard_normal": "neural_ode.nn.base_distribution.standard_normal",
    "odeint.odeint": "neural_ode.odeint",
    "odeint.odeint_adjoint": "neural_ode.odeint_adjoint",
    "odeint.odeint_dense": "neural_ode.odeint_dense",
    "odeint.odeint_event": "neural_ode.odeint_event",
    "scheme.Callbacks": "neural_ode.Callbacks",
    "scheme.Scheme": "neural_ode.stepping.settings.SolverSettings",
    "state.Norm": "neural_ode.problem.norms.Norm",
    "state.max_rms_norm": "neural_ode.problem.norms.max_rms_norm",
    "state.rms_norm": "neural_ode.problem.norms.rms_norm",
    "step_size.Tolerance": "neural_ode.control.tolerance.Tolerance",
    "step_size.column": "neural_ode.problem.state.column",
    "step_size.initial_step": "neural_ode.control.first_step.initial_step",
    "structure.Structure": "neural_ode.problem.layout.StateLayout",
    "tableaus.ButcherTableau": "neural_ode.methods.tableaus.butcher.ButcherTableau",
    "tableaus.DOPRI8": "neural_ode.methods.tableaus.dopri8.DOPRI8",
    "training.weights.load_classifier": "reproduction.training.mnist.load_classifier",
}
"""Names that did not go with their module, or are called something else now."""

_PACKAGE = "neural_ode."


def install() -> None:
    """Let imports find what has moved."""
    finder = _Finder()
    sys.meta_path.append(finder)
    # The package has a function of this name. An import would put the module in its place.
    spec = finder.find_spec(f"{_PACKAGE}odeint")
    assert spec is not None
    sys.modules[spec.name] = module_from_spec(spec)


def _message(old: str, new: str) -> str:
    return f"{_PACKAGE}{old} is now {new}; the old path goes away with version 2.0"


def _load(old: str, new: str) -> ModuleType:
    try:
        return import_module(new)
    except ModuleNotFoundError as error:
        if error.name != "reproduction":
            raise
        raise ModuleNotFoundError(
            f"{_PACKAGE}{old} is now {new}, and not in the library: the package reproduction is in its repository, "
            "where pip install --editable . installs it",
            name=error.name,
        ) from error


class _Moved(ModuleType):
    """Stands under the old name and looks everything up where it is now."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__all__":  # those describe the module itself
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        old = self.__name__.removeprefix(_PACKAGE)
        if new := NAMES.get(f"{old}.{name}"):
            warnings.warn(_message(f"{old}.{name}", new), DeprecationWarning, stacklevel=2)
            module, _, name = new.rpartition(".")
            return getattr(_load(old, module), name)
        if old in ROOMS:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(_load(old, _new(old)), name)


class _Finder(MetaPathFinder):
    """Finds what `MODULES` names, and everything that was in `ROOMS`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        old = fullname.removeprefix(_PACKAGE)
        if old == fullname or (old not in MODULES and old.partition(".")[0] not in ROOMS):
            return None
        package = old in ROOMS or any(other.startswith(f"{old}.") for other in MODULES)
        return ModuleSpec(fullname, _Loader(), is_package=package)


class _Loader(InspectLoader):
    """Makes a stand-in, or runs what is in its place now."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Moved(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__.removeprefix(_PACKAGE)
        if old not in ROOMS:
            _load(old, _new(old))
            warnings.warn(_message(old, _new(old)), DeprecationWarning, stacklevel=2)

    def get_code(self, fullname: str) -> CodeType:
        """For `python -m`: a program that warns and runs the module that has taken the place."""
        old = fullname.removeprefix(_PACKAGE)
        program = (
            "import runpy, warnings\n"
            f"warnings.warn({_message(old, _new(old))!r}, DeprecationWarning)\n"
            f"runpy.run_module({_new(old)!r}, run_name='__main__', alter_sys=True)\n"
        )
        return compile(program, fullname, "exec")

    def get_source(self, fullname: str) -> None:
        """There is none."""


def _new(old: str) -> str:
    return MODULES.get(old, f"reproduction.{old}")
