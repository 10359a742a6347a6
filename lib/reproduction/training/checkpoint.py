"""Checkpoints: all that training needs to go on as if it had not been interrupted."""

import copy
import hashlib
import io
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neural_ode.errors import FileError, InvalidArgumentError, NeuralODEWarning
from reproduction.files import read_bytes, write_atomically
from reproduction.meaning import behaviour, meaning

__all__ = ["fingerprint", "load_checkpoint", "pack", "save_checkpoint", "unpack"]


def fingerprint(settings: Mapping[str, Any], code: Path) -> str:
    """Identifies a training run: its settings, what `code` does, and the version of PyTorch.

    A checkpoint with another fingerprint belongs to another run and is not resumed.

    Args:
        settings: everything that a caller can choose.
        code: the module that defines the run. It counts with what it imports, by meaning, and with the solver
            library's behaviour: see `reproduction.meaning`.
    """
    text = json.dumps(dict(settings), sort_keys=True, default=str)
    return hashlib.sha256(f"{text} {meaning(code)} {behaviour()} {torch.__version__}".encode()).hexdigest()


def pack(content: Any) -> bytes:
    """Tensors, numbers, text, bytes, and dicts, lists and tuples of them, as bytes that run no code when read.

    Raises:
        InvalidArgumentError: there is something else in `content`.
    """
    written = io.BytesIO()
    try:
        torch.save(_on_cpu(content), written)
        torch.load(io.BytesIO(written.getvalue()), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever cannot be pickled, or not be read without running code, raises anything
        raise InvalidArgumentError(
            "only tensors, numbers, text, bytes, and dicts, lists and tuples of them can be kept in a file, got "
            f"{type(content).__name__}: {str(error).partition(chr(10))[0]}"
        ) from error
    payload = written.getvalue()
    return payload + hashlib.sha256(payload).digest()


def _on_cpu(content: Any) -> Any:
    """The same with tensors that any machine can read."""
    if isinstance(content, Tensor):
        return content.cpu()
    if isinstance(content, dict):
        moved = copy.copy(content)  # with what a dict of a special kind has besides
        for key, value in content.items():
            moved[key] = _on_cpu(value)
        return moved
    if type(content) in (list, tuple):
        return type(content)(map(_on_cpu, content))
    return content


def unpack(file: Path, remedy: str) -> Any:
    """The content of a file that holds the bytes of `pack`, tensors on the CPU.

    Raises:
        FileError: it is missing or damaged; the message ends in `remedy`.
    """
    content = read_bytes(file, remedy)
    payload, digest = content[:-32], content[-32:]
    if hashlib.sha256(payload).digest() != digest:
        raise FileError(f"{file} is damaged (its checksum differs): {remedy}")
    try:
        return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as error:  # of someone else: what is no such content raises anything
        what = type(error).__name__
        raise FileError(f"{file} is damaged ({what}): {remedy}") from error


def save_checkpoint(path: Path, run: str, content: Mapping[str, Any]) -> None:
    """Write the checkpoint of the run with fingerprint `run`, replacing the previous one in one step."""
    random = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        random["cuda"] = torch.cuda.get_rng_state()
    write_atomically(path, pack({"run": run, "random": random, **content}))


def load_checkpoint(path: Path, run: str) -> dict[str, Any] | None:
    """The checkpoint of the run with fingerprint `run`, its random state restored; `None` if there is none.

    A damaged file is reported by a warning, and counts as none.
    """
    if not path.exists():
        return None
    try:
        content: dict[str, Any] = unpack(path, "training starts anew")
    except FileError as error:
        warnings.warn(str(error), NeuralODEWarning, stacklevel=2)
        return None
    if content["run"] != run:
        return None
    torch.set_rng_state(content["random"]["cpu"])
    if "cuda" in content["random"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(content["random"]["cuda"])
    return content
