"""Trainings that give the problems a network and a flow as training leaves them."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from neural_ode import solve
from neural_ode.errors import needs
from neural_ode.nn import ContinuousFlow, WithLogDensity
from reproduction.models.flows import GatedUnits, PlanarDynamics

with needs("notebooks"):
    from tqdm import tqdm

__all__ = ["train", "train_flow"]


def train(f: nn.Module, iterations: int, **how: Any) -> float:
    """Teach the flow of `f` to separate two concentric circles of points by the sign of the first coordinate.

    Args:
        f: the dynamics of a state of two numbers.
        iterations: steps of Adam, on 64 fixed points.
        **how: arguments of `solve`.

    Returns:
        The loss at the end.
    """
    angle = 2 * math.pi * torch.arange(64, dtype=torch.float64) / 64
    radius = torch.where(torch.arange(64) % 2 == 0, 0.5, 1.5).double()
    points = radius[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
    sign = torch.where(radius < 1, -1.0, 1.0)
    device = next(f.parameters()).device
    points, sign = points.to(device), sign.to(device)
    optimizer = torch.optim.Adam(f.parameters(), lr=0.03)
    settings: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4, "gradient": "direct", **how}
    loss = torch.zeros(())
    for _ in range(iterations):
        optimizer.zero_grad()
        out = solve(f, points, [0.0, 1.0], **settings).y
        assert isinstance(out, Tensor)
        loss = nn.functional.softplus(-4 * sign * out[-1, :, 0]).mean()
        torch.autograd.backward(loss)
        optimizer.step()
    return loss.item()


def train_flow(
    iterations: int, device: str | torch.device = "cpu", width: int = 16, n: int = 64
) -> tuple[WithLogDensity, Tensor, float]:
    """Fit a continuous flow to two half-moons by maximum likelihood, on a device.

    Returns:
        Its dynamics, with the log-density, the points, shape (n, 2), and the negative log-likelihood at the end.
    """
    torch.manual_seed(2)
    angle = math.pi * torch.rand(n, dtype=torch.float64)
    upper = (torch.arange(n) % 2 == 0).double()
    centre = torch.stack([0.5 - upper, 0.25 - 0.5 * upper], dim=1)
    arc = torch.stack([angle.cos(), angle.sin() * (2 * upper - 1)], dim=1)
    points = (1.5 * (arc + centre) + 0.1 * torch.randn(n, 2, dtype=torch.float64)).to(device)
    flow = ContinuousFlow(PlanarDynamics(GatedUnits(2, width)), 2, rtol=1e-4, atol=1e-4).double().to(device)
    optimizer = torch.optim.Adam(flow.parameters(), lr=0.02)
    loss = torch.zeros(())
    for _ in tqdm(range(iterations), desc="flow", unit="step"):
        optimizer.zero_grad()
        loss = -flow.log_prob(points).mean()
        torch.autograd.backward(loss)
        optimizer.step()
    return WithLogDensity(flow.f), points, loss.item()
