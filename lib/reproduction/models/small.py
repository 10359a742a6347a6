"""Dynamics of a state of two numbers."""

from torch import Tensor, nn

__all__ = ["Network"]


class Network(nn.Module):
    """`dz/dt = W2 tanh(W1 z + b1) + b2`, in float64."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 2)).double()

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """The slope at `y`, shape (..., 2); the time does not matter."""
        slope: Tensor = self.layers(y)
        return slope
