"""Training flows: density matching (Figure 4) and maximum likelihood (Figure 5)."""

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import LambdaLR

from neural_ode.errors import NonFiniteError
from neural_ode.nn import ContinuousFlow
from reproduction.data.densities import get_target
from reproduction.data.points import points, points_of_picture
from reproduction.models.flows import HyperNetwork, PlanarDynamics, PlanarFlow
from reproduction.training.loop import Fit, Row, Training, fit
from reproduction.training.planar import PlanarState, planar_steps

__all__ = [
    "Likelihood",
    "Matching",
    "Objective",
    "PictureLikelihood",
    "rate_factor",
    "train_continuous",
    "train_planar",
]

CHUNK = 1000
"""Steps of the planar flows that are made in one call."""


class Objective(ABC):
    """What a flow is trained for.

    Attributes:
        name: of the target or data set.
        identity: what tells it from others: another one's checkpoint is not resumed.
        leads_to: where the layers of a planar flow are to lead.
    """

    leads_to: Literal["data", "base"]

    def __init__(self, name: str):
        self.name = name
        self.identity = [type(self).__name__, name]

    @abstractmethod
    def inputs(self, n: int, seed: Sequence[int]) -> Tensor:
        """`n` points to start from, shape (n, 2); the same for the same seed."""

    @abstractmethod
    def energy(self, x: Tensor, y: Tensor) -> Tensor:
        """What the points cost that a planar flow leads to, in nats, elementwise in their coordinates."""

    @abstractmethod
    def loss(self, flow: nn.Module, inputs: Tensor, weight: float) -> Tensor:
        """The loss of a continuous flow, shape (), in nats.

        Args:
            flow: a `ContinuousFlow`.
            inputs: see above.
            weight: of the energy, below 1 while the target is annealed.
        """


class Matching(Objective):
    """The divergence KL(q‖p) to a target known up to a constant: `E_q[log q + weight · U]`, by samples of q."""

    leads_to = "data"

    def inputs(self, n: int, seed: Sequence[int]) -> Tensor:
        """Points of the base distribution."""
        return torch.randn(n, 2, generator=_generator(seed))

    def energy(self, x: Tensor, y: Tensor) -> Tensor:
        """The target's."""
        return get_target(self.name).potential(x, y)

    def loss(self, flow: nn.Module, inputs: Tensor, weight: float) -> Tensor:
        """As in `Objective`."""
        assert isinstance(flow, ContinuousFlow)
        x, log_prob = flow.push_forward(inputs)
        return (log_prob + weight * self.energy(x[:, 0], x[:, 1])).mean()


class Likelihood(Objective):
    """The negative log-likelihood of fresh points of a set."""

    leads_to = "base"

    def inputs(self, n: int, seed: Sequence[int]) -> Tensor:
        """Points of the set."""
        return points(self.name, n, seed)

    def energy(self, x: Tensor, y: Tensor) -> Tensor:
        """That of the standard normal distribution, up to a constant."""
        return 0.5 * (x * x + y * y)

    def loss(self, flow: nn.Module, inputs: Tensor, weight: float) -> Tensor:
        """As in `Objective`; there is nothing to anneal."""
        assert isinstance(flow, ContinuousFlow)
        return -flow.log_prob(inputs).mean()


class PictureLikelihood(Likelihood):
    """The negative log-likelihood of fresh points of a picture.

    Args:
        name: for the progress bar.
        picture: brightness, see `reproduction.data.points.points_of_picture`.
    """

    def __init__(self, name: str, picture: ArrayLike):
        super().__init__(name)
        self.picture = np.asarray(picture, dtype=np.float64)
        self.identity += [str(self.picture.shape), hashlib.sha256(self.picture.tobytes()).hexdigest()]

    def inputs(self, n: int, seed: Sequence[int]) -> Tensor:
        """Points of the picture."""
        return points_of_picture(self.picture, n, seed)


@dataclass(frozen=True)
class _Together:
    """The energies of several objectives, each for as many runs as there are seeds."""

    objectives: Sequence[Objective]

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        parts = zip(self.objectives, x.chunk(len(self.objectives)), y.chunk(len(self.objectives)), strict=True)
        return torch.cat([one.energy(x, y) for one, x, y in parts])


def rate_factor(step: int, steps: int) -> float:
    """How the learning rate goes: constant for the first half of the steps, then straight down to zero."""
    return min(1.0, 2 - 2 * step / steps)


