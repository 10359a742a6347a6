"""Dynamics that are drawn to a curve of time: the faster, the stiffer."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from neural_ode import solve
from neural_ode.solution import Statistics

__all__ = ["Attracted", "Curve", "Paths", "curve"]


def curve(t: Tensor) -> Tensor:
    """What the data are drawn to, between 0.5 and 1.5: `1 + cos(3 t) / 2`."""
    return 1 + torch.cos(3 * t) / 2


class Curve(nn.Module):
    """A network of the time, of one hidden layer, for times from 0 to 2.

    Args:
        hidden: units.
    """

    def __init__(self, hidden: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, hidden), nn.Tanh(), nn.Linear(hidden, 1)).double()

    def forward(self, t: Tensor) -> Tensor:
        """Its value at `t`, of shape ()."""
        value: Tensor = self.layers(3 * (t.reshape(1) - 1)).squeeze()  # from -3 to 3, for units of all slopes
        return value


class Attracted(nn.Module):
    """`y' = -k (y³ - g(t)³) / 3`: where y is near g, it is drawn there at the rate `k g²`.

    After Prothero & Robinson (1974), but not linear: where the state is wrong, so is the Jacobian.

    Args:
        g: the curve, a function of the time.
        rate: k.
    """

    def __init__(self, g: Any, rate: float):
        super().__init__()
        self.g, self.rate = g, rate

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """The derivative of `y`, of the same shape."""
        slope: Tensor = -self.rate * (y**3 - self.g(t) ** 3) / 3
        return slope


class Paths(nn.Module):
    """The states of an ODE at several times.

    Args:
        f: the dynamics.
        times: at which, the first one where it starts.
        **how: keyword arguments of `neural_ode.solve`.

    Attributes:
        stats: what the last solve cost.
    """

    def __init__(self, f: nn.Module, times: Sequence[float], **how: Any):
        super().__init__()
        self.f, self.times, self.how = f, list(times), how
        self.stats = Statistics()

    def forward(self, y0: Tensor) -> Tensor:
        """The states from `y0` on, shape (times, n) for one of shape (n,)."""
        found = solve(self.f, y0, self.times, **self.how)
        self.stats = found.stats
        assert isinstance(found.y, Tensor)
        return found.y
