"""Store the outputs of the quick profile in `notebooks/`, where people read them.

python -m reproduction.pipeline.refresh
"""

import sys

from neural_ode.errors import InvalidArgumentError, needs
from reproduction.files import write_atomically
from reproduction.pipeline.clean import clean
from reproduction.pipeline.command import exit_status
from reproduction.pipeline.notebooks import read_notebook
from reproduction.workspace import project_root

with needs("notebooks"):
    import nbformat

__all__ = ["main", "refreshed"]


def refreshed(source: nbformat.NotebookNode, executed: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """`source` with the outputs and execution counts of the same cells in `executed`.

    Raises:
        InvalidArgumentError: a code cell of `source` differs from the one that was executed.
    """
    ran = {cell.id: cell for cell in executed.cells}
    for cell in source.cells:
        if cell.cell_type != "code":
            continue
        if cell.id not in ran or ran[cell.id].source != cell.source:
            raise InvalidArgumentError(
                f"cell {cell.id} has changed since the notebook was run: run `dvc repro` first"
            )
        cell.outputs, cell.execution_count = ran[cell.id].outputs, ran[cell.id].execution_count
    return clean(source)


def main() -> int:
    """Store the outputs; the exit status."""
    return exit_status(_refresh)


def _refresh() -> None:
    root = project_root()
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        executed = root / "figures" / "quick" / path.stem / path.name
        ran = read_notebook(executed, "make it with `make figures`")
        notebook = refreshed(read_notebook(path, f"restore it with `git checkout -- {path}`"), ran)
        write_atomically(path, nbformat.writes(notebook) + "\n")
        print(f"stored the outputs of {executed.relative_to(root)}")


if __name__ == "__main__":
    sys.exit(main())
