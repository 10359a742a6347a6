"""What `make lab` adds to JupyterLab's server: opening a notebook leaves no trace in its file, running it few.

JupyterLab writes into every notebook that it opens which Python and which kernel there are, and marks it as
changed; and what it saves differs from one run to the next. Here a notebook that was stored without all that gets
it when it is opened, and loses it again when it is saved. The settings are in the folder `jupyter`.
"""

from copy import deepcopy
from typing import Any

from neural_ode.errors import needs
from reproduction.pipeline.clean import clean

with needs("notebooks"):
    import nbformat
    from ipykernel.ipkernel import IPythonKernel
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
    from jupyter_server.services.contents.largefilemanager import AsyncLargeFileManager
    from nbformat import NotebookNode

__all__ = ["NotebookManager", "opened", "saved"]

_STORED = {"name": "python"}
"""The language in notebooks as the pipeline stores them."""


class NotebookManager(AsyncLargeFileManager):
    """Reads and writes files for JupyterLab; `--ServerApp.contents_manager_class` names it."""

    async def get(self, path: str, content: bool = True, *rest: Any, **options: Any) -> dict[str, Any]:
        """What is at a path, see `jupyter_server`."""
        server: Any = super()  # without types
        model: dict[str, Any] = await server.get(path, content, *rest, **options)
        if content and model["type"] == "notebook":
            model["content"] = opened(model["content"])
        return model

    async def save(self, model: dict[str, Any], path: str = "") -> dict[str, Any]:
        """Write a file, see `jupyter_server`."""
        server: Any = super()
        if model.get("type") == "notebook" and model.get("content") and await server.file_exists(path):
            before = (await server.get(path, type="notebook"))["content"]
            model = {**model, "content": saved(nbformat.from_dict(model["content"]), before)}
        kept: dict[str, Any] = await server.save(model, path)
        return kept


def opened(notebook: NotebookNode) -> NotebookNode:
    """A notebook as JupyterLab is to see it: with what it would write itself, if it was stored without."""
    if notebook.metadata.get("language_info") == _STORED:
        name = notebook.metadata.get("kernelspec", {}).get("name", "python3")
        try:
            found = KernelSpecManager().get_kernel_spec(name)
        except NoSuchKernel:  # JupyterLab asks which to take
            return notebook
        spec = {"name": name, "display_name": found.display_name, "language": found.language}
        notebook.metadata.kernelspec = nbformat.from_dict(spec)
        notebook.metadata.language_info = nbformat.from_dict(dict(IPythonKernel.language_info))
    return notebook


def saved(notebook: NotebookNode, before: NotebookNode) -> NotebookNode:
    """A notebook as it is to be stored.

    Args:
        notebook: what JupyterLab has; what a reader wrote into it stays.
        before: what is stored. Notebooks that have not been cleaned are stored as they are.
    """
    if before.metadata.get("language_info") != _STORED:
        return notebook
    try:
        tidy = clean(deepcopy(notebook))
    except Exception:  # whatever a reader has made of it is kept
        return notebook
    for cell, own in zip(tidy.cells, notebook.cells, strict=True):
        cell.metadata = NotebookNode({name: value for name, value in own.metadata.items() if name != "execution"})
    written = ("language_info", "kernelspec", "widgets")
    tidy.metadata.update({name: value for name, value in notebook.metadata.items() if name not in written})
    return tidy
