"""The results of notebook 05."""

import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from neural_ode.errors import needs
from reproduction.experiments.ode_net import load_ode_net
from reproduction.experiments.tolerance.answers import ERROR, error_run
from reproduction.experiments.tolerance.backward import BOTH_WAYS, backward_run
from reproduction.experiments.tolerance.digits import Digits, digits_run
from reproduction.experiments.tolerance.sharing import sharing_run
from reproduction.experiments.tolerance.solves import SOLVERS, forward_run, scales_run
from reproduction.experiments.tolerance.stiffness import STIFF_SOLVERS, stiffness_run
from reproduction.models.mnist import MnistNet
from reproduction.results import Run
from reproduction.training.mnist import classifier_run
from reproduction.workspace import Workspace, choose_device

with needs("notebooks"):
    import pandas as pd

__all__ = ["COARSE", "Results", "results"]

METHOD = "dopri5"
"""The method that the networks were trained with."""

COARSE: dict[str, dict[str, Any]] = {
    "Euler, 1 step": {"method": "euler", "step_size": 1.0},
    "Euler, 4 steps": {"method": "euler", "step_size": 0.25},
    "RK4, 1 step": {"method": "rk4", "step_size": 1.0},
}
"""Solvers without error control, which further networks are trained with."""

SINGLE = 1e-6
"""Tolerances down to this one mean nothing in single precision."""

TIGHT = 1e-5
"""What a network is solved with to see whether it is an ODE."""

PAPERS = "VODE"
"""The solver of the paper in `BOTH_WAYS`."""

STIFF = 1e-6
"""Tolerance at which stiff problems are solved."""

VALIDATION_SIZE = 500
JOINT_BATCHES = 10


class Results(NamedTuple):
    """What notebook 05 shows.

    Attributes:
        network: the first trained ODE-Net, in float64.
        forward: a row for each solve of a batch; see `Forward`.
        scales: a row for each backward solve of a scaled loss; see `Scaled`.
        backward: a row for each backward solve of a batch, with its `network`; see `Backward`.
        errors: test errors in % of the first network in single precision, by tolerance; only those above 1e-6.
        digits: what every test image cost with steps of its own, by network and tolerance.
        sharing: a row for each joint solve: `network`, `tolerance`, `size`, `shared` and `worst`; see `sharing`.
        stiff: a row for each solve of a problem of some stiffness; see `Stiff`.
        matrix: test errors in %, a row for each network and solver that it is tested with: `trained` (with what),
            `seed`, `tested` (with what) and `error`.
    """

    network: MnistNet
    forward: pd.DataFrame
    scales: pd.DataFrame
    backward: pd.DataFrame
    errors: dict[float, float]
    digits: dict[tuple[str, float], Digits]
    sharing: pd.DataFrame
    stiff: pd.DataFrame
    matrix: pd.DataFrame


