"""Dynamics that preserve volume."""

import torch
from torch import Tensor, nn

from neural_ode.errors import InvalidArgumentError
from neural_ode.nn import positive

__all__ = ["HamiltonianDynamics"]


class HamiltonianDynamics(nn.Module):
    """Two halves of the state, each driven by the other: `dq/dt = g(p, t)`, `dp/dt = h(q, t)`.

    The Jacobian has zeros on its diagonal, so the trace is zero and the flow preserves volume: the continuous limit
    of NICE (Dinh et al. 2014); appendix A of the paper.

    Args:
        dim: of the state, at least two; an odd one is split unevenly.
        hidden: width of the one hidden layer of `g` and of `h`.

    Raises:
        InvalidArgumentError: `dim` is below two, or `hidden` no positive number.
    """

    def __init__(self, dim: int, hidden: int = 32):
        super().__init__()
        if positive("dim", dim) < 2:
            raise InvalidArgumentError(f"dim must be at least 2, for a state in two halves, got {dim}")
        self.split = dim // 2
        self.g = _network(dim - self.split + 1, positive("hidden", hidden), self.split)
        self.h = _network(self.split + 1, hidden, dim - self.split)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """The slope at `z`, shape (n, dim), and `t`, shape ()."""
        q, p = z[:, : self.split], z[:, self.split :]
        time = t.expand(len(z), 1)
        return torch.cat([self.g(torch.cat([p, time], 1)), self.h(torch.cat([q, time], 1))], 1)

    def with_trace(self, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """The slope, and zeros of shape (n,)."""
        return self(t, z), z.new_zeros(len(z))


def _network(inputs: int, hidden: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs))
