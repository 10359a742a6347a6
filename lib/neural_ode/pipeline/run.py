"""Run one notebook of the pipeline, headless.

    python -m neural_ode.pipeline.run .nbsrc/04_mnist.ipynb --profile quick

The parameters are the section of `params/<profile>.yaml` named like the notebook without its number. Results
appear in the project all at once, when the last cell has succeeded: until then, and if a cell fails, the ones of
the previous run stay. A failed notebook is kept, as far as it came, under `figures/<profile>/*.failed.ipynb`.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path

import nbformat

from neural_ode.errors import NeuralODEError
from neural_ode.files import replacing, write_atomically
from neural_ode.pipeline.clean import clean
from neural_ode.pipeline.command import exit_status
from neural_ode.pipeline.parameters import check_parameters, declared_parameters, read_parameters
from neural_ode.workspace import OUTPUT_VARIABLE, project_root

__all__ = ["main", "run_notebook", "staging"]


class NotebookFailedError(NeuralODEError):
    """A cell of a notebook raised an exception."""


def staging(root: Path, profile: str, notebook: str) -> Path:
    """Where the results of a notebook lie until it has succeeded, and its checkpoints."""
    return root / ".staging" / profile / notebook


def run_notebook(source: Path, profile: str) -> Path:
    """Run `source` with the parameters of `profile` and publish its results.

    Returns:
        The executed notebook.

    Raises:
        ParameterError: a parameter is unknown or ill-typed; nothing has run.
        NotebookFailedError: a cell failed; the message names it and the partial notebook.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    root = project_root()
    name = source.stem
    file = root / "params" / f"{profile}.yaml"
    section = name.split("_", 1)[-1]
    parameters = read_parameters(file, section) | {"profile": profile}
    declared = declared_parameters(source)
    check_parameters(parameters, declared, f"{file.relative_to(root)}, section {section}")
    # A notebook that runs with its defaults runs as it stands, without a cell that repeats them.
    changed = {key: value for key, value in parameters.items() if value != declared[key].default}

    # What a killed run left is of no use, but for its checkpoints: training resumes from them.
    stage = staging(root, profile, name)
    for part in ("figures", "runs"):
        shutil.rmtree(stage / part, ignore_errors=True)
    executed = stage / "figures" / profile / f"{name}.ipynb"
    executed.parent.mkdir(parents=True)
    os.environ[OUTPUT_VARIABLE] = str(stage)
    kept = root / "figures" / profile / f"{name}.failed.ipynb"
    try:
        papermill.execute_notebook(
            source,
            executed,
            parameters=changed,
            kernel_name="python3",
            cwd=root,
            progress_bar=False,
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
            extra_arguments=["--IPKernelApp.log_level=40"],  # no warning about its sockets, which are local
        )
    except (PapermillExecutionError, DeadKernelError) as error:
        with replacing(kept) as temporary:
            nbformat.write(clean(nbformat.read(executed, as_version=4)), temporary)
        if isinstance(error, PapermillExecutionError):
            reason = f"cell {error.exec_count}: {error.ename}: {error.evalue}"
        else:
            reason = "its kernel died (out of memory?)"
        raise NotebookFailedError(
            f"{name}, {reason}\nThe notebook as far as it came: {kept.relative_to(root)}"
        ) from error
    write_atomically(executed, nbformat.writes(clean(nbformat.read(executed, as_version=4))) + "\n")
    publish(stage, root, name, profile)
    shutil.rmtree(stage)
    kept.unlink(missing_ok=True)
    return root / executed.relative_to(stage)


def publish(stage: Path, root: Path, name: str, profile: str) -> None:
    """Move the results of notebook `name` to where they belong, and remove what this run no longer made."""
    made = [path for part in ("figures", "runs") for path in (stage / part).rglob("*") if path.is_file()]
    new = {path.relative_to(stage) for path in made}
    old = [
        *(root / "figures" / profile).glob(f"{name}*"),
        *(root / "runs" / profile / name).rglob("*"),
    ]
    for relative in sorted(new):
        (root / relative).parent.mkdir(parents=True, exist_ok=True)
        (stage / relative).replace(root / relative)
    for path in old:
        if path.is_file() and path.relative_to(root) not in new and not path.name.endswith(".failed.ipynb"):
            path.unlink()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run one notebook of the pipeline, headless.")
    parser.add_argument("notebook", type=Path, help="a source-only notebook, such as .nbsrc/04_mnist.ipynb")
    parser.add_argument("--profile", default="quick", help="names the file of parameters in params/")
    options = parser.parse_args(arguments)

    def work() -> None:
        executed = run_notebook(options.notebook, options.profile)
        print(f"\nwrote {executed.relative_to(project_root())}")

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
