"""Notebooks as files."""

from pathlib import Path

from neural_ode.errors import FileError, needs
from reproduction.files import read_text

with needs("notebooks"):
    import nbformat
    from nbformat import NotebookNode

__all__ = ["read_notebook"]


def read_notebook(file: Path, remedy: str) -> NotebookNode:
    """A notebook, in format 4.

    Args:
        file: which.
        remedy: what to do if it is missing or damaged; ends the message of the error.

    Raises:
        FileError: there is no such file, or it holds something else.
    """
    text = read_text(file, remedy)
    try:
        return nbformat.reads(text, as_version=4)
    except Exception as error:  # what is no notebook raises anything, down to an AttributeError
        reason = str(error).partition("\n")[0][:200]
        raise FileError(f"{file} is not a notebook ({type(error).__name__}: {reason}): {remedy}") from error
