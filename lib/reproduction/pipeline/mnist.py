"""The trainings of notebook 04 without the notebook: as points of a sweep.

What is trained here the notebook finds, as long as it runs with the same parameters on the same kind of device.
"""

import itertools
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from reproduction.data.mnist import Mnist, load_mnist
from reproduction.files import write_atomically
from reproduction.pipeline.parameters import check_parameters, declared_parameters, parameter_file, read_parameters
from reproduction.pipeline.run import one_run, staging
from reproduction.sweep import Point, sweep
from reproduction.training.mnist import train_classifier
from reproduction.workspace import Workspace, choose_device

__all__ = ["NOTEBOOK", "load_splits", "network_points", "notebook_parameters", "settings", "sweep_mnist"]

NOTEBOOK = "04_mnist"


def notebook_parameters(root: Path, profile: str) -> dict[str, Any]:
    """What `params/<profile>.yaml` says for notebook 04.

    Raises:
        ParameterError: there is no such profile, or a parameter that the notebook does not know.
    """
    parameters = read_parameters(parameter_file(root, profile), "mnist")
    declared = declared_parameters(root / "notebooks" / f"{NOTEBOOK}.ipynb")
    check_parameters(parameters, declared, f"params/{profile}.yaml, section mnist")
    return {name: one.default for name, one in declared.items()} | parameters


def settings(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What all networks have in common: the arguments of `train_classifier`, and the sizes of the splits."""
    tolerance = parameters["tolerance"]
    return {
        "training": {
            name: parameters[name] for name in ("epochs", "batch_size", "peak_lr", "schedule", "max_shift")
        },
        "solver": {"method": parameters["method"], "rtol": tolerance, "atol": tolerance},
        "sizes": [parameters[f"{split}_size"] for split in Mnist._fields],
        "device": parameters["device"],
    }


def network_points(parameters: Mapping[str, Any]) -> list[Point]:
    """Every network with every seed that the notebook trains it with, in its order."""
    seeds = parameters["seeds"]
    return [
        {"name": name, "seed": seed, **settings(parameters)}
        for name, seed in itertools.product(parameters["models"], seeds)
        if seed == seeds[0] or name not in parameters["one_seed"]
    ]


def load_splits(root: Path, sizes: list[int | None]) -> Mnist:
    """As many examples of each split as `sizes` says, all for `None`."""
    return Mnist(
        *(split.take(size) for split, size in zip(load_mnist(root / "data" / "mnist"), sizes, strict=True))
    )


def train_network(
    root: Path,
    profile: str,
    *,
    name: str,
    seed: int,
    training: Mapping[str, Any],
    solver: Mapping[str, Any],
    sizes: list[int | None],
    device: str,
) -> dict[str, bytes]:
    """Train one network, or find it trained; the files that the notebook keeps of it, by name."""
    work = Workspace(NOTEBOOK, profile, root, staging(root, profile, NOTEBOOK))
    run = f"{name.replace(' ', '-')}-{seed}"
    trained = train_classifier(
        name,
        seed,
        load_splits(root, sizes),
        training,
        solver,
        choose_device(device),
        work.checkpoints / f"{run}.pt",
        _results(root, profile) / f"{run}.safetensors",
    )
    with tempfile.TemporaryDirectory() as folder:
        trained.save(Path(folder), run)
        return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


def sweep_mnist(root: Path, profile: str, workers: int | None = None) -> None:
    """Train all networks of a profile and put their weights where notebook 04 looks for them.

    Raises:
        SweepError, ParameterError: see `sweep` and `notebook_parameters`.
        BusyError: the notebook, or another sweep of it, is under way.
    """

    def publish(point: Point, files: dict[str, bytes]) -> None:
        # The weights come last: they say what run they are of, so the history must be there already.
        for name in sorted(files, key=lambda name: name.endswith(".safetensors")):
            write_atomically(_results(root, profile) / name, files[name])

    points = network_points(notebook_parameters(root, profile))
    with one_run(root, profile, NOTEBOOK):
        sweep(
            partial(train_network, root, profile),
            points,
            staging(root, profile, NOTEBOOK) / "sweep",
            workers=workers,
            label=f"mnist, {profile}",
            received=publish,
        )


def _results(root: Path, profile: str) -> Path:
    return root / "runs" / profile / NOTEBOOK