def train_continuous(
    objective: Objective,
    units: int,
    seed: int,
    training: Mapping[str, Any],
    solver: Mapping[str, Any],
    checkpoint: Path | None = None,
    evaluate: Callable[[ContinuousFlow], Mapping[str, float]] = lambda flow: {},
    device: str | torch.device = "cpu",
) -> tuple[ContinuousFlow, list[Row]]:
    """Train a continuous flow of planar units with Adam.

    Args:
        objective: what for.
        units: how many hidden units, M.
        seed: decides the initial weights and the points.
        training: `iterations`, `batch`, `rate`, `hidden` (width of the hypernetwork), `annealing` (the share of the
            iterations after which the target counts in full), `span` (length of the flow), `records` (rows of
            history, at most one for each iteration).
        solver: keyword arguments of `neural_ode.solve`.
        checkpoint: see `reproduction.training.loop.fit`.
        evaluate: gives numbers for the history, from time to time, of the flow on the CPU.
        device: where to train.

    Returns:
        The flow, on the CPU, and the history of its training.
    """
    torch.manual_seed(seed)
    dynamics = PlanarDynamics(HyperNetwork(2, units, training["hidden"]))
    flow = ContinuousFlow(dynamics, 2, (0.0, training["span"]), **solver).to(device)
    optimizer = Adam(flow.parameters(), lr=training["rate"])
    steps = training["iterations"]
    task = Fit(
        model=flow,
        loss=lambda model, given: objective.loss(model, *given),
        batch=lambda step: (
            objective.inputs(training["batch"], (seed, step)).to(device),
            _weight(step, steps, training["annealing"]),
        ),
        optimizer=optimizer,
        scheduler=LambdaLR(optimizer, lambda step: rate_factor(step, steps)),
        steps=steps,
        epochs=min(training["records"], steps),
        evaluate=lambda model: evaluate(copy.deepcopy(cast(ContinuousFlow, model)).cpu()),
        settings={
            "objective": objective.identity,
            "units": units,
            "seed": seed,
            "training": dict(training),
            "solver": dict(solver),
            "device": str(device),
        },
        code=Path(__file__),
        label=f"CNF, {objective.name}, M = {units}, seed {seed}",
    )
    history = fit(task, checkpoint)
    return flow.cpu(), history


def train_planar(
    objectives: Sequence[Objective],
    layers: int,
    seeds: Sequence[int],
    training: Mapping[str, Any],
    checkpoint: Path | None = None,
    device: str | torch.device = "cpu",
) -> tuple[dict[tuple[str, int], PlanarFlow], float]:
    """Train planar flows with RMSprop, all objectives and seeds at once.

    Args:
        objectives: what for, all of one kind.
        layers: of each flow, K.
        seeds: decide the initial weights and the points.
        training: `iterations`, `batch`, `rate`, `annealing`; see `train_continuous`.
        checkpoint: see `reproduction.training.loop.fit`.
        device: where to train.

    Returns:
        The flows, on the CPU, by name of objective and seed, and how many seconds were spent.

    Raises:
        NonFiniteError: a parameter became NaN or infinite.
    """
    flows = {}
    for objective in objectives:
        for seed in seeds:
            torch.manual_seed(seed)
            flows[objective.name, seed] = PlanarFlow(2, layers, objective.leads_to)
    names = ("w", "u", "b")
    stacked = (torch.stack([getattr(f, x).detach() for f in flows.values()]).to(device) for x in names)
    task = _PlanarTraining(
        objectives=objectives,
        seeds=seeds,
        training=training,
        state=PlanarState.start(*stacked),
        steps=training["iterations"],
        epochs=1,
        settings={
            "objectives": [objective.identity for objective in objectives],
            "layers": layers,
            "seeds": list(seeds),
            "training": dict(training),
            "device": str(device),
        },
        code=Path(__file__),
        label=f"NF, K = {layers}",
    )
    (row,) = fit(task, checkpoint)
    with torch.no_grad():
        for i, flow in enumerate(flows.values()):
            for name, value in zip(names, task.state[:3], strict=True):
                getattr(flow, name).copy_(value[i])
    return flows, row["seconds"]


@dataclass(frozen=True, kw_only=True)
class _PlanarTraining(Training):
    """Stacked planar flows, changed in place, many steps in one compiled call: it looks at no loss."""

    objectives: Sequence[Objective]
    seeds: Sequence[int]
    training: Mapping[str, Any]
    state: PlanarState

    def advance(self, done: int) -> tuple[int, Row]:
        number = min(CHUNK, self.steps - done)
        chunk = _chunk(self.objectives, self.seeds, self.training, done, number)
        kind = [type(self.objectives[0]).__name__, *(objective.name for objective in self.objectives)]
        inputs, rates, weights = (x.to(self.state.w.device) for x in chunk)
        made = planar_steps(self.state, inputs, rates, weights, _Together(self.objectives), " ".join(kind))
        if not all(x.isfinite().all() for x in made):
            raise NonFiniteError(f"planar flows diverge before step {done + number}: lower the learning rate")
        self._set(made)
        return number, {}

    def at_end_of_epoch(self) -> Mapping[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"state": tuple(self.state)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._set(state["state"])

    def _set(self, values: Sequence[Tensor]) -> None:
        for own, value in zip(self.state, values, strict=True):
            own.copy_(value)


def _chunk(
    objectives: Sequence[Objective], seeds: Sequence[int], training: Mapping[str, Any], first: int, number: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Points, learning rates and weights of the energy for steps from `first` on."""
    batch, steps = training["batch"], training["iterations"]
    drawn = [
        o.inputs(number * batch, (seed, first)).reshape(number, batch, 2) for o in objectives for seed in seeds
    ]
    at = range(first, first + number)
    rates = torch.tensor([training["rate"] * rate_factor(step, steps) for step in at])
    weights = torch.tensor([_weight(step, steps, training["annealing"]) for step in at])
    return torch.stack(drawn, 1), rates, weights


def _weight(step: int, steps: int, annealing: float) -> float:
    """From 0.01 up to 1 (Rezende & Mohamed 2015, section 6.1: over the first 10,000 of 500,000 steps)."""
    return 1.0 if annealing == 0 else min(1.0, 0.01 + step / (annealing * steps))


def _generator(seed: Sequence[int]) -> torch.Generator:
    # Mixed, for PyTorch's generator looks at the last 32 bits of a seed only.
    mixed = np.random.SeedSequence([int(x) for x in seed]).generate_state(1)
    return torch.Generator().manual_seed(int(mixed[0]))
