"""Two-dimensional densities known up to a constant: the targets of Figure 4.

The energies are those of Rezende & Mohamed (2015), Table 1. `exp(-U)` of the second, third and fourth does not fall
off with `|z1|`, so it cannot be normalised. Here they get a support, `|z1| <= 4`, with edges as soft as the ridges
are wide (standard deviation 0.4): with hard edges every density that is positive everywhere has an infinite
divergence KL(q‖p). Normalising constants are computed by quadrature, so that KL(q‖p) is absolute.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from neural_ode.errors import InvalidArgumentError, UnknownNameError

__all__ = ["TARGETS", "Target", "get_target"]

SUPPORT = 4.0
EDGE = 0.4


@dataclass(frozen=True)
class Target:
    """A density `p(z) = exp(-U(z)) / Z`.

    Attributes:
        name: for figures.
        potential: `U`, of the two coordinates, tensors of one shape.
        window: half the side of the square around 0 that holds all of it but some 1e-9.
    """

    name: str
    potential: Callable[[Tensor, Tensor], Tensor]
    window: float = 7.0

    def energy(self, z: Tensor) -> Tensor:
        """`U(z)` in nats, for `z` of shape (..., 2); shape (...).

        Raises:
            InvalidArgumentError: `z` has another shape.
        """
        if z.shape[-1:] != (2,):
            raise InvalidArgumentError(f"z must have shape (..., 2), got {tuple(z.shape)}")
        return self.potential(z[..., 0], z[..., 1])

    @cached_property
    def log_constant(self) -> float:
        """`log Z`, by the trapezoidal rule on 1401 × 1401 points of the window."""
        axis = torch.linspace(-self.window, self.window, 1401, dtype=torch.float64)
        energy = self.potential(*torch.meshgrid(axis, axis, indexing="ij"))
        return float(torch.logsumexp(-energy.reshape(-1), 0)) + 2 * math.log(float(axis[1] - axis[0]))

    def log_prob(self, z: Tensor) -> Tensor:
        """Normalised log-density in nats, for `z` of shape (..., 2); shape (...)."""
        return -self.energy(z) - self.log_constant


def _bump(x: Tensor, width: float) -> Tensor:
    return -0.5 * (x / width).square()


def _wave(x: Tensor) -> Tensor:
    """`w1`."""
    return torch.sin(2 * math.pi * x / 4)


def _edges(x: Tensor) -> Tensor:
    """Zero inside the support, half a square of the distance in units of the edge outside."""
    return -_bump((x.abs() - SUPPORT).clamp(min=0), EDGE)


def _ring(x: Tensor, y: Tensor) -> Tensor:
    radius = (x * x + y * y + 1e-12).sqrt()  # whose gradient is finite at 0
    return -_bump(radius - 2, 0.4) - torch.logaddexp(_bump(x - 2, 0.6), _bump(x + 2, 0.6))


def _sine(x: Tensor, y: Tensor) -> Tensor:
    return -_bump(y - _wave(x), 0.4) + _edges(x)


def _split(x: Tensor, y: Tensor) -> Tensor:
    offset = y - _wave(x)
    lift = 3 * torch.exp(_bump(x - 1, 0.6))
    return -torch.logaddexp(_bump(offset, 0.35), _bump(offset + lift, 0.35)) + _edges(x)


def _step(x: Tensor, y: Tensor) -> Tensor:
    offset = y - _wave(x)
    lift = 3 * torch.sigmoid((x - 1) / 0.3)
    return -torch.logaddexp(_bump(offset, 0.4), _bump(offset + lift, 0.35)) + _edges(x)


TARGETS = {
    target.name: target
    for target in (Target("U1", _ring), Target("U2", _sine), Target("U3", _split), Target("U4", _step))
}
"""The four targets by the names of Rezende & Mohamed; Figure 4 shows the first three."""


def get_target(name: str) -> Target:
    """A target by its name.

    Raises:
        UnknownNameError: there is none of that name.
    """
    if name not in TARGETS:
        raise UnknownNameError("target", name, TARGETS)
    return TARGETS[name]
