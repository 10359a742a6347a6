"""Training flows: density matching (Figure 4) and maximum likelihood (Figure 5)."""

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
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
from reproduction.data.points import picture_of_letters, points, points_of_picture
from reproduction.measure.reversal import base_points, reversal_error
from reproduction.models.flows import HyperNetwork, PlanarDynamics, PlanarFlow
from reproduction.training.loop import Fit, Row, Training, fit
from reproduction.training.planar import PlanarState, planar_steps
from reproduction.training.weights import run_files

__all__ = [
    "Likelihood",
    "Matching",
    "Objective",
    "Pair",
    "PictureLikelihood",
    "continuous_flow",
    "likelihood_run",
    "matching_run",
    "picture_run",
    "planar_likelihood_runs",
    "planar_matching_runs",
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


Pair = tuple[Objective, int]
"""An objective and a seed: one flow."""


@dataclass(frozen=True)
class _Together:
    """The energies of several objectives, each for so many flows, one after the other."""

    objectives: Sequence[Objective]
    numbers: Sequence[int]

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> "_Together":
        """The energies of pairs, neighbours with the same objective as one."""
        groups = [list(group) for _, group in groupby(pairs, key=lambda pair: pair[0].identity)]
        return cls([group[0][0] for group in groups], [len(group) for group in groups])

    @property
    def key(self) -> str:
        """Identifies the code of the energies."""
        numbers = zip(self.objectives, self.numbers, strict=True)
        return " ".join([type(self.objectives[0]).__name__, *(f"{one.name}*{number}" for one, number in numbers)])

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        numbers = list(self.numbers)
        parts = zip(self.objectives, torch.split(x, numbers), torch.split(y, numbers), strict=True)
        return torch.cat([one.energy(x, y) for one, x, y in parts])


def rate_factor(step: int, steps: int) -> float:
    """How the learning rate goes: constant for the first half of the steps, then straight down to zero."""
    return min(1.0, 2 - 2 * step / steps)


def continuous_flow(units: int, training: Mapping[str, Any], solver: Mapping[str, Any]) -> ContinuousFlow:
    """The flow that `train_continuous` trains, with random weights; for its arguments see there."""
    dynamics = PlanarDynamics(HyperNetwork(2, units, training["hidden"]))
    return ContinuousFlow(dynamics, 2, (0.0, training["span"]), **solver)


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
    flow = continuous_flow(units, training, solver).to(device)
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
    pairs: Sequence[Pair],
    layers: int,
    training: Mapping[str, Any],
    checkpoint: Path | None = None,
    device: str | torch.device = "cpu",
) -> tuple[dict[tuple[str, int], PlanarFlow], float]:
    """Train planar flows with RMSprop, all of them at once.

    Args:
        pairs: of each flow, the objective, all of one kind, and the seed, which decides the initial weights and the
            points.
        layers: of each flow, K.
        training: `iterations`, `batch`, `rate`, `annealing`; see `train_continuous`.
        checkpoint: see `reproduction.training.loop.fit`.
        device: where to train.

    Returns:
        The flows, on the CPU, by name of objective and seed, and how many seconds were spent.

    Raises:
        NonFiniteError: a parameter of one of them became NaN or infinite.
    """
    flows = {}
    for objective, seed in pairs:
        torch.manual_seed(seed)
        flows[objective.name, seed] = PlanarFlow(2, layers, objective.leads_to)
    names = ("w", "u", "b")
    stacked = (torch.stack([getattr(f, x).detach() for f in flows.values()]).to(device) for x in names)
    task = _PlanarTraining(
        pairs=pairs,
        training=training,
        state=PlanarState.start(*stacked),
        steps=training["iterations"],
        epochs=1,
        settings={
            "pairs": [[objective.identity, seed] for objective, seed in pairs],
            "layers": layers,
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

    pairs: Sequence[Pair]
    training: Mapping[str, Any]
    state: PlanarState

    def advance(self, done: int) -> tuple[int, Row]:
        number = min(CHUNK, self.steps - done)
        chunk = _chunk(self.pairs, self.training, done, number)
        inputs, rates, weights = (x.to(self.state.w.device) for x in chunk)
        energies = _Together.of(self.pairs)
        made = planar_steps(self.state, inputs, rates, weights, energies, energies.key)
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
    pairs: Sequence[Pair], training: Mapping[str, Any], first: int, number: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Points, learning rates and weights of the energy for steps from `first` on."""
    batch, steps = training["batch"], training["iterations"]
    drawn = [one.inputs(number * batch, (seed, first)).reshape(number, batch, 2) for one, seed in pairs]
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


# Runs of `reproduction.results` ----------------------------------------------------------------------------------


def matching_run(
    *,
    target: str,
    units: int,
    seed: int,
    training: Mapping[str, Any],
    solver: Mapping[str, Any],
    compiled: bool,
    device: str | torch.device,
    checkpoints: Path,
) -> dict[str, bytes]:
    """A continuous flow that matches a density, as a run of `reproduction.results`.

    Args:
        target: a name in `reproduction.data.densities.TARGETS`.
        units, seed, training, solver, device: see `train_continuous`.
        compiled: whether to compile the steps of the solver, which changes no more than the time that it takes.
        checkpoints: a folder for the run's own.
    """
    file = checkpoints / f"CNF-{target}-{units}-{seed}.pt"
    how = {**solver, "compile": compiled}
    return run_files(*train_continuous(Matching(target), units, seed, training, how, file, device=device))


def likelihood_run(
    *,
    points_of: str,
    units: int,
    seed: int,
    training: Mapping[str, Any],
    solver: Mapping[str, Any],
    compiled: bool,
    device: str | torch.device,
    checkpoints: Path,
) -> dict[str, bytes]:
    """A continuous flow that makes points likely, as a run; its history has the `reversal` error at each record.

    Args:
        points_of: a name in `reproduction.data.points.POINT_SETS`.
        units, seed, training, solver, compiled, device, checkpoints: see `matching_run`.
    """

    def reversal(flow: ContinuousFlow) -> dict[str, float]:
        return {"reversal": reversal_error(flow, base_points(), solver["rtol"])}

    file = checkpoints / f"CNF-{points_of.replace(' ', '-')}-{seed}.pt"
    how = {**solver, "compile": compiled}
    return run_files(*train_continuous(Likelihood(points_of), units, seed, training, how, file, reversal, device))


def picture_run(
    *,
    letters: str,
    units: int,
    seed: int,
    training: Mapping[str, Any],
    solver: Mapping[str, Any],
    compiled: bool,
    device: str | torch.device,
    checkpoints: Path,
) -> dict[str, bytes]:
    """A continuous flow that makes points of a picture likely, as a run.

    Args:
        letters: on the picture; see `reproduction.data.points.picture_of_letters`.
        units, seed, training, solver, compiled, device, checkpoints: see `matching_run`.
    """
    objective = PictureLikelihood(f"the letters {letters}", picture_of_letters(letters))
    how = {**solver, "compile": compiled}
    file = checkpoints / f"picture-{letters}-{seed}.pt"
    return run_files(*train_continuous(objective, units, seed, training, how, file, device=device))


def planar_matching_runs(
    *, points: Mapping[str, Mapping[str, Any]], device: str | torch.device, checkpoints: Path
) -> dict[str, dict[str, bytes]]:
    """Planar flows that match densities, trained at once, as runs.

    Args:
        points: by name of the run `target`, `layers`, `seed` and `training`; see `train_planar`. All have the same
            number of layers and the same training.
        device: where to train.
        checkpoints: a folder for that of all of them.
    """
    return _planar_runs(
        {name: Matching(point["target"]) for name, point in points.items()}, points, device, checkpoints
    )


def planar_likelihood_runs(
    *, points: Mapping[str, Mapping[str, Any]], device: str | torch.device, checkpoints: Path
) -> dict[str, dict[str, bytes]]:
    """Planar flows that make points likely, trained at once, as runs.

    Args:
        points: by name of the run `points_of`, `layers`, `seed` and `training`; see `planar_matching_runs`.
        device, checkpoints: see there.
    """
    objectives = {name: Likelihood(point["points_of"]) for name, point in points.items()}
    return _planar_runs(objectives, points, device, checkpoints)


def _planar_runs(
    objectives: Mapping[str, Objective],
    points: Mapping[str, Mapping[str, Any]],
    device: str | torch.device,
    checkpoints: Path,
) -> dict[str, dict[str, bytes]]:
    pairs = {name: (objective, points[name]["seed"]) for name, objective in objectives.items()}
    first = next(iter(points.values()))
    layers, training = first["layers"], first["training"]
    file = checkpoints / f"NF-{layers}.pt"
    flows, seconds = train_planar(list(pairs.values()), layers, training, file, device)
    row = {"iterations": training["iterations"], "rate": training["rate"], "seconds": seconds / len(pairs)}
    return {name: run_files(flows[objective.name, seed], [row]) for name, (objective, seed) in pairs.items()}
