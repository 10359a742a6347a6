"""Dynamics with more parameters than their states have numbers, in float64."""

from itertools import pairwise

import torch
from torch import Tensor, nn

__all__ = ["ControlledEquation", "HamiltonianNetwork", "Perceptron"]


class Perceptron(nn.Module):
    """`dz/dt` is a network of `z`, with tanh between its layers.

    Args:
        *widths: of the layers, the first and the last one that of the state.
    """

    def __init__(self, *widths: int):
        super().__init__()
        parts: list[nn.Module] = []
        for wide, next_wide in pairwise(widths):
            parts += [nn.Linear(wide, next_wide), nn.Tanh()]
        self.layers = nn.Sequential(*parts[:-1]).double()

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """The slope at `z`, shape (n, widths[0]); the time does not matter."""
        slope: Tensor = self.layers(z)
        return slope


class HamiltonianNetwork(nn.Module):
    """`dq/dt = ∂H/∂p`, `dp/dt = -∂H/∂q` with an energy that is learned, `H = v · tanh(W (q, p) + b)`.

    Greydanus et al. (2019). Its gradient is `Wᵀ (v (1 - tanh²))`.

    Args:
        pairs: of positions and momenta.
        units: of the hidden layer.
    """

    def __init__(self, pairs: int, units: int):
        super().__init__()
        self.hidden = nn.Linear(2 * pairs, units).double()
        self.v = nn.Parameter(torch.randn(units, dtype=torch.float64) / units**0.5)

    def energy(self, z: Tensor) -> Tensor:
        """`H` at `z`, shape (n, 2 pairs); shape (n,)."""
        return torch.tanh(self.hidden(z)) @ self.v

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """The slope at `z = (q, p)`, shape (n, 2 pairs); the time does not matter."""
        by_q, by_p = ((1 - torch.tanh(self.hidden(z)).square()) * self.v @ self.hidden.weight).chunk(2, dim=1)
        return torch.cat([by_p, -by_q], 1)


class ControlledEquation(nn.Module):
    """`dz/dt = F(z) dX/dt` along series `X(t) = (t, sin(ω t + φ))`: a neural controlled differential equation.

    Kidger et al. (2020); `F` has one hidden layer, and tanh at the end, too.

    Args:
        numbers: of the state.
        units: of the hidden layer.
        frequency, phase: `ω` and `φ` of each series, shape (n,).
    """

    frequency: Tensor
    phase: Tensor

    def __init__(self, numbers: int, units: int, frequency: Tensor, phase: Tensor):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(numbers, units), nn.Tanh(), nn.Linear(units, 2 * numbers), nn.Tanh()
        ).double()
        self.register_buffer("frequency", frequency, persistent=False)
        self.register_buffer("phase", phase, persistent=False)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """The slope at `z`, shape (n, numbers), a row for each series, and `t`, shape ()."""
        by_time, by_value = self.layers(z).chunk(2, dim=1)
        speed: Tensor = self.frequency * torch.cos(self.frequency * t + self.phase)
        return torch.addcmul(by_time, by_value, speed[:, None])
