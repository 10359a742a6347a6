"""The results of notebook 02."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import torch

from neural_ode.errors import needs
from reproduction.experiments.adjoint.derivatives import derivatives_run
from reproduction.experiments.adjoint.errors import accuracy_run
from reproduction.experiments.adjoint.evaluations import evaluations_run
from reproduction.experiments.adjoint.reversal import reconstruction_run
from reproduction.experiments.adjoint.seminorm import seminorm_run, sizes
from reproduction.experiments.adjoint.seminorm_mnist import seminorm_mnist_run
from reproduction.experiments.trials import WEIGHTS, Trial, all_trials
from reproduction.experiments.wide_networks import TASKS, training_run
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

MNIST, ODE_NET = "MNIST ODE-Net", "ODE-Net-0"
"""A network of notebook 04, and which run trained it there."""


class Results(NamedTuple):
    """What notebook 02 shows. An error or a number that is missing is that of a solve that could not be finished.

    Attributes:
        trials: the four problems whose gradients are measured.
        accuracy: a row for each problem, choice and tolerance: `error` of the gradient, and `drifted`.
        reconstruction: a row for each problem and tolerance: `error` of the state that came back.
        evaluations: a row for each problem and tolerance, see `backward_evaluations`, with the numbers of
            `parameters` and of the `state`.
        seminorm: the same where parameters outnumber the state: a row for each `network`, with `weights` that are
            random or trained, tolerance and scale of the loss; see `seminorm_counts`.
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
    seminorm_scales: Sequence[float],
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
        seminorm_tolerances, seminorm_scales: of the solves of networks whose parameters outnumber the state, and
            factors of their losses.
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
    seminorm = _seminorm(
        work, {"tolerances": list(seminorm_tolerances), "scales": list(seminorm_scales)}, seminorm_training, where
    )
    points = {"derivatives": _point("trained network", weights)}
    (run,) = obtain(derivatives_run, points, label="derivatives", files=files, device=where).values()
    points = {f"black_box/{name}": {"method": name, "iterations": black_box_training} for name in METHODS}
    trained = obtain(black_box_run, points, label="any solver", device=where)
    trials = all_trials(files, where)
    sized = pd.DataFrame([sizes(trials[name]) for name in evaluations["problem"]])
    evaluations = pd.concat([evaluations, sized], axis=1)
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


def _seminorm(work: Workspace, counted: Mapping[str, Any], iterations: int, device: torch.device) -> pd.DataFrame:
    """The counts of networks whose parameters outnumber the state, with random and with trained weights."""
    obtain = work.store.obtain
    points = {f"wide/{_file_name(name)}": {"network": name, "iterations": iterations} for name in TASKS}
    trained = obtain(training_run, points, label="wide networks", device=device)
    files = {name: run.file(".safetensors") for name, run in zip(TASKS, trained.values(), strict=True)}
    files[MNIST] = work.result("04_mnist", f"{ODE_NET}.safetensors")
    checksums = {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}
    by_checksum = {checksums[name]: file for name, file in files.items()}
    how: dict[str, Any] = {"label": "seminorm", "files": by_checksum, "device": device}
    tables = []
    for name, weights in product(files, ("random", "trained")):
        run = f"seminorm/{_file_name(name)}-{weights}"
        point = {"weights": checksums[name] if weights == "trained" else None, **counted}
        if name == MNIST:
            found = obtain(seminorm_mnist_run, {run: point}, data=work.root / "data" / "mnist", **how)
        else:
            found = obtain(seminorm_run, {run: {"network": name, **point}}, **how)
        tables.append(found[run].table().assign(network=name, weights=weights))
    return pd.concat(tables, ignore_index=True)


def _file_name(name: str) -> str:
    return name.replace(", ", "-").replace(" ", "-")
