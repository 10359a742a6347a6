"""Continuous normalizing flows (Chen et al. 2018, section 4)."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from neural_ode.solve import solve

__all__ = ["PlanarFlow", "log_density"]

Carried = tuple[Tensor, Tensor]


class PlanarFlow(nn.Module):
    """`dz/dt = Σ_n σ_n(t) u_n tanh(w_nᵀ z + b_n)`, a gated sum of planar units, and `d log p/dt = -tr ∂f/∂z`.

    The trace is known in closed form, `Σ_n σ_n(t) (1 - tanh²) u_nᵀ w_n`: its cost is linear in the width.

    Args:
        dim: of `z`.
        width: how many units.
    """

    def __init__(self, dim: int, width: int):
        super().__init__()
        self.w = nn.Parameter(torch.randn(width, dim))
        self.u = nn.Parameter(torch.randn(width, dim) / width)
        self.b = nn.Parameter(torch.randn(width))
        self.gate = nn.Parameter(torch.randn(2, width))

    def forward(self, t: Tensor, state: Carried) -> Carried:
        """`t` of shape (), the state `(z, log p)` of shapes (n, dim) and (n,)."""
        z, _ = state
        h = torch.tanh(z @ self.w.T + self.b)
        open_by = torch.sigmoid(self.gate[0] * t + self.gate[1])
        trace = (1 - h.square()) @ (open_by * (self.u * self.w).sum(1))
        return (h * open_by) @ self.u, -trace


def log_density(flow: PlanarFlow, x: Tensor, span: tuple[float, float] = (0.0, 1.0), **how: Any) -> Tensor:
    """Logarithm of the density of `x`, in nats, where the flow starts from a standard normal distribution.

    Args:
        flow: the dynamics.
        x: shape (n, dim).
        span: the flow's time.
        **how: keyword arguments of `neural_ode.solve`.

    Returns:
        Shape (n,).
    """
    z, change = solve(flow, (x, x.new_zeros(len(x))), [span[1], span[0]], **how).y
    return standard_normal(z[-1]) - change[-1]


def standard_normal(z: Tensor) -> Tensor:
    """Log-density of the standard normal distribution at `z`, shape (n, dim); shape (n,)."""
    return -0.5 * (z.square().sum(1) + z.shape[1] * math.log(2 * math.pi))
