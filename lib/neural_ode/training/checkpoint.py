"""Checkpoints: all that training needs to go on as if it had not been interrupted."""

import ast
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
from neural_ode.imports import imported_modules

__all__ = ["fingerprint", "load_checkpoint", "save_checkpoint"]


def fingerprint(settings: Mapping[str, Any], code: Path) -> str:
    """Identifies a training run: its settings, what `code` does, and the version of PyTorch.

    A checkpoint with another fingerprint belongs to another run and is not resumed.

    Args:
        settings: everything that a caller can choose.
        code: the module that defines the run. It counts with all modules of the library that it imports; their
            comments and layout do not.
    """
    text = json.dumps(dict(settings), sort_keys=True, default=str)
    return hashlib.sha256(f"{text} {_meaning(code)} {torch.__version__}".encode()).hexdigest()


@cache
def _meaning(code: Path) -> str:
    digest = hashlib.sha256()
    for module in sorted({code, *imported_modules(code)}):
        digest.update(ast.dump(ast.parse(module.read_text(encoding="utf-8"))).encode())
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
