"""ODE networks on the input itself, and on the input with further dimensions (Dupont et al. 2019)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from neural_ode import solve
from neural_ode.nn import OdeBlock
from neural_ode.solution import Statistics

__all__ = ["Augmented", "PixelDynamics", "PointDynamics", "on_pixels", "on_points"]

CLASSES = 10
PIXELS = 28 * 28


class PointDynamics(nn.Module):
    """Three linear maps with ReLU between them, the same at all times.

    Args:
        dimensions: of the state.
        hidden: units.
    """

    def __init__(self, dimensions: int, hidden: int):
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Linear(dimensions, hidden), nn.ReLU()),
            *(nn.Linear(hidden, hidden), nn.ReLU()),
            nn.Linear(hidden, dimensions),
        )

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """The slope at `z`, shape (n, dimensions)."""
        slope: Tensor = self.layers(z)
        return slope


class PixelDynamics(nn.Module):
    """Convolutions of 1, 3 and 1 pixels with ReLU between them, the same at all times.

    Args:
        channels: of the state.
        filters: in between.
    """

    def __init__(self, channels: int, filters: int):
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(channels, filters, 1), nn.ReLU()),
            *(nn.Conv2d(filters, filters, 3, padding=1), nn.ReLU()),
            nn.Conv2d(filters, channels, 1),
        )

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """The slope at `z`, shape (n, channels, height, width)."""
        slope: Tensor = self.layers(z)
        return slope


class Augmented(nn.Module):
    """`z(0) = (x, 0)`, an ODE from t = 0 to 1, and a linear map of `z(1)`.

    Args:
        f: the dynamics.
        extra: how many zeros are put beside the input, in its second dimension: coordinates, or channels.
        head: of the state at the end.
        **how: keyword arguments of `neural_ode.solve`.
    """

    def __init__(self, f: nn.Module, extra: int, head: nn.Module, **how: Any):
        super().__init__()
        self.block = OdeBlock(f, **how)
        self.extra = extra
        self.head = head

    @property
    def stats(self) -> Statistics:
        """What the last solve cost."""
        return self.block.stats

    def start(self, x: Tensor) -> Tensor:
        """The input with its zeros, shape (n, d + extra, ...) for one of shape (n, d, ...)."""
        return torch.cat([x, x.new_zeros(len(x), self.extra, *x.shape[2:])], 1)

    def states(self, x: Tensor, times: Sequence[float]) -> Tensor:
        """The states of the inputs at times from 0 on, shape (len(times), n, d + extra, ...)."""
        y = solve(self.block.f, self.start(x), times, **self.block.how).y
        assert isinstance(y, Tensor)
        return y

    def forward(self, x: Tensor) -> Tensor:
        """What the head makes of the state at the end."""
        found: Tensor = self.head(self.block(self.start(x)))
        return found


def on_points(extra: int, hidden: int, **how: Any) -> Augmented:
    """For points of the plane: shape (n, 2) to shape (n, 1)."""
    return Augmented(PointDynamics(2 + extra, hidden), extra, nn.Linear(2 + extra, 1), **how)


def on_pixels(extra: int, filters: int, **how: Any) -> Augmented:
    """For images of 28 × 28 pixels: shape (n, 1, 28, 28) to logits of shape (n, 10)."""
    head = nn.Sequential(nn.Flatten(), nn.Linear((1 + extra) * PIXELS, CLASSES))
    return Augmented(PixelDynamics(1 + extra, filters), extra, head, **how)
