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

__all__ = ["WeightsError", "load_weights", "read_tensors", "run_files", "save_run", "tensor_bytes"]

CHECKSUM = "sha256"
"""The name of the checksum in the metadata of a file of weights."""


class WeightsError(FileError):
    """A file of weights is missing, damaged, or of another network."""


def run_files(model: nn.Module, history: list[Row]) -> dict[str, bytes]:
    """What is kept of a training, by suffix: the history, `.csv`, and the weights, `.safetensors`."""
    return {".csv": history_csv(history).encode(), ".safetensors": tensor_bytes(model.state_dict())}


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors by name as a safetensors file with a checksum, for `read_tensors`."""
    weights = {key: value.contiguous().cpu() for key, value in tensors.items()}
    content: bytes = safetensors.torch.save(weights)
    # The library would put several metadata in an order that chance decides.
    described = {"__metadata__": {CHECKSUM: checksum(weights)}, **_header(content)}
    header = json.dumps(described, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[8 + int.from_bytes(content[:8], "little") :]


def save_run(model: nn.Module, history: list[Row], folder: Path, name: str) -> None:
    """Write the files of `run_files` under a name."""
    for suffix, content in run_files(model, history).items():
        write_atomically(folder / f"{name}{suffix}", content)


def checksum(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of the tensors on the CPU: of each, in the order of names, its name, type, shape and bytes."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_weights(model: nn.Module, file: Path) -> None:
    """Load weights that `run_files` has put into a file, and put the model in eval mode.

    Raises:
        WeightsError: the file is missing, damaged (a single bit is enough), or does not fit.
    """
    weights = read_tensors(file)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise WeightsError(
            f"{file} does not hold the weights of this {type(model).__name__}: {error}; {_way_out(file)}"
        ) from error
    model.eval()


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors that `tensor_bytes` has put into a file, on the CPU.

    Raises:
        WeightsError: the file is missing or damaged; a single bit is enough.
    """
    try:
        content = read_bytes(file, _way_out(file))
    except FileError as error:
        raise WeightsError(str(error)) from error
    try:
        weights: dict[str, Tensor] = safetensors.torch.load(content)
        metadata: dict[str, str] = _header(content).get("__metadata__") or {}
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise WeightsError(f"{file} is damaged ({error}): {_way_out(file)}") from error
    if metadata.get(CHECKSUM) != checksum(weights):
        problem = "is damaged (its checksum differs)" if CHECKSUM in metadata else "has no checksum"
        raise WeightsError(f"{file} {problem}: {_way_out(file)}")
    return weights


def _header(content: bytes) -> dict[str, Any]:
    """The JSON that stands, behind its length in eight bytes, before the tensors; the library does not show it."""
    header: dict[str, Any] = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return header


def _way_out(file: Path) -> str:
    return f"restore it with `git checkout -- {file}` if it is in the repository, else delete it and train again"
