"""Checkpoints: all that training needs to go on as if it had not been interrupted."""

import hashlib
import json
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from neural_ode.errors import NeuralODEWarning
from neural_ode.files import replacing

__all__ = ["fingerprint", "load_checkpoint", "save_checkpoint"]


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Identifies a training run: its settings, the source of this library and the version of PyTorch.

    A checkpoint with another fingerprint belongs to another run and is not resumed.
    """
    text = json.dumps(dict(settings), sort_keys=True, default=str)
    return hashlib.sha256(f"{text} {_library()} {torch.__version__}".encode()).hexdigest()


@cache
def _library() -> str:
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def save_checkpoint(path: Path, run: str, content: Mapping[str, Any]) -> None:
    """Write the checkpoint of the run with fingerprint `run`, replacing the previous one in one step."""
    random = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        random["cuda"] = torch.cuda.get_rng_state()
    with replacing(path) as temporary:
        torch.save({"run": run, "random": random, **content}, temporary)


def load_checkpoint(path: Path, run: str) -> dict[str, Any] | None:
    """The checkpoint of the run with fingerprint `run`, its random state restored; `None` if there is none.

    A damaged file is reported by a warning, and counts as none.
    """
    if not path.exists():
        return None
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if content["run"] != run:
            return None
    except (OSError, EOFError, RuntimeError, TypeError, KeyError, UnpicklingError) as error:
        what = type(error).__name__
        warnings.warn(f"{path} is damaged ({what}): training starts anew", NeuralODEWarning, stacklevel=2)
        return None
    torch.set_rng_state(content["random"]["cpu"])
    if "cuda" in content["random"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(content["random"]["cuda"])
    return content
