"""Take out of an executed notebook what differs from one run to the next."""

import nbformat
from nbformat import NotebookNode

__all__ = ["clean"]


def clean(notebook: NotebookNode) -> NotebookNode:
    """Drop timing metadata, progress bars and widget state; number the cell that papermill injects.

    Changes and returns `notebook`.
    """
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = NotebookNode(kernelspec=kernel, language_info={"name": "python"})
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        cell.metadata = NotebookNode(tags=tags) if tags else NotebookNode()
        if "injected-parameters" in tags:
            cell.id = "injected-parameters"
        if cell.cell_type == "code":
            cell.outputs = _merge_streams([output for output in cell.outputs if not _is_progress(output)])
    nbformat.validate(notebook)
    return notebook


def _is_progress(output: NotebookNode) -> bool:
    """Progress bars go to stderr and redraw themselves with carriage returns."""
    return output.output_type == "stream" and output.name == "stderr" and "\r" in output.text


def _merge_streams(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """How a stream is cut into pieces is chance: join neighbours."""
    merged: list[NotebookNode] = []
    for output in outputs:
        if output.output_type == "stream" and merged and merged[-1].get("name") == output.name:
            merged[-1].text += output.text
        else:
            merged.append(output)
    return merged
