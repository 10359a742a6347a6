"""Where a notebook reads and writes.

Results belong to a profile (`quick`, `paper`) and lie under `figures/<profile>/` and `runs/<profile>/` of an
output root. The pipeline sets the root through the environment variable `NEURAL_ODE_OUTPUT`; a relative one starts
from the folder where the process began. Without it, or if it is empty, the root is `scratch/`, so that a notebook
run by hand never changes what the pipeline made. What an earlier notebook wrote is looked for in the output root
first and in the project after that.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from neural_ode.errors import FileError, InvalidArgumentError, NeuralODEError
from reproduction.files import read_json, write_atomically

__all__ = [
    "OUTPUT_VARIABLE",
    "MissingResultError",
    "Workspace",
    "checked_profile",
    "choose_device",
    "project_root",
]

OUTPUT_VARIABLE = "NEURAL_ODE_OUTPUT"

_STARTED_IN = Path.cwd()
"""What a relative `NEURAL_ODE_OUTPUT` starts from: where the process began, not where a later `chdir` led."""


class MissingResultError(FileError, FileNotFoundError):
    """A result that an earlier notebook makes is not there yet."""


def checked_profile(profile: str) -> str:
    """The profile, which names a file in `params/` and folders in `figures/` and `runs/`.

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

    @property
    def checkpoints(self) -> Path:
        """Folder for checkpoints. The pipeline keeps it until the notebook has succeeded."""
        return self.output / "checkpoints" / self.profile / self.notebook

    @property
    def runs(self) -> Path:
        """Folder for trained weights and training histories."""
        return self.output / "runs" / self.profile / self.notebook

    def figure(self, name: str = "") -> Path:
        """Path of a figure without its suffix: `figures/<profile>/<notebook>[_<name>]`."""
        stem = f"{self.notebook}_{name}" if name else self.notebook
        return self.output / "figures" / self.profile / stem

    def write_metrics(self, metrics: Mapping[str, float]) -> None:
        """Write the few numbers that `dvc metrics` shows: `figures/<profile>/<notebook>.json`."""
        _write_json(self.figure().with_suffix(".json"), metrics)

    def write_claims(self, claims: Mapping[str, Any]) -> None:
        """Write the measurements that decide claims: `figures/<profile>/<notebook>.claims.json`."""
        _write_json(self.figure().with_suffix(".claims.json"), claims)

    def read_claims(self, notebook: str) -> dict[str, Any]:
        """What `notebook` measured in this profile, by claim.

        Raises:
            MissingResultError: it has not run yet.
            FileError: the file is damaged.
        """
        file = self._find(notebook, Path("figures", self.profile, f"{notebook}.claims.json"))
        return read_json(file, f"delete it and {self._way_to(notebook)}")

    def trained(self, notebook: str, file: str) -> Path:
        """A file that `notebook` wrote to its `runs` in this profile.

        Raises:
            MissingResultError: it has not run yet.
        """
        return self._find(notebook, Path("runs", self.profile, notebook, file))

    def _find(self, notebook: str, relative: Path) -> Path:
        for base in (self.output, self.root):
            if (base / relative).exists():
                return base / relative
        raise MissingResultError(
            f"no {relative.name} of {notebook} in profile {self.profile!r}: {self._way_to(notebook)}"
        )

    def _way_to(self, notebook: str) -> str:
        """How to make the results of a notebook, in words."""
        stage = notebook.split("_", 1)[-1]
        return f"make it with `dvc repro {stage}@{self.profile}` or run notebooks/{notebook}.ipynb"


def _write_json(target: Path, content: Mapping[str, Any]) -> None:
    """Raises ValueError for NaN and infinity, which JSON does not have."""
    write_atomically(target, json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
