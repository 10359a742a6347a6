"""The recipes of `docs/recipes.md` as a notebook, `docs/00_library.ipynb`, executed.

python -m reproduction.pipeline.recipes
"""

import re
import sys

from neural_ode.errors import needs
from reproduction.files import read_text, write_atomically
from reproduction.pipeline.clean import clean
from reproduction.pipeline.command import exit_status
from reproduction.workspace import project_root

with needs("notebooks"):
    import nbformat
    from nbclient import NotebookClient
    from nbformat import NotebookNode

__all__ = ["main", "recipes_notebook"]

SOURCE, NOTEBOOK = "docs/recipes.md", "docs/00_library.ipynb"

NO_GPU = "No CUDA runtime is found"
"""What compiling says on a machine with CUDA and without a GPU."""

INTRODUCTION = """\
# 00 · The library in recipes

Short programs for common tasks, each on its own: run one, change it, take it home. They are those of
[recipes.md](recipes.md)."""


def recipes_notebook(markdown: str) -> NotebookNode:
    """A notebook without outputs: the text in cells of Markdown, the programs in cells of code.

    Args:
        markdown: a title with an introduction, which are replaced, and sections.
    """
    sections = "## " + markdown.partition("\n## ")[2]
    cells = [nbformat.v4.new_markdown_cell(INTRODUCTION, id="title")]
    parts = re.split(r"^```python\n(.*?)^```\n", sections, flags=re.MULTILINE | re.DOTALL)
    for number, part in enumerate(parts):
        text = part.strip("\n")
        if text:
            make = nbformat.v4.new_code_cell if number % 2 else nbformat.v4.new_markdown_cell
            cells.append(make(text, id=f"part-{number:02d}"))
    return clean(nbformat.v4.new_notebook(cells=cells))


def main() -> int:
    """Write and execute it; the exit status."""
    return exit_status(_write)


def _write() -> None:
    root = project_root()
    notebook = recipes_notebook(read_text(root / SOURCE, "restore it with `git checkout`"))
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(root / "docs")}}).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if NO_GPU not in out.get("text", "")]
    write_atomically(root / NOTEBOOK, nbformat.writes(clean(notebook)) + "\n")
    print(f"wrote {NOTEBOOK}")


if __name__ == "__main__":
    sys.exit(main())
