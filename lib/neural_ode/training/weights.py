"""Trained weights, read back."""

from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import nn

from neural_ode.errors import NeuralODEError
from neural_ode.models.mnist import mnist_net

__all__ = ["WeightsError", "load_classifier"]


class WeightsError(NeuralODEError):
    """A file of weights is damaged, or of another network."""


def load_classifier(name: str, file: Path, **how: Any) -> nn.Module:
    """A network of Table 1 with the weights in `file`, in eval mode.

    Args:
        name: a name in `MNIST_MODELS`.
        file: as `TrainedClassifier.save` writes it.
        **how: keyword arguments of `neural_ode.solve`, for a network with an ODE block.

    Raises:
        UnknownNameError: no model has that name.
        WeightsError: the file is damaged, or does not fit.
    """
    model = mnist_net(name, **how)
    try:
        model.load_state_dict(safetensors.torch.load_file(file))
    except (SafetensorError, RuntimeError) as error:
        raise WeightsError(f"{file} does not hold the weights of {name}: {error}; train it again") from error
    return model.eval()
