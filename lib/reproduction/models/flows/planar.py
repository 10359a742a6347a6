"""Planar dynamics: the continuous limit of planar flows."""

from typing import Protocol

import torch
from torch import Tensor, nn

from neural_ode.nn import positive

__all__ = ["GatedUnits", "HyperNetwork", "PlanarDynamics", "Weights"]


class Weights(Protocol):
    """What gives the weights of planar units as functions of time."""

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`w`, `σ(t) u` and `b`, shapes (units, dim), (units, dim) and (units,), at `t` of shape ()."""
        ...


class HyperNetwork(nn.Module):
    """A network of the time that makes the weights of planar units, and a gate for each (section 4).

    Args:
        dim: of the points.
        units: how many.
        hidden: width of its two hidden layers.
    """

    def __init__(self, dim: int, units: int, hidden: int = 32):
        super().__init__()
        self.dim, self.units = positive("dim", dim), positive("units", units)
        self.layers = nn.Sequential(
            nn.Linear(1, positive("hidden", hidden)),
            nn.Tanh(),
            nn.Linear(hidden, hidden),
            nn.Tanh(),
            nn.Linear(hidden, (2 * dim + 2) * units),
        )

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As in `Weights`."""
        made = self.layers(t.reshape(1)).reshape(2 * self.dim + 2, self.units)
        w, u, b, gate = made.split([self.dim, self.dim, 1, 1])
        return w.T, (u * torch.sigmoid(gate)).T, b[0]


class GatedUnits(nn.Module):
    """Weights that do not change, behind gates `σ(a t + c)` that do.

    Args:
        dim: of the points.
        units: how many.
    """

    def __init__(self, dim: int, units: int):
        super().__init__()
        self.w = nn.Parameter(torch.randn(positive("units", units), positive("dim", dim)))
        self.u = nn.Parameter(torch.randn(units, dim) / units)
        self.b = nn.Parameter(torch.randn(units))
        self.gate = nn.Parameter(torch.randn(2, units))

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As in `Weights`."""
        gate = torch.sigmoid(self.gate[0] * t + self.gate[1])
        return self.w, gate[:, None] * self.u, self.b


class PlanarDynamics(nn.Module):
    """`dz/dt = Σ_n σ_n(t) u_n tanh(w_nᵀ z + b_n)`, a gated sum of planar units; section 4 of the paper.

    The trace is known, `Σ_n σ_n(t) (1 - tanh²) u_nᵀ w_n`: its cost is linear in the number of units.

    Args:
        weights: gives the units as functions of time: `HyperNetwork` or `GatedUnits`.
    """

    def __init__(self, weights: nn.Module):
        super().__init__()
        self.weights = weights

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """The slope at `z`, shape (n, dim), and `t`, shape ()."""
        w, u, b = self.weights(t)
        slope: Tensor = torch.tanh(z @ w.T + b) @ u
        return slope

    def with_trace(self, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """The slope and the trace of its Jacobian, shapes (n, dim) and (n,)."""
        w, u, b = self.weights(t)
        h = torch.tanh(z @ w.T + b)
        return h @ u, (1 - h.square()) @ (u * w).sum(1)
