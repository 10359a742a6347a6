"""Run one notebook of the pipeline, headless.

    python -m reproduction.pipeline.run .identity/04_mnist.ipynb --profile quick

It draws what `reproduction.pipeline.compute` has computed, and decides the claims. The parameters are the section
of `params/<profile>.yaml` with the notebook's name. Figures, numbers and the executed notebook appear in
`figures/<profile>/<notebook>/` all at once, when the last cell has succeeded: until then, and if a cell fails or a
file cannot be stored, the ones of the previous run stay. A failed notebook is kept, as far as it came, as
`figures/<profile>/<notebook>.failed.ipynb`. A notebook runs once at a time in each profile.
"""

import argparse
import os
import shutil
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from neural_ode.errors import FileError, NeuralODEError, needs
from reproduction.files import publish_files, replacing, write_atomically
from reproduction.pipeline.alone import KERNEL_ARGUMENTS, locked, stop_with_parent
from reproduction.pipeline.clean import clean
from reproduction.pipeline.command import exit_status
from reproduction.pipeline.notebooks import read_notebook
from reproduction.pipeline.parameters import (
    check_parameters,
    declared_parameters,
    parameter_file,
    read_parameters,
)
from reproduction.workspace import DRAW_VARIABLE, OUTPUT_VARIABLE, checked_profile, project_root

with needs("notebooks"):
    import nbformat

__all__ = ["main", "one_run", "run_notebook", "staging"]

HEADLESS = ["--IPKernelApp.log_level=40", *KERNEL_ARGUMENTS]  # no warning about its sockets, which are local


class NotebookFailedError(NeuralODEError):
    """A cell of a notebook raised an exception, or its outputs could not be written."""


def staging(root: Path, profile: str, notebook: str) -> Path:
    """Where a run keeps what is not finished: the figures of a notebook until it has succeeded."""
    return root / ".staging" / checked_profile(profile) / notebook


def one_run(root: Path, profile: str, notebook: str) -> AbstractContextManager[None]:
    """A block in which no other process runs this notebook in this profile: they would use the same files.

    Raises:
        BusyError: one does already; the message names the process.
    """
    stage = staging(root, profile, notebook)
    return locked(stage.with_name(f"{notebook}.lock"), f"{notebook} in profile {profile!r}")


def run_notebook(source: Path, profile: str) -> Path:
    """Run `source` with the parameters of `profile` and publish what it draws.

    Returns:
        The executed notebook.

    Raises:
        InvalidArgumentError: the profile is not a name but a path.
        ParameterError: a parameter is unknown or ill-typed; nothing has run.
        BusyError: another process runs it in this profile.
        NotebookFailedError: a cell failed; the message names it and the partial notebook.
        FileError: a file cannot be read, or the results could not be published; those of the previous run are as
            they were.
    """
    root = project_root()
    name = source.stem
    file = parameter_file(root, profile)
    parameters = read_parameters(file, name) | {"profile": profile}
    declared = declared_parameters(source)
    check_parameters(parameters, declared, f"{file.relative_to(root)}, section {name}")
    # A notebook that runs with its defaults runs as it stands, without a cell that repeats them.
    changed = {key: value for key, value in parameters.items() if value != declared[key].default}

    with one_run(root, profile, name):
        stage = staging(root, profile, name)
        executed = stage / "figures" / profile / name / f"{name}.ipynb"
        try:
            if stage.exists():  # what a killed run left is of no use
                shutil.rmtree(stage)
            executed.parent.mkdir(parents=True)
        except OSError as error:
            raise FileError(f"{stage} cannot be emptied: {error}: remove it and run again") from error
        os.environ |= {OUTPUT_VARIABLE: str(stage), DRAW_VARIABLE: "1"}
        kept = root / "figures" / profile / f"{name}.failed.ipynb"
        try:
            _execute(source, executed, changed, root)
        except NotebookFailedError as error:
            raise NotebookFailedError(f"{error}\n{_keep(executed, kept, root)}") from error
        publish(stage, root, name, profile)
        shutil.rmtree(stage, ignore_errors=True)
        kept.unlink(missing_ok=True)
    return root / executed.relative_to(stage)


def _execute(source: Path, executed: Path, parameters: dict[str, Any], root: Path) -> None:
    """Run the notebook and write it, cleaned, to `executed`.

    Raises:
        NotebookFailedError: names the cell; `executed` has what came before it.
    """
    with needs("notebooks"):  # not above: it takes its time, and sweeps have no use for it
        import papermill
        from nbclient.exceptions import DeadKernelError
        from papermill.exceptions import PapermillExecutionError
    try:
        papermill.execute_notebook(
            source,
            executed,
            parameters=parameters,
            kernel_name="python3",
            cwd=root,
            progress_bar=False,
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
            extra_arguments=HEADLESS,
        )
        write_atomically(executed, nbformat.writes(_cleaned(executed)) + "\n")
    except PapermillExecutionError as error:
        raise NotebookFailedError(
            f"{source.stem}, cell {error.exec_count}: {error.ename}: {error.evalue}"
        ) from error
    except DeadKernelError as error:
        raise NotebookFailedError(f"{source.stem}, its kernel died (out of memory?)") from error
    except OSError as error:
        raise NotebookFailedError(f"{source.stem}, its outputs cannot be written: {error}") from error


def _keep(executed: Path, kept: Path, root: Path) -> str:
    """Keep a failed notebook as far as it came; in words, where it is, or why it is nowhere."""
    try:
        with replacing(kept) as temporary:
            nbformat.write(_cleaned(executed), temporary)
    except (OSError, FileError) as error:
        return f"The notebook as far as it came could not be kept: {error}"
    return f"The notebook as far as it came: {kept.relative_to(root)}"


def _cleaned(executed: Path) -> nbformat.NotebookNode:
    return clean(read_notebook(executed, "run it again"))


def publish(stage: Path, root: Path, name: str, profile: str) -> None:
    """Copy what notebook `name` has drawn to where it belongs, and remove what this run no longer made.

    Raises:
        FileError: that failed; the results of the previous run are as they were.
    """
    made = sorted(path for path in (stage / "figures" / profile / name).rglob("*") if path.is_file())
    targets = {root / path.relative_to(stage): path for path in made}
    old = sorted((root / "figures" / profile / name).rglob("*"))
    publish_files(targets, [path for path in old if path.is_file() and path not in targets])


def main(arguments: list[str] | None = None) -> int:
    """Run the notebook that the command line names; the exit status."""
    parser = argparse.ArgumentParser(description="Run one notebook of the pipeline, headless.")
    parser.add_argument("notebook", type=Path, help="a source-only notebook, such as .identity/04_mnist.ipynb")
    parser.add_argument("--profile", default="quick", help="names the file of parameters in params/")
    options = parser.parse_args(arguments)

    def work() -> None:
        executed = run_notebook(options.notebook, options.profile)
        print(f"\nwrote {executed.relative_to(project_root())}")

    return exit_status(work)


if __name__ == "__main__":
    stop_with_parent()
    sys.exit(main())
