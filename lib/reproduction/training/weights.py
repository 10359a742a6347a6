"""Trained weights and the history of their training, as files."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neural_ode.errors import FileError, needs
from reproduction.files import read_bytes, write_atomically
from reproduction.training.loop import Row, history_csv

with needs("notebooks"):
    import safetensors.torch

__all__ = ["WeightsError", "load_weights", "run_of", "save_run"]

CHECKSUM = "sha256"
"""The name of the checksum in the metadata of a file of weights."""


class WeightsError(FileError):
    """A file of weights is missing, damaged, or of another network."""


def save_run(
    model: nn.Module, history: list[Row], folder: Path, name: str, metadata: Mapping[str, str] | None = None
) -> None:
    """Write the weights with `metadata` and a checksum, `<name>.safetensors`, and the history, `<name>.csv`."""
    weights = {key: value.contiguous().cpu() for key, value in model.state_dict().items()}
    content = safetensors.torch.save(weights)
    # The library would put several metadata in an order that chance decides.
    described = {"__metadata__": {**(metadata or {}), CHECKSUM: checksum(weights)}, **_header(content)}
    header = json.dumps(described, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    tensors = content[8 + int.from_bytes(content[:8], "little") :]
    # The weights come last: they say what run they are of, so the history must be there already.
    write_atomically(folder / f"{name}.csv", history_csv(history))
    write_atomically(folder / f"{name}.safetensors", len(header).to_bytes(8, "little") + header + tensors)


def checksum(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of the tensors on the CPU: of each, in the order of names, its name, type, shape and bytes."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def run_of(file: Path) -> str | None:
    """What identifies the run that a file of weights is of (`Fit.run`); `None` if nothing in it does.

    Raises:
        WeightsError: the file is missing or damaged.
    """
    return _read(file)[1].get("run")


def load_weights(model: nn.Module, file: Path) -> None:
    """Load what `save_run` wrote, and put the model in eval mode.

    Raises:
        WeightsError: the file is missing, damaged (a single bit is enough), or does not fit.
    """
    weights, _ = _read(file)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise WeightsError(
            f"{file} does not hold the weights of this {type(model).__name__}: {error}; {_way_out(file)}"
        ) from error
    model.eval()


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors, which have the checksum that the file says, and the metadata."""
    try:
        content = read_bytes(file, _way_out(file))
    except FileError as error:
        raise WeightsError(str(error)) from error
    try:
        weights = safetensors.torch.load(content)
        metadata: dict[str, str] = _header(content).get("__metadata__") or {}
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise WeightsError(f"{file} is damaged ({error}): {_way_out(file)}") from error
    if metadata.get(CHECKSUM) != checksum(weights):
        problem = "is damaged (its checksum differs)" if CHECKSUM in metadata else "has no checksum"
        raise WeightsError(f"{file} {problem}: {_way_out(file)}")
    return weights, metadata


def _header(content: bytes) -> dict[str, Any]:
    """The JSON that stands, behind its length in eight bytes, before the tensors; the library does not show it."""
    header: dict[str, Any] = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return header


def _way_out(file: Path) -> str:
    return f"restore it with `git checkout -- {file}` if it is in the repository, else delete it and train again"
