"""A residual network and an ODE network of one number (Figure 1 of Chen et al. 2018)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from neural_ode import solve

__all__ = ["DEPTH", "DEPTH_NETWORKS", "Flow", "Layers"]

DEPTH = 5
"""Layers of the residual network, and the time span of the ODE, as in the figure."""

WIDTH = 32


def _function(arguments: int) -> nn.Module:
    return nn.Sequential(nn.Linear(arguments, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1)).double()


class Layers(nn.Module):
    """A residual network of one number: `h_{t+1} = h_t + f(h_t, θ_t)`, equation 1 of the paper."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.ModuleList(_function(1) for _ in range(DEPTH))

    def states(self, h: Tensor) -> Tensor:
        """The input, shape (n, 1), and the state after every layer: shape (layers + 1, n, 1)."""
        found = [h]
        for layer in self.f:
            found.append(found[-1] + layer(found[-1]))
        return torch.stack(found)

    def forward(self, h: Tensor) -> Tensor:
        """Shape (n, 1) in and out."""
        return self.states(h)[-1]

    def field(self, t: Tensor, h: Tensor) -> Tensor:
        """What the layer that starts at or before `t`, shape (), adds to `h`, shape (n, 1)."""
        change: Tensor = self.f[min(int(t), DEPTH - 1)](h)
        return change


class Flow(nn.Module):
    """An ODE network of one number: `dh/dt = f(h, t, θ)` from 0 to 5, equation 2 of the paper."""

    def __init__(self) -> None:
        super().__init__()
        self.f = _function(2)

    def field(self, t: Tensor, h: Tensor) -> Tensor:
        """`t` of shape (), `h` of shape (n, 1), and so the result."""
        change: Tensor = self.f(torch.cat([h, t.to(h).expand_as(h)], 1))
        return change

    def forward(self, h: Tensor) -> Tensor:
        """Shape (n, 1) in and out."""
        return self.states(h, (0.0, float(DEPTH)))[-1]

    def states(self, h: Tensor, times: Sequence[float], **how: Any) -> Tensor:
        """The states at `times`, shape (len(times), n, 1)."""
        y = solve(self.field, h, times, **{"rtol": 1e-5, "atol": 1e-5, **how}).y
        assert isinstance(y, Tensor)
        return y


DEPTH_NETWORKS: dict[str, type[Layers] | type[Flow]] = {"ResNet": Layers, "ODE network": Flow}
"""Both by name."""
