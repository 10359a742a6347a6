"""The results of notebook 05."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from neural_ode.errors import needs
from reproduction.experiments.ode_net import load_ode_net
from reproduction.experiments.tolerance.answers import ERROR, error_run
from reproduction.experiments.tolerance.digits import Digits, digits_run
from reproduction.experiments.tolerance.sharing import sharing_run
from reproduction.experiments.tolerance.solves import SOLVERS, forward_run, scales_run
from reproduction.models.mnist import MnistNet
from reproduction.results import Run
from reproduction.training.mnist import classifier_run
from reproduction.workspace import Workspace, choose_device

with needs("notebooks"):
    import pandas as pd

__all__ = ["COARSE", "Results", "results"]

METHOD = "dopri5"
"""The method that the network was trained with."""

COARSE: dict[str, dict[str, Any]] = {
    "Euler, 1 step": {"method": "euler", "step_size": 1.0},
    "Euler, 4 steps": {"method": "euler", "step_size": 0.25},
    "RK4, 1 step": {"method": "rk4", "step_size": 1.0},
}
"""Solvers without error control, which further networks are trained with."""

SINGLE = 1e-6
"""Tolerances down to this one mean nothing in single precision."""

VALIDATION_SIZE = 500
JOINT_BATCHES = 10


class Results(NamedTuple):
    """What notebook 05 shows.

    Attributes:
        network: the trained ODE-Net, in float64.
        forward: a row for each solve of a batch; see `Forward`.
        scales: a row for each backward solve of a scaled loss; see `Scaled`.
        errors: test errors in % of the network in single precision, by tolerance; only those above 1e-6.
        digits: what every test image cost with steps of its own, by tolerance.
        sharing: a row for each joint solve: `size`, `shared` and `worst`; see `sharing`.
        matrix: test errors in % by what a network was trained with (rows) and is tested with (columns).
    """

    network: MnistNet
    forward: pd.DataFrame
    scales: pd.DataFrame
    errors: dict[float, float]
    digits: dict[float, Digits]
    sharing: pd.DataFrame
    matrix: pd.DataFrame


def results(
    work: Workspace,
    *,
    network: str,
    training_tolerance: float,
    images: int,
    batches: int,
    tolerances: Sequence[float],
    repeats: int,
    loss_scales: Sequence[float],
    test_size: int | None,
    tight_tolerance: float,
    sizes: Sequence[int],
    coarse_train_size: int | None,
    coarse_epochs: int,
    coarse_batch_size: int,
    coarse_peak_lr: float,
    device: str,
) -> Results:
    """Measure a network of notebook 04, and train and test the coarse ones; what is there is read.

    Args:
        work: of the notebook.
        network: the run of an ODE-Net in notebook 04.
        training_tolerance: what it was trained with.
        images, batches: test images in a batch of the sweep over tolerances, and how many of these.
        tolerances: of the sweep.
        repeats: how often a solve is timed.
        loss_scales: factors of the loss.
        test_size: test images, all for `None`.
        tight_tolerance: the second one that every image is solved at.
        sizes: of batches that are solved jointly.
        coarse_train_size: training images of the coarse networks, all for `None`.
        coarse_epochs, coarse_batch_size, coarse_peak_lr: of their trainings.
        device: where to compute.

    Raises:
        MissingResultError: notebook 04 has not trained that network.
    """
    where = choose_device(device)
    file = work.result("04_mnist", f"{network}.safetensors")
    weights = _checksum(file)
    how: dict[str, Any] = {"data": work.root / "data" / "mnist", "device": where}
    ours: dict[str, Any] = {"files": {weights: file}, **how}
    measured: dict[str, Any] = {"weights": weights, "test_size": test_size}

    batch = {**measured, "images": images}
    sweep = {**batch, "batches": batches, "tolerances": list(tolerances), "repeats": repeats}
    points = {f"forward/{name}": {"solver": name, **sweep} for name in SOLVERS}
    forward = work.store.obtain(forward_run, points, label="solves", alone=True, **ours)
    scaled = {**batch, "scales": list(loss_scales), "tolerance": training_tolerance}
    points = {f"scales/{name}": {"solver": name, **scaled} for name in SOLVERS}
    scales = work.store.obtain(scales_run, points, label="scaled losses", **ours)

    singly = {x: {**measured, "tolerance": x, "method": METHOD} for x in (training_tolerance, tight_tolerance)}
    points = {f"digits-{x:g}": point for x, point in singly.items()}
    digits = work.store.obtain(digits_run, points, label="digits", **ours)
    separate = digits[f"digits-{training_tolerance:g}"]
    joint = {**singly[training_tolerance], "digits": separate.identity(".csv")}
    points = {"sharing": {**joint, "sizes": list(sizes), "batches": JOINT_BATCHES}}
    (shared,) = work.store.obtain(sharing_run, points, label="joint solves", separate=separate, **ours).values()

    training = {"epochs": coarse_epochs, "batch_size": coarse_batch_size, "peak_lr": coarse_peak_lr}
    coarse = _coarse_networks(work, training, coarse_train_size, how)
    solvers = {**COARSE, "Euler, 32 steps": {"method": "euler", "step_size": 1 / 32}}
    solvers |= {_label(x): _adaptive(x) for x in (training_tolerance, 1e-5)}
    by_tolerance = {_label(x): _adaptive(x) for x in tolerances if x > SINGLE}
    weights_of = {name: run.file(".safetensors") for name, run in coarse.items()} | {network: file}
    tests = {name: solvers | by_tolerance if name == network else solvers for name in weights_of}
    errors = _errors(work, weights_of, tests, test_size, how)
    matrix = pd.DataFrame(errors).T[list(solvers)].rename({network: _label(training_tolerance)})
    return Results(
        load_ode_net(file, where).double(),
        pd.concat([run.table() for run in forward.values()], ignore_index=True),
        pd.concat([run.table() for run in scales.values()], ignore_index=True),
        {x: errors[network][_label(x)] for x in tolerances if x > SINGLE},
        {x: _digits(digits[f"digits-{x:g}"]) for x in singly},
        shared.table(),
        matrix,
    )


def _adaptive(tolerance: float) -> dict[str, Any]:
    return {"method": METHOD, "rtol": tolerance, "atol": tolerance}


def _label(tolerance: float) -> str:
    return f"{METHOD}, {tolerance:g}"


def _file_name(label: str) -> str:
    return label.replace(", ", "-").replace(" ", "-")


def _coarse_networks(
    work: Workspace, training: Mapping[str, Any], train_size: int | None, how: Mapping[str, Any]
) -> dict[str, Run]:
    """The networks that were trained through the steps of a coarse solver, by the solver's name."""
    setting = {"network": "RK-Net", "seed": 0, "train_size": train_size, "validation_size": VALIDATION_SIZE}
    setting |= {"training": {**training, "schedule": "one-cycle", "max_shift": 0}}
    found = {}
    for name, solver in COARSE.items():
        run = f"coarse/{_file_name(name)}"
        # A folder for each: the checkpoints' names say network and seed only.
        folder = work.store.checkpoints / run
        points = {run: {**setting, "solver": solver}}
        found[name] = work.store.obtain(classifier_run, points, label=name, checkpoints=folder, **how)[run]
    return found


