"""How accurate the ways to differentiate a solve are, and what their backward passes cost (sections 2 and 6)."""

import itertools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from neural_ode.errors import NeuralODEWarning, SolverError, needs
from neural_ode.gradients import (
    Backsolve,
    Direct,
    Gradient,
    Interpolating,
    RecursiveCheckpoint,
    Reversible,
)
from neural_ode.gradients.augmented import AugmentedSystem
from neural_ode.problem.state import State
from neural_ode.solution import Statistics
from neural_ode.solve import solve
from reproduction.measure.fits import fit_line
from reproduction.models.flows import ContinuousFlow, GatedUnits, PlanarDynamics, WithLogDensity, standard_normal
from reproduction.models.mnist import ConvDynamics

with needs("notebooks"):
    from tqdm import tqdm

__all__ = [
    "CHOICES",
    "FAILED",
    "Network",
    "Pendulum",
    "Piece",
    "RoundTrip",
    "Trial",
    "accuracy",
    "adjoint_pieces",
    "backward_evaluations",
    "error_slope",
    "further_problems",
    "hessian_vector_error",
    "problems",
    "reconstruction",
    "round_trip",
    "time_gradient_error",
    "train",
    "train_flow",
    "worst_ratio",
]

CHOICES: dict[str, Gradient] = {
    "direct": Direct(),
    "recursive_checkpoint": RecursiveCheckpoint(),
    "backsolve": Backsolve(),
    "backsolve, 16 checkpoints": Backsolve(checkpoints=16),
    "interpolating": Interpolating(),
    "reversible": Reversible(),
}

FAILED = 1e99
"""Stands for the error of a solve that could not be finished, where a number is needed."""

MAX_STEPS = 1000

REFERENCE = 1e-13
"""Tolerance of the solves, by `dopri8`, that stand for the exact result."""


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


class Piece(NamedTuple):
    """The adjoint between two observations: times, descending, shape (k,), and `a(t)`, shape (k, *state); on the
    CPU."""

    t: Tensor
    a: Tensor


def adjoint_pieces(
    f: nn.Module,
    y0: Tensor,
    t: Tensor,
    grad_y: Callable[[Tensor], Tensor],
    points: int = 50,
    tolerance: float = 1e-8,
) -> list[Piece]:
    """The adjoint of a loss of the states at the times `t[1:]`, backwards from one to the next (Algorithm 1).

    Args:
        f: the dynamics.
        y0: the state at `t[0]`.
        t: ascending times, shape (n,).
        grad_y: gives `∂L/∂z(t_i)` of the states at `t[1:]`, both of shape (n - 1, *state).
        points: of each piece.
        tolerance: of the solves.

    Returns:
        One piece for each observation, the last one first.
    """
    how: dict[str, Any] = {"rtol": tolerance, "atol": tolerance}
    with torch.no_grad():
        states = solve(f, y0, t, **how).y
        assert isinstance(states, Tensor)
        jumps = grad_y(states[1:])
        system = AugmentedSystem(f, y0, ())
        pieces: list[Piece] = []
        a = torch.zeros_like(y0)
        for i in range(len(t) - 1, 0, -1):
            times = torch.linspace(float(t[i]), float(t[i - 1]), points, dtype=torch.float64)
            path = solve(_without_graph(system), system.pack(states[i], a + jumps[i - 1], ()), times, **how).y
            assert isinstance(path, Tensor)
            found = torch.stack([system.adjoint(state) for state in path])
            pieces.append(Piece(times, found.cpu()))
            a = found[-1]
    return pieces


def _without_graph(system: AugmentedSystem) -> Callable[[Tensor, Tensor], Tensor]:
    def rates(t: Tensor, state: Tensor) -> Tensor:
        with torch.no_grad():
            return system(t, state)

    return rates


def _gradient(trial: Trial, **how: Any) -> tuple[Tensor, Statistics]:
    """Gradient of the loss with respect to `y0` and the parameters, in one vector, and the statistics."""
    parts = tuple(part.clone().requires_grad_() for part in trial.parts())
    y0 = parts if isinstance(trial.y0, tuple) else parts[0]
    solution = solve(trial.f, y0, [trial.start, trial.end], **how)
    found = torch.autograd.grad(trial.loss(_last(solution.y)), [*parts, *trial.f.parameters()])
    return torch.cat([g.reshape(-1) for g in found]), solution.stats