def results(
    work: Workspace,
    *,
    networks: Sequence[str],
    training_tolerance: float,
    images: int,
    batches: int,
    tolerances: Sequence[float],
    repeats: int,
    loss_scales: Sequence[float],
    backward: Mapping[str, int],
    test_size: int | None,
    further_size: int | None,
    tight_tolerance: float,
    sizes: Sequence[int],
    stiffness: Sequence[float],
    coarse_seeds: Mapping[str, Sequence[int]],
    coarse_train_size: int | None,
    coarse_epochs: int,
    coarse_batch_size: int,
    coarse_peak_lr: float,
    device: str,
) -> Results:
    """Measure networks of notebook 04, and train and test the coarse ones; what is there is read.

    Args:
        work: of the notebook.
        networks: runs of ODE-Nets in notebook 04. The sweeps over tolerances and losses are of the first one.
        training_tolerance: what they were trained with.
        images, batches: test images in a batch of the sweep over tolerances, and how many of these.
        tolerances: of the sweep.
        repeats: how often a solve is timed.
        loss_scales: factors of the loss.
        backward: `images` in a batch that is solved forwards and backwards, and how many `batches` of each network.
        test_size: test images, all for `None`.
        further_size: how many of them the networks after the first one solve one by one, and jointly.
        tight_tolerance: the second one that every image is solved at.
        sizes: of batches that are solved jointly.
        stiffness: rates at which solutions attract.
        coarse_seeds: by the name of a solver in `COARSE`, the seeds of the networks that are trained with it.
        coarse_train_size: training images of the coarse networks, all for `None`.
        coarse_epochs, coarse_batch_size, coarse_peak_lr: of their trainings.
        device: where to compute.

    Raises:
        MissingResultError: notebook 04 has not trained one of the networks.
    """
    where = choose_device(device)
    how: dict[str, Any] = {"data": work.root / "data" / "mnist", "device": where}
    trained = {name: work.result("04_mnist", f"{name}.safetensors") for name in networks}
    measured: dict[str, dict[str, Any]] = {
        name: {"weights": _checksum(file), "test_size": test_size} for name, file in trained.items()
    }
    ours: dict[str, Any] = {"files": {_checksum(file): file for file in trained.values()}, **how}

    both: dict[str, Any] = {**backward, "tolerance": training_tolerance}
    # What decides is the paper's kind of solver; the others are beside it, on the first network.
    cases = [(name, solver) for name in networks for solver in BOTH_WAYS if solver == PAPERS or name == networks[0]]
    points = {f"backward/{name}/{solver}": {"solver": solver, **measured[name], **both} for name, solver in cases}
    both_ways = work.store.obtain(backward_run, points, label="both ways", **ours)
    further = {name: {**measured[name], "test_size": further_size} for name in networks[1:]}
    digits = _digits(work, measured | further, (training_tolerance, tight_tolerance), ours)
    shared = _sharing(work, digits, sizes, ours)
    stiff: dict[str, Any] = {"stiffness": list(stiffness), "tolerance": STIFF}
    points = {f"stiffness/{_file_name(name)}": {"solver": name, **stiff} for name in STIFF_SOLVERS}
    stiff_solves = work.store.obtain(stiffness_run, points, label="stiffness")

    batch = {**measured[networks[0]], "images": images}
    sweep = {**batch, "batches": batches, "tolerances": list(tolerances), "repeats": repeats}
    points = {f"forward/{name}": {"solver": name, **sweep} for name in SOLVERS}
    forward = work.store.obtain(forward_run, points, label="solves", alone=True, **ours)
    scaled = {**batch, "scales": list(loss_scales), "tolerance": training_tolerance}
    points = {f"scales/{name}": {"solver": name, **scaled} for name in SOLVERS}
    scales = work.store.obtain(scales_run, points, label="scaled losses", **ours)

    own = {(_label(training_tolerance), seed): Tested(name, trained[name]) for seed, name in enumerate(networks)}
    solvers = {**COARSE, "Euler, 32 steps": {"method": "euler", "step_size": 1 / 32}}
    solvers |= {_label(x): _adaptive(x) for x in (training_tolerance, TIGHT)}
    own_errors = _errors(work, own, _tests(own, solvers), test_size, how)
    by_tolerance = {_label(x): _adaptive(x) for x in tolerances if x > SINGLE}
    first = next(iter(own))
    swept = _errors(work, {first: own[first]}, {first: by_tolerance}, test_size, how)
    training = {"epochs": coarse_epochs, "batch_size": coarse_batch_size, "peak_lr": coarse_peak_lr}
    coarse = _coarse_networks(work, training, coarse_seeds, coarse_train_size, how)
    coarse_errors = _errors(work, coarse, _tests(coarse, solvers), test_size, how)
    return Results(
        load_ode_net(trained[networks[0]], where).double(),
        _tables(forward),
        _tables(scales),
        _tables(both_ways, "network"),
        {x: float(e) for x, e in zip((x for x in tolerances if x > SINGLE), swept["error"], strict=True)},
        {key: _columns(run) for key, run in digits.items()},
        shared,
        _tables(stiff_solves),
        pd.concat([coarse_errors, own_errors], ignore_index=True),
    )


def _tables(runs: Mapping[str, Run], folder: str = "") -> pd.DataFrame:
    """The rows of all runs, with the folder in which each lies as a column of that name."""
    tables = [
        run.table().assign(**{folder: name.split("/")[-2]}) if folder else run.table() for name, run in runs.items()
    ]
    return pd.concat(tables, ignore_index=True)


def _digits(
    work: Workspace, measured: Mapping[str, Mapping[str, Any]], tolerances: Sequence[float], ours: Mapping[str, Any]
) -> dict[tuple[str, float], Run]:
    """Every test image with steps of its own, by network and tolerance."""
    keys = list(itertools.product(measured, tolerances))
    names = {key: f"digits/{key[0]}-{key[1]:g}" for key in keys}
    points = {names[name, x]: {**measured[name], "tolerance": x, "method": METHOD} for name, x in keys}
    runs = work.store.obtain(digits_run, points, label="digits", **ours)
    return {key: runs[names[key]] for key in keys}


