"""Store the outputs of the quick profile in `notebooks/`, where people read them.

python -m neural_ode.pipeline.refresh
"""

import sys

import nbformat

from neural_ode.files import write_atomically
from neural_ode.pipeline.clean import clean
from neural_ode.workspace import project_root

__all__ = ["main", "refreshed"]


def refreshed(source: nbformat.NotebookNode, executed: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """`source` with the outputs and execution counts of the same cells in `executed`.

    Raises:
        ValueError: a code cell of `source` differs from the one that was executed.
    """
    ran = {cell.id: cell for cell in executed.cells}
    for cell in source.cells:
        if cell.cell_type != "code":
            continue
        if cell.id not in ran or ran[cell.id].source != cell.source:
            raise ValueError(f"cell {cell.id} has changed since the notebook was run: run `dvc repro` first")
        cell.outputs, cell.execution_count = ran[cell.id].outputs, ran[cell.id].execution_count
    return clean(source)


def main() -> int:
    root = project_root()
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        executed = root / "figures" / "quick" / path.name
        notebook = refreshed(nbformat.read(path, as_version=4), nbformat.read(executed, as_version=4))
        write_atomically(path, nbformat.writes(notebook) + "\n")
        print(f"stored the outputs of {executed.relative_to(root)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