def _last(y: State) -> State:
    return tuple(part[-1] for part in y) if isinstance(y, tuple) else y[-1]


def _reference(trial: Trial) -> Tensor:
    return _gradient(trial, method="dopri8", rtol=REFERENCE, atol=REFERENCE, gradient="direct")[0]


def accuracy(trials: Mapping[str, Trial], tolerances: Sequence[float]) -> list[dict[str, Any]]:
    """Relative error of the gradient for each problem, choice and tolerance, with `dopri5`.

    A solve that cannot be finished within a thousand steps has the error `None`. `drifted` says that the reversible
    solve warned.
    """
    references = {name: _reference(trial) for name, trial in trials.items()}
    rows = []
    cases = list(itertools.product(trials.items(), CHOICES.items(), tolerances))
    for (name, trial), (choice, gradient), tolerance in tqdm(cases, desc="accuracy", unit="case"):
        row: dict[str, Any] = {"problem": name, "choice": choice, "tolerance": tolerance, "error": None}
        exact = references[name]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", NeuralODEWarning)
            with suppress(SolverError):
                found, _ = _gradient(trial, rtol=tolerance, atol=tolerance, gradient=gradient, max_steps=MAX_STEPS)
                error = float((found - exact).norm() / exact.norm())
                row["error"] = error if math.isfinite(error) else None
        rows.append(row | {"drifted": any(w.category is NeuralODEWarning for w in caught)})
    return rows


