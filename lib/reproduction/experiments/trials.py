"""Initial value problems with a loss, in float64, that gradients are measured on, and how these are found."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neural_ode import solve
from neural_ode.gradients import (
    Backsolve,
    Direct,
    Gradient,
    Interpolating,
    RecursiveCheckpoint,
    Reversible,
)
from neural_ode.nn import WithLogDensity, standard_normal
from neural_ode.solution import State, Statistics
from reproduction.models.mnist import ConvDynamics
from reproduction.models.small import Network
from reproduction.training.adjoint import moons_and_flow, two_networks
from reproduction.training.weights import load_weights

__all__ = [
    "CHOICES",
    "MAX_STEPS",
    "REFERENCE",
    "WEIGHTS",
    "Pendulum",
    "Trial",
    "all_trials",
    "further_problems",
    "last_state",
    "loss_gradient",
    "problems",
    "reference_gradient",
]

CHOICES: dict[str, Gradient] = {
    "direct": Direct(),
    "recursive_checkpoint": RecursiveCheckpoint(),
    "backsolve": Backsolve(),
    "backsolve, 16 checkpoints": Backsolve(checkpoints=16),
    "interpolating": Interpolating(),
    "reversible": Reversible(),
}
"""The ways to differentiate a solve."""

MAX_STEPS = 1000
"""After so many steps a solve is given up."""

REFERENCE = 1e-13
"""Tolerance of the solves, by `dopri8`, that stand for the exact result."""

WEIGHTS = {"trained network": "trained-network", "continuous flow": "flow"}
"""The trainings that problems need, by problem."""


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


def problems(trained: nn.Module, device: str | torch.device = "cpu") -> dict[str, Trial]:
    """A smooth network with random weights, one that was trained, a stiff problem and a chaotic one.

    Args:
        trained: the second of `two_networks`, after its training.
        device: where the problems are to be solved. Random numbers are the same on all devices.
    """
    random, _ = two_networks()  # it seeds what is drawn below, too
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


def all_trials(files: Mapping[str, Path], device: str | torch.device) -> dict[str, Trial]:
    """The problems of both kinds.

    Args:
        files: weights by the name of the training; see `WEIGHTS`.
        device: where the problems are to be solved.
    """
    network = Network()
    load_weights(network, files["trained-network"])
    points, flow = moons_and_flow()
    load_weights(flow, files["flow"])
    further = further_problems(WithLogDensity(flow.f), points.to(device))
    return problems(network, device) | further


def loss_gradient(trial: Trial, **how: Any) -> tuple[Tensor, Statistics]:
    """Gradient of the loss with respect to `y0` and the parameters, in one vector, and the statistics.

    Args:
        trial: the problem.
        **how: keyword arguments of `neural_ode.solve`.

    Raises:
        SolverError: a solve, forwards or backwards, could not be finished.
    """
    parts = tuple(part.clone().requires_grad_() for part in trial.parts())
    y0 = parts if isinstance(trial.y0, tuple) else parts[0]
    solution = solve(trial.f, y0, [trial.start, trial.end], **how)
    found = torch.autograd.grad(trial.loss(last_state(solution.y)), [*parts, *trial.f.parameters()])
    return torch.cat([g.reshape(-1) for g in found]), solution.stats


def last_state(y: State) -> State:
    """The state at the last of the times, without their dimension."""
    return tuple(part[-1] for part in y) if isinstance(y, tuple) else y[-1]


def reference_gradient(trial: Trial) -> Tensor:
    """What `loss_gradient` finds with the tightest solve, by backpropagation through its steps.

    Raises:
        SolverError: it could not be finished.
    """
    return loss_gradient(trial, method="dopri8", rtol=REFERENCE, atol=REFERENCE, gradient="direct")[0]
