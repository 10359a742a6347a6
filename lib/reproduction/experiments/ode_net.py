"""The trained ODE-Net of notebook 04, as notebook 05 looks at it."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neural_ode.errors import InvalidArgumentError
from neural_ode.nn import OdeBlock
from reproduction.models.mnist import MnistNet
from reproduction.training.mnist import load_classifier

__all__ = ["SPAN", "as_floats", "block_of", "end_of", "load_ode_net"]

SPAN = (0.0, 1.0)
"""Times of the ODE block."""


def load_ode_net(file: Path, device: str | torch.device) -> MnistNet:
    """A network with an ODE block, on a device and in eval mode.

    Args:
        file: weights of an ODE-Net, or of an RK-Net, which differs in how it is differentiated only.
        device: where the network goes.

    Raises:
        WeightsError: the file is missing, damaged, or of another network.
    """
    model = load_classifier("ODE-Net", file).to(device)
    assert isinstance(model, MnistNet)
    return model


def block_of(model: MnistNet) -> OdeBlock:
    """The ODE block of a network.

    Raises:
        InvalidArgumentError: it has none.
    """
    if not isinstance(model.body, OdeBlock):
        raise InvalidArgumentError(f"the network needs an ODE block, got {type(model.body).__name__}")
    return model.body


def as_floats(images: Tensor, like: nn.Module) -> Tensor:
    """Images of uint8 as numbers in [0, 1], of the dtype and on the device of the parameters of `like`."""
    return images.to(next(like.parameters())) / 255


def end_of(y: Any) -> Tensor:
    """The state at the last time of a solve."""
    assert isinstance(y, Tensor)
    return y[-1]