def error_slope(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Slope of log error against log tolerance, as the rules ask for it; 0 if fewer than three solves finished."""
    finished = [row for row in rows if row["error"]]
    if len(finished) < 3:
        return {"estimate": 0.0, "low": 0.0, "high": 0.0, "r2": 0.0, "n": len(finished)}
    x, y = ([math.log10(row[name]) for row in finished] for name in ("tolerance", "error"))
    return fit_line(x, y).as_dict()


def worst_ratio(rows: Sequence[Mapping[str, Any]]) -> float:
    """The largest error over its tolerance; `FAILED` if one solve could not be finished."""
    ratios = [FAILED if row["error"] is None else row["error"] / row["tolerance"] for row in rows]
    return min(max(ratios), FAILED)


def backward_evaluations(trials: Mapping[str, Trial], tolerances: Sequence[float]) -> list[dict[str, Any]]:
    """Evaluations of the backward solve with all gradients in the error norm, with the seminorm (Kidger et al.
    2021), and with the parameters' gradients as a quadrature; `None` where one of them cannot be finished."""
    norms = {"all": Backsolve(), "seminorm": Backsolve(norm="seminorm"), "quadrature": Backsolve(quadrature=True)}
    rows = []
    cases = list(itertools.product(trials.items(), tolerances))
    for (name, trial), tolerance in tqdm(cases, desc="backward evaluations", unit="case"):
        row: dict[str, Any] = {"problem": name, "tolerance": tolerance, "saved": None}
        for kind, gradient in norms.items():
            row[kind] = None
            with suppress(SolverError):
                _, stats = _gradient(trial, rtol=tolerance, atol=tolerance, gradient=gradient, max_steps=MAX_STEPS)
                assert stats.backward is not None
                row["forward"], row[kind] = stats.nfe, stats.backward.nfe
        if row["all"] is not None and row["seminorm"] is not None:
            row["saved"] = 1 - row["seminorm"] / row["all"]
        rows.append(row)
    return rows


def reconstruction(trials: Mapping[str, Trial], tolerances: Sequence[float]) -> list[dict[str, Any]]:
    """`‖z0 - ẑ0‖ / ‖z0‖` where `ẑ0` comes from solving forwards and back again; `None` if that fails."""
    rows = []
    for (name, trial), tolerance in itertools.product(trials.items(), tolerances):
        how: dict[str, Any] = {"rtol": tolerance, "atol": tolerance, "max_steps": MAX_STEPS}
        error: float | None = None
        with torch.no_grad(), suppress(SolverError):
            end = _last(solve(trial.f, trial.y0, [trial.start, trial.end], **how).y)
            back = _last(solve(trial.f, end, [trial.end, trial.start], **how).y)
            z0, z = trial.parts()[0], (back if isinstance(back, tuple) else (back,))[0]
            distance = float((z - z0).norm() / z0.norm())
            error = distance if math.isfinite(distance) else None
        rows.append({"problem": name, "tolerance": tolerance, "error": error})
    return rows


class RoundTrip(NamedTuple):
    """A solve forwards, and one back from where it ended; on the CPU.

    Attributes:
        t, there: times, shape (n,), and states, shape (n, numbers).
        t_back, back: the same of the way back, descending; shorter if it could not be finished.
        error: `‖z0 - ẑ0‖ / ‖z0‖`, or `None` if the way back could not be finished.
    """

    t: Tensor
    there: Tensor
    t_back: Tensor
    back: Tensor
    error: float | None


@torch.no_grad()
def round_trip(trial: Trial, tolerance: float, points: int = 200) -> RoundTrip:
    """Both ways of a problem, as the adjoint method solves its state.

    Args:
        trial: with a tensor as its state.
        tolerance: of both solves.
        points: on each way.

    Raises:
        SolverError: the way there could not be finished.
    """
    assert isinstance(trial.y0, Tensor)
    # Counted from point to point: far more than a solve needs, few enough to give up one that diverges at once.
    how: dict[str, Any] = {"rtol": tolerance, "atol": tolerance, "max_steps": 50}
    times = torch.linspace(trial.start, trial.end, points, dtype=torch.float64)
    there = _tensor(solve(trial.f, trial.y0, times, **how).y)
    try:
        solution, finished = solve(trial.f, there[-1], times.flip(0), **how), True
    except SolverError as error:
        solution, finished = error.partial, False
    back = _tensor(solution.y)
    distance = float((back[-1] - trial.y0).norm() / trial.y0.norm()) if finished else None
    return RoundTrip(times, there.flatten(1).cpu(), solution.t.cpu(), back.flatten(1).cpu(), distance)


def _tensor(state: State) -> Tensor:
    assert isinstance(state, Tensor)
    return state


def time_gradient_error(trial: Trial, gradient: str | Gradient, step: float = 2e-3) -> float:
    """Relative difference of the gradients of start and end time to five-point differences of a tight solve."""

    def loss(t: Tensor, **how: Any) -> Tensor:
        return trial.loss(_last(solve(trial.f, trial.y0, t, **how).y))

    def exact(t: Tensor) -> Tensor:
        return loss(t, method="dopri8", rtol=REFERENCE, atol=REFERENCE)

    t = torch.tensor([0.3, 0.3 + trial.end], dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(loss(t, gradient=gradient, rtol=1e-10, atol=1e-10), t)
    with torch.no_grad():
        shifts = step * torch.eye(2, dtype=torch.float64)
        near = torch.stack([exact(t + s) - exact(t - s) for s in shifts])
        far = torch.stack([exact(t + 2 * s) - exact(t - 2 * s) for s in shifts])
    differences = ((8 * near - far) / (12 * step)).to(found)
    return float((found - differences).norm() / differences.norm())


def hessian_vector_error(trial: Trial, tolerance: float = 1e-10) -> float:
    """Relative error of a Hessian-vector product by `backsolve` differentiated twice, against `direct`."""
    torch.manual_seed(1)
    (start,) = trial.parts()
    direction = torch.randn_like(start)

    def product(gradient: str) -> Tensor:
        y0 = start.clone().requires_grad_()
        how: dict[str, Any] = {"rtol": tolerance, "atol": tolerance, "gradient": gradient}
        loss = trial.loss(_last(solve(trial.f, y0, [trial.start, trial.end], **how).y))
        (first,) = torch.autograd.grad(loss, y0, create_graph=True)
        (second,) = torch.autograd.grad((first * direction).sum(), y0)
        return second

    exact = product("direct")
    return float((product("backsolve") - exact).norm() / exact.norm())
