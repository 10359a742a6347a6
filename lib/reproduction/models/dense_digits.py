"""A small ODE network on images that are taken as rows of numbers."""

from typing import Any

import torch
from torch import Tensor, nn

from neural_ode.nn import OdeBlock
from neural_ode.solution import Statistics

__all__ = ["DenseDigits"]

POOLED = 14 * 14
CLASSES = 10


class _Dynamics(nn.Module):
    """One hidden layer of ReLU, which sees the time as a further number."""

    def __init__(self, dimensions: int, hidden: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(dimensions + 1, hidden), nn.ReLU(), nn.Linear(hidden, dimensions))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        slope: Tensor = self.layers(torch.cat([z, t.to(z).expand(len(z), 1)], dim=1))
        return slope


class DenseDigits(nn.Module):
    """Pixels averaged two by two, a linear map, an ODE from t = 0 to 1, a linear map.

    Args:
        dimensions: of the state.
        hidden: units of the dynamics.
        **how: keyword arguments of `neural_ode.solve`.
    """

    def __init__(self, dimensions: int, hidden: int, **how: Any):
        super().__init__()
        self.stem = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(POOLED, dimensions))
        self.block = OdeBlock(_Dynamics(dimensions, hidden), **how)
        self.head = nn.Linear(dimensions, CLASSES)

    @property
    def stats(self) -> Statistics:
        """What the last solve cost."""
        return self.block.stats

    def forward(self, images: Tensor) -> Tensor:
        """Images of shape (n, 1, 28, 28) to logits of shape (n, 10)."""
        logits: Tensor = self.head(self.block(self.stem(images)))
        return logits
