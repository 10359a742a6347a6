"""Networks with more parameters than their states have numbers, each with the task that it is trained for."""

from collections.abc import Callable
from math import pi

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Adam

from neural_ode import solve
from neural_ode.nn import WithLogDensity
from neural_ode.solution import State
from reproduction.experiments.trials import Pendulum, Trial, last_state, negative_log_likelihood
from reproduction.models.flows import HyperNetwork, PlanarDynamics
from reproduction.models.latent_ode import LatentDynamics
from reproduction.models.wide import ControlledEquation, HamiltonianNetwork, Perceptron
from reproduction.progress import tqdm
from reproduction.training.adjoint import moons_and_flow
from reproduction.training.weights import run_files

__all__ = ["TASKS", "task", "train", "training_run"]

EXAMPLES = 64
"""How many there are of each task: the first ones of them are the same, whatever the number."""

Loss = Callable[[State], Tensor]


def _logistic(positive: Tensor) -> Loss:
    """The logistic loss of telling two classes apart by the sign of the first coordinate."""
    sign = positive.double() * 2 - 1

    def loss(state: State) -> Tensor:
        assert isinstance(state, Tensor)
        return F.softplus(-4 * sign.to(state) * state[:, 0]).mean()

    return loss


def _squares(target: Tensor) -> Loss:
    """The mean square distance of the first coordinates to a target, shape (n, coordinates)."""

    def loss(state: State) -> Tensor:
        assert isinstance(state, Tensor)
        return (state[:, : target.shape[1]] - target.to(state)).square().mean()

    return loss


def _balls(*widths: int) -> Callable[[int], Trial]:
    """Points of a normal distribution: tell the inner half from the outer one."""

    def task(n: int) -> Trial:
        f = Perceptron(*widths)
        points = torch.randn(EXAMPLES, widths[0], dtype=torch.float64)
        radius = points.norm(dim=1)
        return Trial(f, points[:n], 1.0, loss=_logistic((radius > radius.median())[:n]))

    return task


def _moons(n: int) -> Trial:
    """The density of points on two half-moons, by planar units whose weights a network of the time makes."""
    points = moons_and_flow(n=EXAMPLES)[0][:n]
    torch.manual_seed(0)
    f = WithLogDensity(PlanarDynamics(HyperNetwork(2, 32)).double())
    return Trial(f, (points, points.new_zeros(n)), 0.0, 1.0, negative_log_likelihood)


def _swings(n: int) -> Trial:
    """Where a pendulum without friction is two units of time later."""
    f = HamiltonianNetwork(1, 128)
    states = torch.randn(EXAMPLES, 2, dtype=torch.float64)[:n]
    with torch.no_grad():
        later = last_state(solve(Pendulum(damping=0.0), states, [0.0, 2.0], rtol=1e-9, atol=1e-9).y)
    assert isinstance(later, Tensor)
    return Trial(f, states, 2.0, loss=_squares(later))


def _waves(n: int) -> Trial:
    """Sine waves: tell the slow half from the fast one."""
    frequency = (1 + 2 * torch.rand(EXAMPLES, dtype=torch.float64))[:n]
    phase = 2 * pi * torch.rand(EXAMPLES, dtype=torch.float64)[:n]
    f = ControlledEquation(8, 64, frequency, phase)
    start = torch.cat([phase.sin()[:, None], torch.ones(n, 1), torch.zeros(n, 6)], 1)
    return Trial(f, start.double(), 5.0, loss=_logistic(frequency > 2))


def _spirals(n: int) -> Trial:
    """Where a point on a spiral is two units of time later; a latent state has two more coordinates."""
    f = LatentDynamics(4, 20, layers=2).double()
    points = torch.randn(EXAMPLES, 2, dtype=torch.float64)[:n]
    turn = torch.tensor([[0.0, 2.0], [-2.0, 0.0]], dtype=torch.float64) - 0.1 * torch.eye(2, dtype=torch.float64)
    later = points @ torch.linalg.matrix_exp(2 * turn)
    return Trial(f, torch.cat([points, torch.zeros_like(points)], 1), 2.0, loss=_squares(later))


TASKS: dict[str, Callable[[int], Trial]] = {
    "perceptron, 2 numbers": _balls(2, 64, 64, 2),
    "perceptron, 8 numbers": _balls(8, 128, 8),
    "flow with hypernetwork": _moons,
    "Hamiltonian network": _swings,
    "controlled equation": _waves,
    "latent dynamics": _spirals,
}
"""By name, a network with random weights, always the same, and so many examples of its task."""


def task(name: str, n: int) -> Trial:
    """A row of `TASKS`.

    Args:
        name: of the network.
        n: examples, at most 64.
    """
    torch.manual_seed(0)
    return TASKS[name](n)


def train(trial: Trial, iterations: int) -> float:
    """Train a network for its task, through the steps of the solver.

    Args:
        trial: the network is trained in place.
        iterations: steps of Adam.

    Returns:
        The loss at the end.
    """
    optimizer = Adam(trial.f.parameters(), lr=0.01)
    loss = torch.zeros(())
    for _ in tqdm(range(iterations), desc=type(trial.f).__name__, unit="step"):
        optimizer.zero_grad()
        end = solve(trial.f, trial.y0, [trial.start, trial.end], rtol=1e-4, atol=1e-4, gradient="direct").y
        loss = trial.loss(last_state(end))
        torch.autograd.backward(loss)
        optimizer.step()
    return loss.item()


def training_run(*, network: str, iterations: int, device: str | torch.device) -> dict[str, bytes]:
    """`train` as a run of `reproduction.results`.

    Args:
        network: a name in `TASKS`.
        iterations: of the training.
        device: where to train.
    """
    trial = task(network, EXAMPLES).to(device)
    return run_files(trial.f, [{"loss": train(trial, iterations)}])
