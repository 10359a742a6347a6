"""What readers are told of each notebook and figure, as data: `contents.yaml`, whose first lines explain it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from neural_ode.errors import FileError
from reproduction.files import read_yaml

__all__ = ["Contents", "Glance", "Listed", "captions", "load_contents"]

FILE = Path(__file__).parents[1] / "contents.yaml"


@dataclass(frozen=True)
class Glance:
    """A row of the README's results.

    Attributes:
        claim: its id.
        of: what the numbers are of.
        paper: what the paper says; empty where the claim has a published number.
        quantity: of the rule, the one that is shown; empty for the first.
    """

    claim: str
    of: str
    paper: str = ""
    quantity: str = ""


@dataclass(frozen=True)
class Listed:
    """What is told of a notebook.

    Attributes:
        shows: the items of the paper.
        minutes: to compute and draw the quick profile on two cores, as measured once.
        figures: captions by name of the file, in reading order.
        unstated: what the paper leaves open.
    """

    shows: str
    minutes: int
    figures: Mapping[str, str]
    unstated: str = ""


@dataclass(frozen=True)
class Contents:
    """All of it.

    Attributes:
        glance: rows, in order.
        front: short captions of figures, by `<notebook>/<name>`.
        notebooks: by name.
    """

    glance: Sequence[Glance]
    front: Mapping[str, str]
    notebooks: Mapping[str, Listed]


@cache
def load_contents(file: Path = FILE) -> Contents:
    """Read the file.

    Raises:
        FileError: it is damaged, or an entry lacks a field or has an unknown one.
    """
    remedy = "the first lines of contents.yaml explain the fields"
    content = read_yaml(file, remedy)
    try:
        glance = [Glance(**row) for row in content["glance"]]
        notebooks: dict[str, Any] = {name: Listed(**fields) for name, fields in content["notebooks"].items()}
        return Contents(glance, content["front"], notebooks)
    except (AttributeError, KeyError, TypeError) as error:
        raise FileError(f"{file} is damaged ({error}): {remedy}") from error


def captions(contents: Contents) -> dict[str, str]:
    """What each figure shows, by `<notebook>/<name>`, in reading order."""
    return {
        f"{notebook}/{name}": caption
        for notebook, listed in contents.notebooks.items()
        for name, caption in listed.figures.items()
    }
