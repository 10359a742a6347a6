"""How good a flow is: how far from a target, how likely it makes points."""

from typing import Protocol

import torch
from torch import Tensor

from neural_ode.nn import draw_base
from reproduction.data.densities import Target

__all__ = ["Flow", "divergence", "log_likelihood"]


class Flow(Protocol):
    """A continuous or a planar flow."""

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density, in nats."""
        ...

    def push_forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Points from the base distribution, and the log-density there."""
        ...


@torch.no_grad()
def divergence(flow: Flow, target: Target, n: int, seed: int = 12345) -> float:
    """KL(q‖p) in nats, estimated with `n` points of the flow, made from the same base points for every flow."""
    generator = torch.Generator().manual_seed(seed)
    x, log_prob = flow.push_forward(draw_base(n, torch.zeros(()), 2, generator))
    return float((log_prob - target.log_prob(x)).mean())


@torch.no_grad()
def log_likelihood(flow: Flow, x: Tensor) -> float:
    """Mean log-density of points, shape (n, 2), in nats."""
    return float(flow.log_prob(x).mean())
