"""Take out of an executed notebook what differs from one run to the next."""

import re
from base64 import b64decode, b64encode

from neural_ode.errors import needs
from reproduction.figures.png import with_palette

with needs("notebooks"):
    import nbformat
    from nbformat import NotebookNode

__all__ = ["clean"]

WIDGET = "application/vnd.jupyter.widget-view+json"
"""Names a widget of a kernel that is gone: a front end would look for it in vain, and not show the words beside."""

PICTURE = "image/png"

PROGRESS_BAR = re.compile(r"\r[^\r\n|]*\|[^\r\n|]*\|[^\r\n\]]*(\]|$)")
"""`label: 10%|###    | 1/10 [00:01<00:09, details]`, drawn over the one before."""


def clean(notebook: NotebookNode) -> NotebookNode:
    """Drop timing metadata, progress bars and widgets; number the cell that papermill injects; make pictures small.

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
            cell.outputs = [output for output in _merge_streams(cell.outputs) if _without_progress(output)]
            for output in cell.outputs:
                data = output.get("data", {})
                data.pop(WIDGET, None)
                if PICTURE in data:
                    data[PICTURE] = b64encode(with_palette(b64decode(data[PICTURE]))).decode()
    nbformat.validate(notebook)
    return notebook


def _without_progress(output: NotebookNode) -> bool:
    """Remove progress bars, which redraw themselves with carriage returns; False if nothing is left."""
    if output.output_type == "stream" and output.name == "stderr":
        output.text = re.sub(r"\n\s*\n", "\n", PROGRESS_BAR.sub("", output.text).replace("\r", "")).lstrip("\n")
        return bool(output.text.strip())
    return True


def _merge_streams(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """How a stream is cut into pieces is chance: join what goes to the same one."""
    merged: list[NotebookNode] = []
    streams: dict[str, NotebookNode] = {}
    for output in outputs:
        if output.output_type == "stream" and output.name in streams:
            streams[output.name].text += output.text
        else:
            merged.append(output)
            if output.output_type == "stream":
                streams[output.name] = output
    return merged
