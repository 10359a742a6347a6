"""Compute the results of a notebook: its trainings and measurements, without the notebook.

    python -m reproduction.pipeline.compute 04_mnist --profile paper --workers 4

They go to `results/<profile>/<notebook>/`, run by run, with the parameters of `params/<profile>.yaml`. What is
there and was made with these settings by this code stays, so a computation that was killed goes on, and a further
seed computes that seed. What the parameters no longer ask for is removed at the end.
"""

import argparse
import importlib
import inspect
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

from neural_ode.errors import UnknownNameError
from reproduction.meaning import LIBRARY
from reproduction.pipeline.alone import stop_with_parent
from reproduction.pipeline.command import exit_status
from reproduction.pipeline.identity import experiment_file
from reproduction.pipeline.parameters import notebook_parameters
from reproduction.pipeline.run import one_run, staging
from reproduction.results import Store
from reproduction.workspace import Workspace, checked_profile, project_root

__all__ = ["compute", "experiment", "main"]


def experiment(notebook: str) -> Any:
    """The module that computes what a notebook draws: named like it without the number, in `experiments`.

    Raises:
        UnknownNameError: there is none; the scoreboard computes nothing.
    """
    if experiment_file(notebook) is None:
        known = [path.stem for path in sorted((LIBRARY.parent / "notebooks").glob("*.ipynb"))]
        raise UnknownNameError("notebook with an experiment", notebook, [x for x in known if experiment_file(x)])
    return importlib.import_module(f"reproduction.experiments.{notebook.split('_', 1)[-1]}")


def compute(
    notebook: str, profile: str, root: Path, *, workers: int | None = None, accepted: str | None = None
) -> Store:
    """Compute what is missing of a notebook's results.

    Args:
        notebook: such as `04_mnist`.
        profile: names the parameters.
        root: of the project.
        workers: see `reproduction.sweep.sweep`.
        accepted: see `Store`.

    Raises:
        UnknownNameError: there is no such notebook.
        ParameterError: a parameter is unknown or ill-typed; nothing was computed.
        BusyError: another process is at it.
        SweepError: a run failed; the others are kept.
    """
    checked_profile(profile)
    module = experiment(notebook)
    parameters = notebook_parameters(root, notebook, profile)
    run = f"{notebook}.results"
    with one_run(root, profile, run):
        work = Workspace(notebook, profile, root, root)
        stage = staging(root, profile, run)
        store = work.store
        store.workers, store.accepted, store.checkpoints = workers, accepted, stage
        assert store.target is not None
        store.target.mkdir(parents=True, exist_ok=True)
        results = module.results
        asked = inspect.signature(results).parameters
        results(work, **{name: value for name, value in parameters.items() if name in asked})
        for name in store.prune():
            print(f"removed {name}: the parameters no longer ask for it")
        for file in store.strays():
            print(f"{(store.target / file).relative_to(root)} was made by no run: remove it if it is not yours")
        shutil.rmtree(stage, ignore_errors=True)
    return store


def main(arguments: list[str] | None = None) -> int:
    """Compute the results that the command line names; the exit status."""
    parser = argparse.ArgumentParser(description="Compute the results of a notebook, without the notebook.")
    parser.add_argument("notebook", help="such as 04_mnist")
    parser.add_argument("--profile", default="quick", help="names the file of parameters in params/")
    parser.add_argument(
        "--workers",
        type=int,
        help="processes on this machine; by default the scheduler in DASK_SCHEDULER_ADDRESS, else none",
    )
    parser.add_argument(
        "--accept",
        metavar="REASON",
        help="take the runs that are there for those of today's code, which changed in a way that cannot matter: "
        "the reason is kept with them",
    )
    options = parser.parse_args(arguments)

    # Compiling would warn of a GPU that is not there, where CUDA is installed.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)

    def work() -> None:
        store = compute(
            options.notebook, options.profile, project_root(), workers=options.workers, accepted=options.accept
        )
        print(f"{len(store.used)} runs in results/{options.profile}/{options.notebook}")

    return exit_status(work)


if __name__ == "__main__":
    stop_with_parent()
    sys.exit(main())
