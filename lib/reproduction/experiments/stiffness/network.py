"""A network that becomes stiff as it learns: its data are drawn to a curve much faster than they move along it."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from neural_ode import solve
from reproduction.results import csv_bytes
from reproduction.training.weights import tensor_bytes

__all__ = ["RATE", "START", "UNTIL", "StiffNetwork", "network_run", "snapshot", "target"]

RATE = 1000.0
"""How fast the data are drawn to the curve."""

UNTIL = 2.0

START = (1.0, 0.0)
"""Where solves of the trained network begin."""


class StiffNetwork(nn.Module):
    """`f(y)` of a state (position, phase): a perceptron of one hidden layer, the phase moves at the rate 1.

    Args:
        hidden: units.
    """

    def __init__(self, hidden: int = 32):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, hidden), nn.Tanh(), nn.Linear(hidden, 1)).double()

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """The derivative of `y`, shape (..., 2)."""
        return torch.cat([self.layers(y), torch.ones_like(y[..., 1:])], dim=-1)


def target(t: Tensor, y: Tensor) -> Tensor:
    """What is to be learned: `x' = -1000 (x - cos φ)`, `φ' = 1`, for states of shape (..., 2)."""
    position, phase = y[..., :1], y[..., 1:]
    return torch.cat([-RATE * (position - torch.cos(phase)), torch.ones_like(phase)], dim=-1)


def snapshot(iteration: int) -> str:
    """The suffix of the weights after so many iterations."""
    return f".{iteration}.safetensors"


def network_run(
    *, iterations: Sequence[int], hidden: int, starts: int, lr: float, tolerance: float, seed: int
) -> dict[str, bytes]:
    """Train on trajectories, by Adam and through the steps of dopri5; the weights after several `iterations`.

    The trajectories begin `starts` times off the curve, and are seen at times that are dense at first, where they
    are drawn to it.

    Returns:
        Files of a run: the losses, and the weights by `snapshot`.
    """
    torch.manual_seed(seed)
    model = StiffNetwork(hidden)
    times = torch.cat([torch.zeros(1), torch.logspace(-4, math.log10(UNTIL), 24)]).double()
    y0 = torch.stack(
        [torch.linspace(-1.0, 2.0, starts), torch.linspace(0.0, 1.0, starts)[torch.randperm(starts)]], -1
    )
    y0 = y0.double()
    how = {"method": "dopri5", "rtol": tolerance, "atol": tolerance}
    with torch.no_grad():
        expected = solve(target, y0, times, **how).y  # type: ignore[arg-type]
    assert isinstance(expected, Tensor)
    optimizer = torch.optim.Adam(model.parameters(), lr)
    files, rows = {}, []
    for iteration in range(1, max(iterations) + 1):
        optimizer.zero_grad()
        found = solve(model, y0, times, **how)  # type: ignore[arg-type]
        assert isinstance(found.y, Tensor)
        loss = (found.y - expected).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if iteration in iterations:
            files[snapshot(iteration)] = tensor_bytes(model.state_dict())
            rows.append({"iteration": iteration, "loss": loss.item(), "nfe": found.stats.nfe})
    return {".csv": csv_bytes(rows), **files}
