"""Trained weights and the history of their training, as files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import nn

from neural_ode.errors import NeuralODEError
from neural_ode.files import write_atomically
from neural_ode.models.mnist import mnist_net
from neural_ode.training.loop import Row, history_csv

__all__ = ["WeightsError", "load_classifier", "load_weights", "save_run"]


class WeightsError(NeuralODEError):
    """A file of weights is damaged, or of another network."""


def save_run(
    model: nn.Module, history: list[Row], folder: Path, name: str, metadata: Mapping[str, str] | None = None
) -> None:
    """Write the weights with `metadata`, `<name>.safetensors`, and the history, `<name>.csv`."""
    weights = {key: value.contiguous().cpu() for key, value in model.state_dict().items()}
    content = safetensors.torch.save(weights, None if metadata is None else dict(metadata))
    write_atomically(folder / f"{name}.safetensors", content)
    write_atomically(folder / f"{name}.csv", history_csv(history))


def load_weights(model: nn.Module, file: Path) -> None:
    """Load what `save_run` wrote, and put the model in eval mode.

    Raises:
        WeightsError: the file is damaged, or does not fit.
    """
    try:
        model.load_state_dict(safetensors.torch.load(file.read_bytes()))
    except (SafetensorError, RuntimeError) as error:
        raise WeightsError(
            f"{file} does not hold the weights of this {type(model).__name__}: {error}; train it again"
        ) from error
    model.eval()


def load_classifier(name: str, file: Path, **how: Any) -> nn.Module:
    """A network of Table 1 with the weights in `file`, in eval mode.

    Args:
        name: a name in `MNIST_MODELS`.
        file: as `TrainedClassifier.save` writes it.
        **how: keyword arguments of `neural_ode.solve`, for a network with an ODE block.

    Raises:
        UnknownNameError: no model has that name.
        WeightsError: see `load_weights`.
    """
    model = mnist_net(name, **how)
    load_weights(model, file)
    return model