def _sharing(
    work: Workspace, digits: Mapping[tuple[str, float], Run], sizes: Sequence[int], ours: Mapping[str, Any]
) -> pd.DataFrame:
    """The joint solves of the same images at the same tolerances."""
    tables = []
    for (network, tolerance), separate in digits.items():
        joint = {**separate.record["settings"], "digits": separate.identity(".csv")}
        points = {f"sharing/{network}-{tolerance:g}": {**joint, "sizes": list(sizes), "batches": JOINT_BATCHES}}
        (run,) = work.store.obtain(sharing_run, points, label="joint solves", separate=separate, **ours).values()
        tables.append(run.table().assign(network=network, tolerance=tolerance))
    return pd.concat(tables, ignore_index=True)


def _adaptive(tolerance: float) -> dict[str, Any]:
    return {"method": METHOD, "rtol": tolerance, "atol": tolerance}


def _label(tolerance: float) -> str:
    return f"{METHOD}, {tolerance:g}"


def _file_name(label: str) -> str:
    return label.replace(", ", "-").replace(" ", "-")


class Tested(NamedTuple):
    """A network that is tested: a name for files, and its weights."""

    name: str
    weights: Path


def _coarse_networks(
    work: Workspace,
    training: Mapping[str, Any],
    seeds: Mapping[str, Sequence[int]],
    train_size: int | None,
    how: Mapping[str, Any],
) -> dict[tuple[str, int], Tested]:
    """The networks that were trained through the steps of a coarse solver, by the solver's name and seed."""
    setting: dict[str, Any] = {"network": "RK-Net", "train_size": train_size, "validation_size": VALIDATION_SIZE}
    setting |= {"training": {**training, "schedule": "one-cycle", "max_shift": 0}}
    found = {}
    for solver, seed in [(name, seed) for name in COARSE for seed in seeds[name]]:
        name = f"{_file_name(solver)}-{seed}"
        run = f"coarse/{name}"
        # A folder for each: the checkpoints' names say network and seed only.
        folder = work.store.checkpoints / run
        points = {run: {**setting, "seed": seed, "solver": COARSE[solver]}}
        made = work.store.obtain(classifier_run, points, label=name, checkpoints=folder, **how)[run]
        found[solver, seed] = Tested(name, made.file(".safetensors"))
    return found


def _tests(
    networks: Iterable[tuple[str, int]], solvers: Mapping[str, Mapping[str, Any]]
) -> dict[tuple[str, int], Mapping[str, Mapping[str, Any]]]:
    """What networks are tested with: those of seed 0 with every solver, others with their own and a tight one."""
    return {key: solvers if key[1] == 0 else {x: solvers[x] for x in (key[0], _label(TIGHT))} for key in networks}


def _errors(
    work: Workspace,
    networks: Mapping[tuple[str, int], Tested],
    solvers: Mapping[tuple[str, int], Mapping[str, Mapping[str, Any]]],
    test_size: int | None,
    how: Mapping[str, Any],
) -> pd.DataFrame:
    """Test errors in %: a row for each network and solver, as `Results.matrix` has them.

    Args:
        work: of the notebook.
        networks: by what they were trained with, and the seed.
        solvers: for each of them, those that it is tested with, by name.
        test_size: see `results`.
        how: see `error_run`.
    """
    weights = {key: _checksum(network.weights) for key, network in networks.items()}
    cases = {
        f"errors/{network.name}/{_file_name(tested)}": (key, tested)
        for key, network in networks.items()
        for tested in solvers[key]
    }
    points = {
        name: {"weights": weights[key], "solver": solvers[key][tested], "test_size": test_size}
        for name, (key, tested) in cases.items()
    }
    files = {weights[key]: network.weights for key, network in networks.items()}
    runs = work.store.obtain(error_run, points, label="test errors", files=files, **how)
    rows = [
        {"trained": key[0], "seed": key[1], "tested": tested, "error": float(runs[name].table()[ERROR].iloc[0])}
        for name, (key, tested) in cases.items()
    ]
    return pd.DataFrame(rows)


def _columns(run: Run) -> Digits:
    table = run.table()
    return Digits(*(table[column].to_numpy() for column in Digits._fields))


def _checksum(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
