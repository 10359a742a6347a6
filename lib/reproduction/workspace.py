"""Where a notebook reads and writes.

Results belong to a profile (`quick`, `paper`). What was computed lies under `results/<profile>/<notebook>/`, what
was drawn from it under `figures/<profile>/<notebook>/`. The pipeline says by the environment variable
`NEURAL_ODE_OUTPUT` in which folder both are written; a relative one starts from the folder where the process began.
Without it, or if it is empty, it is `scratch/`, so that a notebook run by hand never changes what the pipeline
made: it draws what the pipeline has computed, if that fits its parameters, and computes anew what does not.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from neural_ode.errors import InvalidArgumentError, NeuralODEError
from reproduction.files import read_json, write_atomically
from reproduction.results import MissingResultError, Store

__all__ = [
    "DRAW_VARIABLE",
    "OUTPUT_VARIABLE",
    "Workspace",
    "checked_profile",
    "choose_device",
    "project_root",
]

OUTPUT_VARIABLE = "NEURAL_ODE_OUTPUT"

DRAW_VARIABLE = "NEURAL_ODE_DRAW"
"""If it is set and not empty, a notebook may only draw what was computed before."""

_STARTED_IN = Path.cwd()
"""What a relative `NEURAL_ODE_OUTPUT` starts from: where the process began, not where a later `chdir` led."""


def checked_profile(profile: str) -> str:
    """The profile, which names a file in `params/` and folders in `figures/` and `results/`.

    Raises:
        InvalidArgumentError: it could lead out of them, or is empty.
    """
    if not re.fullmatch(r"\w[\w.-]*", profile):
        raise InvalidArgumentError(
            f"profile must be a name of letters, digits, '_', '-' and '.', such as 'quick', got {profile!r}"
        )
    return profile


def project_root(start: Path | None = None) -> Path:
    """The folder of the project that holds `start` (the current folder if left out).

    Raises:
        NeuralODEError: `start` is in no clone of the project.
    """
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / "dvc.yaml").exists() and (folder / "params.yaml").exists():
            return folder
    raise NeuralODEError(f"{start} is not inside a clone of the project: open the notebook from there")


def choose_device(device: str) -> torch.device:
    """`auto` is CUDA where there is a usable GPU, else the CPU; any other name is taken as it is.

    Raises:
        InvalidArgumentError: the name is unknown, or that device is not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise InvalidArgumentError(f"device {device!r} cannot be used here: {error}; try 'auto'") from error
    return chosen


@dataclass(frozen=True)
class Workspace:
    """The files of one notebook in one profile.

    Attributes:
        notebook: its name without suffix, such as `04_mnist`.
        profile: `quick` or `paper`.
        root: the project.
        output: where results are written.

    Raises:
        InvalidArgumentError: the profile is no name; see `checked_profile`.
    """

    notebook: str
    profile: str
    root: Path
    output: Path

    def __post_init__(self) -> None:
        checked_profile(self.profile)

    @classmethod
    def open(cls, notebook: str, profile: str) -> "Workspace":
        """The workspace of a notebook that runs anywhere inside the project."""
        root = project_root()
        chosen = os.environ.get(OUTPUT_VARIABLE)  # an empty one counts as none
        return cls(notebook, profile, root, _STARTED_IN / chosen if chosen else root / "scratch")

    @cached_property
    def store(self) -> Store:
        """The results of this notebook: those of the pipeline, and those computed by hand."""
        folders = list(dict.fromkeys(base / self._results(self.notebook) for base in (self.root, self.output)))
        return Store(
            folders,
            None if os.environ.get(DRAW_VARIABLE) else folders[-1],
            self.output / "checkpoints" / self.profile / self.notebook,
            self._way_to(self.notebook),
        )

    def result(self, notebook: str, file: str) -> Path:
        """A file that another notebook has computed in this profile: by hand, or else in the pipeline.

        Raises:
            MissingResultError: it has not.
        """
        return self._find(notebook, self._results(notebook) / file)

    def figure(self, name: str) -> Path:
        """Path of a figure without its suffix: `figures/<profile>/<notebook>/<name>`."""
        return self.output / self._figures(self.notebook) / name

    def write_metrics(self, metrics: Mapping[str, float]) -> None:
        """Write the few numbers that `dvc metrics` shows: `metrics.json` beside the figures."""
        _write_json(self.figure("metrics.json"), metrics)

    def write_claims(self, claims: Mapping[str, Any]) -> None:
        """Write the measurements that decide claims, as `as_json` gives them: `claims.json` beside the figures."""
        _write_json(self.figure("claims.json"), claims)

    def read_claims(self, notebook: str) -> dict[str, Any]:
        """What `notebook` measured in this profile, by claim.

        Raises:
            MissingResultError: it has not run yet.
            FileError: the file is damaged.
        """
        file = self._find(notebook, self._figures(notebook) / "claims.json")
        return read_json(file, f"delete it and {self._way_to(notebook)}")

    def _results(self, notebook: str) -> Path:
        return Path("results", self.profile, notebook)

    def _figures(self, notebook: str) -> Path:
        return Path("figures", self.profile, notebook)

    def _find(self, notebook: str, relative: Path) -> Path:
        for base in (self.output, self.root):
            if (base / relative).exists():
                return base / relative
        raise MissingResultError(
            f"no {relative.name} of {notebook} in profile {self.profile!r}: {self._way_to(notebook)}"
        )

    def _way_to(self, notebook: str) -> str:
        """How to make the results of a notebook, in words."""
        return f"make it with `dvc repro notebook@{self.profile}-{notebook}` or run notebooks/{notebook}.ipynb"


def _write_json(target: Path, content: Mapping[str, Any]) -> None:
    """Raises ValueError for NaN and infinity, which JSON does not have."""
    write_atomically(target, json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
