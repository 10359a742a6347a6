"""Models whose dynamics are kept simple by running costs (Finlay et al. 2020; Kelly et al. 2020)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from neural_ode.nn import (
    ContinuousFlow,
    OdeBlock,
    RegularizedBlock,
    RegularizedFlow,
    RunningCost,
    WithRunningCosts,
    jacobian_norm,
    kinetic_energy,
    total_derivative,
)
from neural_ode.solution import Statistics
from reproduction.models.flows import HyperNetwork, PlanarDynamics
from reproduction.models.latent_ode import LatentDynamics, LatentODE
from reproduction.models.mnist import ConvDynamics, Head, Stem
from reproduction.models.recognition import BackwardRNN

__all__ = ["COSTS", "Digits", "Latent", "flow", "latent", "penalty"]

COSTS: dict[str, RunningCost] = {
    "kinetic energy": kinetic_energy,
    "Jacobian": jacobian_norm,
    "R2": total_derivative(2),
    "R3": total_derivative(3),
}
"""The costs that a weight can be given to, by name."""


def penalty(costs: Mapping[str, Tensor], weights: Mapping[str, float], dimension: int) -> Tensor | float:
    """What is added to a loss: the mean costs of a row, for each dimension of the state, times their weights."""
    return sum(weight * costs[name].mean() / dimension for name, weight in weights.items())


class Digits(nn.Module):
    """A small ODE-Net: the stem, dynamics and head of Table 1's, with fewer channels.

    Args:
        channels: of the state, which has 6 × 6 pixels.
        weights: of the costs; none for a network without.
        **how: keyword arguments of `neural_ode.solve`.
    """

    def __init__(self, channels: int, weights: Mapping[str, float], **how: Any):
        super().__init__()
        f, chosen = ConvDynamics(channels), _chosen(weights)
        self.stem = Stem(channels)
        self.block: OdeBlock = RegularizedBlock(f, chosen, **how) if chosen else OdeBlock(f, **how)
        self.head = Head(channels)
        self.weights, self.dimension = dict(weights), channels * 36

    @property
    def stats(self) -> Statistics:
        """What the last solve cost."""
        return self.block.stats

    def penalty(self) -> Tensor | float:
        """See `penalty`; of the last forward pass in training mode."""
        block = self.block
        return penalty(block.costs, self.weights, self.dimension) if isinstance(block, RegularizedBlock) else 0.0

    def forward(self, images: Tensor) -> Tensor:
        """Images of shape (n, 1, 28, 28) to logits of shape (n, 10)."""
        logits: Tensor = self.head(self.block(self.stem(images)))
        return logits


def flow(units: int, hidden: int, weights: Mapping[str, float], **how: Any) -> ContinuousFlow:
    """The flow of Figure 5 in the plane, with costs where there are weights.

    Args:
        units, hidden: see `HyperNetwork`.
        weights: of the costs.
        **how: keyword arguments of `neural_ode.solve`.
    """
    f, chosen = PlanarDynamics(HyperNetwork(2, units, hidden)), _chosen(weights)
    return RegularizedFlow(f, 2, chosen, **how) if chosen else ContinuousFlow(f, 2, **how)


class Latent(LatentODE):
    """A latent ODE whose paths have costs; see `LatentODE`.

    Args:
        recognition, dynamics, decoder, noise, **how: see there.
        weights: of the costs.

    Attributes:
        costs: of the last solve in training mode, from `t0` to the last of all times, by name, shape (series,).
    """

    def __init__(
        self,
        recognition: BackwardRNN,
        dynamics: nn.Module,
        decoder: nn.Module,
        noise: float,
        weights: Mapping[str, float],
        **how: Any,
    ):
        super().__init__(recognition, dynamics, decoder, noise, **how)
        self.weights = dict(weights)
        self.costs: dict[str, Tensor] = {}

    def trajectory(self, z0: Tensor, times: Tensor) -> Tensor:
        """As `LatentODE.trajectory`, in training mode with the costs."""
        chosen = _chosen(self.weights)
        if not (chosen and self.training):
            return super().trajectory(z0, times)
        dynamics = WithRunningCosts(self.dynamics, list(chosen.values()), torch.randn_like(z0))
        solution = dynamics.solve((z0,), times, **self.how)
        self.stats = solution.stats
        states, costs = solution.y
        self.costs = dict(zip(chosen, costs[-1].unbind(1), strict=True))
        found: Tensor = states
        return found


def latent(noise: float, weights: Mapping[str, float], **how: Any) -> Latent:
    """The model of section 5.1, with costs where there are weights.

    Args:
        noise: standard deviation of an observation.
        weights: of the costs.
        **how: keyword arguments of `neural_ode.solve`.
    """
    decoder = nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 2))
    return Latent(BackwardRNN(2, 25, 4), LatentDynamics(4), decoder, noise, weights, **how)


def _chosen(weights: Mapping[str, float]) -> dict[str, RunningCost]:
    return {name: COSTS[name] for name in weights}
