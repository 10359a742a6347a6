"""Depth in layers and depth as time: Figure 1 of Chen et al. (2018), on data of one dimension."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from neural_ode import solve
from neural_ode.errors import needs

with needs("notebooks"):
    from tqdm import tqdm

__all__ = [
    "DEPTH",
    "Evaluation",
    "Flow",
    "Layers",
    "euler_errors",
    "inputs",
    "root_mean_square",
    "stairs",
    "trace",
    "train",
]

DEPTH = 5
"""Layers of the residual network, and the time span of the ODE, as in the figure."""

WIDTH = 32


def inputs(n: int) -> Tensor:
    """`n` evenly spaced numbers from -4 to 4, float64, shape (n, 1)."""
    return torch.linspace(-4, 4, n, dtype=torch.float64)[:, None]


def stairs(x: Tensor) -> Tensor:
    """A smooth staircase: increasing, and flat around -4, 0 and 4."""
    return x - 0.9 * (2 / math.pi) * torch.sin(math.pi * x / 2)


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


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def train(model: nn.Module, target: Callable[[Tensor], Tensor], iterations: int, label: str) -> float:
    """Fit `target` on 64 inputs by least squares, with Adam and a one-cycle learning rate.

    Returns:
        The root mean square of the residuals.
    """
    x = inputs(64).to(_device(model))
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.02, total_steps=iterations)
    for _ in tqdm(range(iterations), desc=label, unit="step"):
        optimizer.zero_grad()
        torch.autograd.backward((model(x) - target(x)).square().mean())
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return root_mean_square(model(x) - target(x))


def root_mean_square(x: Tensor) -> float:
    """Of all entries, in their unit."""
    return float(x.square().mean().sqrt())


class Evaluation(NamedTuple):
    """Where a solver evaluated the dynamics of one number."""

    t: float
    h: float


@torch.no_grad()
def trace(flow: Flow, start: float, **how: Any) -> list[Evaluation]:
    """Every evaluation of the dynamics in one solve from `start`.

    Args:
        flow: the network.
        start: the input.
        **how: keyword arguments of `neural_ode.solve`.
    """
    found: list[Evaluation] = []

    def watched(t: Tensor, h: Tensor) -> Tensor:
        found.append(Evaluation(t.item(), h.item()))
        return flow.field(t, h)

    h0 = torch.tensor([[start]], dtype=torch.float64, device=_device(flow))
    solve(watched, h0, (0.0, float(DEPTH)), **how)
    return found


@torch.no_grad()
def euler_errors(flow: Flow, steps: Sequence[int]) -> list[float]:
    """Root mean square distance between the output of the ODE and that of so many equal Euler steps.

    With Euler's method the network is a residual network with tied weights; with more and shorter steps it should
    become the ODE.
    """
    x = inputs(64).to(_device(flow))
    span = (0.0, float(DEPTH))
    exact = flow.states(x, span, rtol=1e-11, atol=1e-11)[-1]
    return [root_mean_square(flow.states(x, span, method="euler", step_size=DEPTH / n)[-1] - exact) for n in steps]
