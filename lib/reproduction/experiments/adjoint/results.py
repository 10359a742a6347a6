"""The results of notebook 02."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from neural_ode.errors import needs
from reproduction.experiments.adjoint.derivatives import derivatives_run
from reproduction.experiments.adjoint.errors import accuracy_run
from reproduction.experiments.adjoint.evaluations import evaluations_run
from reproduction.experiments.adjoint.reversal import reconstruction_run
from reproduction.experiments.adjoint.seminorm import seminorm_run
from reproduction.experiments.adjoint.seminorm_mnist import seminorm_mnist_run
from reproduction.experiments.trials import WEIGHTS, Trial, all_trials
from reproduction.experiments.wide_networks import TASKS, training_run
from reproduction.results import Run
from reproduction.training.adjoint import METHODS, black_box_run, flow_run, network_run
from reproduction.workspace import Workspace, choose_device

with needs("notebooks"):
    import pandas as pd

__all__ = ["Results", "results"]

FOUR = ("random network", "trained network", "stiff", "chaotic")
"""Problems whose gradients are measured."""

REVERSED = (*FOUR, "continuous flow")
"""Problems that are solved forwards and back."""

COUNTED = (
    "random network",
    "trained network",
    "stiff",
    "pendulum",
    "wide network",
    "continuous flow",
    "convolutions",
)
"""Problems whose backward solves can be finished."""

ODE_NET = "ODE-Net-0"
"""The network of notebook 04."""


class Results(NamedTuple):
    """What notebook 02 shows. An error or a number that is missing is that of a solve that could not be finished.

    Attributes:
        trials: the four problems whose gradients are measured.
        accuracy: a row for each problem, choice and tolerance: `error` of the gradient, and `drifted`.
        reconstruction: a row for each problem and tolerance: `error` of the state that came back.
        evaluations: a row for each problem and tolerance; see `backward_evaluations`.
        seminorm: the same where parameters outnumber the state: a row for each `network`, with `weights` that are
            random or trained, and tolerance; see `seminorm_counts`.
        time_errors: of the gradients of the times, by choice.
        hessian: the error of a Hessian-vector product.
        losses: at the end of trainings through a solver, by solver.
    """

    trials: dict[str, Trial]
    accuracy: pd.DataFrame
    reconstruction: pd.DataFrame
    evaluations: pd.DataFrame
    seminorm: pd.DataFrame
    time_errors: dict[str, float]
    hessian: float
    losses: dict[str, float]


def results(
    work: Workspace,
    *,
    tolerances: Sequence[float],
    count_tolerances: Sequence[float],
    training: int,
    flow_training: int,
    black_box_training: int,
    seminorm_tolerances: Sequence[float],
    seminorm_training: int,
    device: str,
) -> Results:
    """Train what the problems need, and measure on them; what is there is read.

    Args:
        work: of the notebook.
        tolerances: of gradients and ways back.
        count_tolerances: of the backward solves whose evaluations are counted.
        training, flow_training: iterations of the network and of the flow among the problems.
        black_box_training: iterations of the networks that are trained through any solver.
        seminorm_tolerances: of the backward solves of networks whose parameters outnumber the state.
        seminorm_training: iterations of these networks.
        device: where to compute.

    Raises:
        MissingResultError: notebook 04 has not trained its first ODE-Net.
    """
    where = choose_device(device)
    obtain = work.store.obtain
    network = obtain(network_run, {"trained-network": {"iterations": training}}, label="network", device=where)
    flow = obtain(flow_run, {"flow": {"iterations": flow_training}}, label="flow", device=where)
    runs = network | flow
    files = {name: run.file(".safetensors") for name, run in runs.items()}
    weights = {problem: runs[name].identity(".safetensors") for problem, name in WEIGHTS.items()}

    def table(run: Callable[..., Any], kind: str, problems: Sequence[str], at: Sequence[float]) -> pd.DataFrame:
        points = {
            f"{kind}/{name.replace(' ', '-')}": _point(name, weights, tolerances=list(at)) for name in problems
        }
        found = obtain(run, points, label=kind, files=files, device=where).values()
        return pd.concat([x.table() for x in found], ignore_index=True)

    accuracy = table(accuracy_run, "accuracy", FOUR, tolerances)
    reconstruction = table(reconstruction_run, "reconstruction", REVERSED, tolerances)
    evaluations = table(evaluations_run, "evaluations", COUNTED, count_tolerances)
    seminorm = _seminorm(work, seminorm_tolerances, seminorm_training, where)
    points = {"derivatives": _point("trained network", weights)}
    (run,) = obtain(derivatives_run, points, label="derivatives", files=files, device=where).values()
    points = {f"black_box/{name}": {"method": name, "iterations": black_box_training} for name in METHODS}
    trained = obtain(black_box_run, points, label="any solver", device=where)
    trials = all_trials(files, where)
    return Results(
        {name: trials[name] for name in FOUR},
        accuracy,
        reconstruction,
        evaluations,
        seminorm,
        run.values()["times"],
        run.values()["hessian"],
        {name: float(trained[f"black_box/{name}"].table()["loss"].iloc[-1]) for name in METHODS},
    )


def _point(problem: str, weights: Mapping[str, str], **settings: Any) -> dict[str, Any]:
    return {"problem": problem, "weights": weights.get(problem), **settings}


def _seminorm(work: Workspace, tolerances: Sequence[float], iterations: int, device: torch.device) -> pd.DataFrame:
    """The counts of networks whose parameters outnumber the state, with random and with trained weights."""
    obtain = work.store.obtain
    points = {f"wide/{_file_name(name)}": {"network": name, "iterations": iterations} for name in TASKS}
    trained = obtain(training_run, points, label="wide networks", device=device)
    ours = {run.identity(".safetensors"): run.file(".safetensors") for run in trained.values()}
    weights = dict(zip(TASKS, ours, strict=True))
    counts = {
        (name, kind): {"network": name, "weights": checksum, "tolerances": list(tolerances)}
        for name in TASKS
        for kind, checksum in (("random", None), ("trained", weights[name]))
    }
    file = work.result("04_mnist", f"{ODE_NET}.safetensors")
    of_mnist = hashlib.sha256(file.read_bytes()).hexdigest()
    further = {
        ("MNIST ODE-Net", kind): {"weights": checksum, "tolerances": list(tolerances)}
        for kind, checksum in (("random", None), ("trained", of_mnist))
    }
    how: dict[str, Any] = {"label": "seminorm", "device": device}
    found = {key: run.table() for key, run in _by_key(obtain, seminorm_run, counts, files=ours, **how).items()}
    how["data"] = work.root / "data" / "mnist"
    more = _by_key(obtain, seminorm_mnist_run, further, files={of_mnist: file}, **how)
    found |= {key: run.table() for key, run in more.items()}
    tables = [table.assign(network=name, weights=kind) for (name, kind), table in found.items()]
    return pd.concat(tables, ignore_index=True)


def _by_key(
    obtain: Callable[..., dict[str, Run]],
    function: Callable[..., Any],
    points: Mapping[tuple[str, str], Mapping[str, Any]],
    **bound: Any,
) -> dict[tuple[str, str], Run]:
    """The runs of networks with some weights, by both."""
    names = {key: f"seminorm/{_file_name('-'.join(key))}" for key in points}
    runs = obtain(function, {names[key]: point for key, point in points.items()}, **bound)
    return {key: runs[name] for key, name in names.items()}


def _file_name(name: str) -> str:
    return name.replace(", ", "-").replace(" ", "-")
