"""Initial value problems with a loss, in float64, that gradients are measured on."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from neural_ode.nn import standard_normal
from neural_ode.solution import State
from reproduction.experiments.adjoint.training import train
from reproduction.models.mnist import ConvDynamics

__all__ = ["Network", "Pendulum", "Trial", "further_problems", "problems"]


def mean_square(state: State) -> Tensor:
    assert isinstance(state, Tensor)
    return state.square().mean()


@dataclass(frozen=True)
class Trial:
    """An initial value problem in float64, and a loss.

    Attributes:
        f: the dynamics, with parameters.
        y0: the state at `start`.
        end: the time of the loss.
        start: 0 if left out.
        loss: of the state at `end`.
    """

    f: nn.Module
    y0: State
    end: float
    start: float = 0.0
    loss: Callable[[State], Tensor] = mean_square

    def parts(self) -> tuple[Tensor, ...]:
        """The tensors of `y0`."""
        return self.y0 if isinstance(self.y0, tuple) else (self.y0,)

    def to(self, device: str | torch.device) -> "Trial":
        """The same problem on a device. As with any module, `f` itself is moved."""
        y0 = tuple(part.to(device) for part in self.parts())
        return replace(self, f=self.f.to(device), y0=y0 if isinstance(self.y0, tuple) else y0[0])


class Network(nn.Module):
    """`dz/dt = W2 tanh(W1 z + b1) + b2`."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 2)).double()

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """The slope at `y`, shape (..., 2); the time does not matter."""
        slope: Tensor = self.layers(y)
        return slope


class Decay(nn.Module):
    """`dy/dt = -k (y - cos t)`, stiff where k is large: all solutions run into one."""

    def __init__(self, rate: float = 20.0):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate, dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return -self.rate * (y - torch.cos(t))


class Lorenz(nn.Module):
    """Lorenz (1963), with its classical parameters: nearby solutions part like `exp(0.9 t)`."""

    def __init__(self) -> None:
        super().__init__()
        self.constants = nn.Parameter(torch.tensor([10.0, 28.0, 8 / 3], dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        sigma, rho, beta = self.constants
        a, b, c = y.unbind(-1)
        return torch.stack([sigma * (b - a), a * (rho - c) - b, a * b - beta * c], dim=-1)


class Pendulum(nn.Module):
    """A damped pendulum: `d(angle, speed)/dt = (speed, -g sin(angle) - d speed)`."""

    def __init__(self, g: float = 4.0, damping: float = 0.15):
        super().__init__()
        self.constants = nn.Parameter(torch.tensor([g, damping], dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """The slope at `y`, angle and speed, shape (..., 2); the time does not matter."""
        angle, speed = y.unbind(-1)
        g, damping = self.constants
        return torch.stack([speed, -g * torch.sin(angle) - damping * speed], dim=-1)


def problems(iterations: int, device: str | torch.device = "cpu") -> dict[str, Trial]:
    """A smooth network with random weights, one that was trained, a stiff problem and a chaotic one.

    Args:
        iterations: of training.
        device: where the problems are to be solved. Random numbers are the same on all devices.
    """
    torch.manual_seed(0)
    random = Network()
    trained = Network().to(device)
    train(trained, iterations)
    trials = {
        "random network": Trial(random, torch.randn(8, 2, dtype=torch.float64), 2.0),
        "trained network": Trial(trained, torch.randn(8, 2, dtype=torch.float64), 1.0),
        "stiff": Trial(Decay(), torch.tensor([0.0, 1.5], dtype=torch.float64), 2.0),
        "chaotic": Trial(Lorenz(), torch.tensor([[1.0, 1.0, 20.0]], dtype=torch.float64), 5.0),
    }
    return {name: trial.to(device) for name, trial in trials.items()}


def further_problems(flow: nn.Module, points: Tensor) -> dict[str, Trial]:
    """More problems to count evaluations on: a pendulum, a wider network, a continuous flow, an ODE-Net.

    Args:
        flow: the dynamics of the points and the log-density of a trained flow.
        points: what it is to be evaluated at, shape (n, 2). The problems are solved where they lie.
    """
    torch.manual_seed(3)
    pixels = torch.randn(4, 8, 6, 6, dtype=torch.float64)
    trials = {
        "pendulum": Trial(Pendulum(), torch.tensor([[2.0, 0.0], [1.0, 1.0]], dtype=torch.float64), 5.0),
        "wide network": Trial(Network(50), torch.randn(16, 2, dtype=torch.float64), 5.0),
        "continuous flow": Trial(flow, (points, points.new_zeros(len(points))), 0.0, 1.0, negative_log_likelihood),
        "convolutions": Trial(ConvDynamics(8).double(), pixels, 1.0),
    }
    return {name: trial.to(points.device) for name, trial in trials.items()}


def negative_log_likelihood(state: State) -> Tensor:
    """Of a flow solved back to its base distribution, mean over the points, in nats."""
    z, change = state
    return (change - standard_normal(z)).mean()
