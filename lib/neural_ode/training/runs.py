"""What a training run leaves for later: weights and history."""

from pathlib import Path

import safetensors.torch
from torch import nn

from neural_ode.errors import NeuralODEError
from neural_ode.files import write_atomically
from neural_ode.training.loop import Row, history_csv

__all__ = ["MissingWeightsError", "load_weights", "save_run"]


class MissingWeightsError(NeuralODEError, FileNotFoundError):
    """Weights that another notebook makes are not there yet."""


def save_run(model: nn.Module, history: list[Row], folder: Path, name: str) -> None:
    """Write the weights, `<name>.safetensors`, and the history, `<name>.csv`."""
    weights = {key: value.contiguous().cpu() for key, value in model.state_dict().items()}
    write_atomically(folder / f"{name}.safetensors", safetensors.torch.save(weights))
    write_atomically(folder / f"{name}.csv", history_csv(history))


def load_weights(model: nn.Module, folders: list[Path], name: str, remedy: str) -> None:
    """Load what `save_run` wrote, from the first folder that has it.

    Raises:
        MissingWeightsError: none has; the message ends with `remedy`.
    """
    for folder in folders:
        file = folder / f"{name}.safetensors"
        if file.exists():
            model.load_state_dict(safetensors.torch.load(file.read_bytes()))
            return
    raise MissingWeightsError(f"no weights {name}.safetensors in {folders[-1]}: {remedy}")