def _errors(
    work: Workspace,
    files: Mapping[str, Path],
    solvers: Mapping[str, Mapping[str, Mapping[str, Any]]],
    test_size: int | None,
    how: Mapping[str, Any],
) -> dict[str, dict[str, float]]:
    """Test errors in % by network and solver.

    Args:
        work: of the notebook.
        files: weights by network.
        solvers: those that each network is tested with, by name.
        test_size: see `results`.
        how: see `error_run`.
    """
    checksums = {network: _checksum(file) for network, file in files.items()}
    points = {
        f"errors/{_file_name(network)}/{_file_name(name)}": {
            "weights": checksums[network],
            "solver": solver,
            "test_size": test_size,
        }
        for network, tested in solvers.items()
        for name, solver in tested.items()
    }
    bound = {"files": {checksums[network]: file for network, file in files.items()}, **how}
    runs = work.store.obtain(error_run, points, label="test errors", **bound)
    return {
        network: {
            name: float(runs[f"errors/{_file_name(network)}/{_file_name(name)}"].table()[ERROR].iloc[0])
            for name in tested
        }
        for network, tested in solvers.items()
    }


def _digits(run: Run) -> Digits:
    table = run.table()
    return Digits(*(table[column].to_numpy() for column in Digits._fields))


def _checksum(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
