"""Trainings of notebook 02: a network and a flow as training leaves them, and networks through any solver."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from neural_ode import solve
from neural_ode.methods import ScipySolver
from neural_ode.nn import ContinuousFlow
from reproduction.models.flows import GatedUnits, PlanarDynamics
from reproduction.models.small import Network
from reproduction.progress import tqdm
from reproduction.training.weights import run_files

__all__ = [
    "METHODS",
    "black_box_run",
    "flow_run",
    "moons_and_flow",
    "my_solver",
    "network_run",
    "train",
    "train_flow",
    "two_networks",
]

Slope = Callable[[Tensor, Tensor], Tensor]


def my_solver(f: Slope, y0: Tensor, t: Sequence[float], rtol: float, atol: float, steps: int = 50) -> Tensor:
    """The classical Runge-Kutta method, so many steps from each time to the next."""
    states = [y0]
    for start, end in pairwise(t):
        y, h = states[-1], (end - start) / steps
        for at in (torch.as_tensor(start + k * h, dtype=y.dtype) for k in range(steps)):
            a = f(at, y)
            b = f(at + h / 2, y + h / 2 * a)
            c = f(at + h / 2, y + h / 2 * b)
            y = y + h / 6 * (a + 2 * b + 2 * c + f(at + h, y + h * c))
        states.append(y)
    return torch.stack(states)


METHODS: dict[str, Any] = {"dopri5": "dopri5", "VODE": ScipySolver("vode-adams"), "my_solver": my_solver}
"""Solvers by name: of this library, of SciPy, and ten lines of our own."""


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


def black_box_run(*, method: str, iterations: int, device: str | torch.device) -> dict[str, bytes]:
    """A network that is trained through a solver of `METHODS`, as a run of `reproduction.results`.

    Args:
        method: a name in `METHODS`; it solves forwards and backwards.
        iterations: of the training.
        device: where to train.
    """
    torch.manual_seed(0)
    network = Network().to(device)
    loss = train(network, iterations, gradient="backsolve", method=METHODS[method])
    return run_files(network, [{"loss": loss}])


def two_networks() -> tuple[Network, Network]:
    """Networks with random weights, always the same: one that stays as it is, and one to be trained."""
    torch.manual_seed(0)
    return Network(), Network()


def network_run(*, iterations: int, device: str | torch.device) -> dict[str, bytes]:
    """The second of `two_networks`, trained through the steps, as a run of `reproduction.results`.

    Args:
        iterations: of the training.
        device: where to train.
    """
    network = two_networks()[1].to(device)
    return run_files(network, [{"loss": train(network, iterations)}])


def moons_and_flow(width: int = 16, n: int = 64) -> tuple[Tensor, ContinuousFlow]:
    """Points on two half-moons, shape (n, 2), and a flow with random weights for them, always the same."""
    torch.manual_seed(2)
    angle = math.pi * torch.rand(n, dtype=torch.float64)
    upper = (torch.arange(n) % 2 == 0).double()
    centre = torch.stack([0.5 - upper, 0.25 - 0.5 * upper], dim=1)
    arc = torch.stack([angle.cos(), angle.sin() * (2 * upper - 1)], dim=1)
    points = 1.5 * (arc + centre) + 0.1 * torch.randn(n, 2, dtype=torch.float64)
    return points, ContinuousFlow(PlanarDynamics(GatedUnits(2, width)), 2, rtol=1e-4, atol=1e-4).double()


def train_flow(flow: ContinuousFlow, points: Tensor, iterations: int) -> float:
    """Fit a continuous flow by maximum likelihood.

    Args:
        flow: trained in place.
        points: shape (n, 2), on the device of the flow.
        iterations: steps of Adam.

    Returns:
        The negative log-likelihood at the end, mean over the points, in nats.
    """
    optimizer = torch.optim.Adam(flow.parameters(), lr=0.02)
    loss = torch.zeros(())
    for _ in tqdm(range(iterations), desc="flow", unit="step"):
        optimizer.zero_grad()
        loss = -flow.log_prob(points).mean()
        torch.autograd.backward(loss)
        optimizer.step()
    return loss.item()


def flow_run(*, iterations: int, device: str | torch.device) -> dict[str, bytes]:
    """The flow of `moons_and_flow`, trained, as a run of `reproduction.results`.

    Args:
        iterations: of the training.
        device: where to train.
    """
    points, flow = moons_and_flow()
    flow = flow.to(device)
    return run_files(flow, [{"loss": train_flow(flow, points.to(device), iterations)}])
