"""Notebook 07: flows that make points likely (Figure 5), what sampling costs, and the way back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

from torch import Tensor

from neural_ode.errors import needs
from reproduction.experiments.flow_measurements import (
    densities_run,
    log_likelihood_run,
    mass_run,
    reversal_run,
    sampling_cost_run,
)
from reproduction.experiments.flow_runs import candidates, load_flow, measured, recipes, trial_training
from reproduction.experiments.flow_search import likelihood_trial
from reproduction.experiments.search import first_stable, ranked_by_runs
from reproduction.experiments.true_density import TRUE_DENSITIES, gap_run
from reproduction.results import Files, Run, Store
from reproduction.sweep import Point
from reproduction.training.flows import likelihood_run, picture_run, planar_likelihood_runs
from reproduction.training.weights import read_tensors
from reproduction.workspace import Workspace, choose_device

with needs("notebooks"):
    import pandas as pd

__all__ = ["EDGE", "Results", "results"]

EDGE = 4.5
"""Half the side of the square that is drawn."""

FRAMES, FRAME_PIXELS = 10, 100
"""Of a moving picture: how many, and how many pixels in a row of one."""

LETTERS = "ODE"
"""What stands on the picture."""


class Results(NamedTuple):
    """What notebook 07 shows.

    Attributes:
        trials: a row for each learning rate that was tried: `model`, `candidate`, the negative log-likelihood of
            points of each set for validation, and their `mean`.
        rates: the learning rates that were taken, by kind of flow.
        history: a row for each record of the training of each continuous flow, with its `reversal` error.
        likelihoods: a row for each flow: `flow` (`NF`, `CNF`), `set`, `seed`, and `log p` of points that it has not
            seen, in nats.
        gaps: a row for each flow whose set has a known density: `flow`, `set`, `seed`, and over those points the
            mean `true log p`, the `gap`, the mean of what the flow's log-density lacks to it, and its
            `standard error`.
        reversal: of the continuous flows in double precision the relative `error` by `set`, `seed` and `tolerance`.
        costs: of the continuous flows, by `set`, `seed` and `work`: `nfe` and CPU `seconds`.
        masses: what the densities of the first seed integrate to: `flow`, `set`, `mass`.
        densities: of the continuous flow of the first seed after each share of its time, by set, shape (shares,
            pixels, pixels).
        frames: the same for the moving pictures of the last set, `animation`, and of the letters, `picture`.
        picture_history: of the training on the picture.
        flows: those of the first seed, by kind and set.
    """

    trials: pd.DataFrame
    rates: dict[str, float]
    history: pd.DataFrame
    likelihoods: pd.DataFrame
    gaps: pd.DataFrame
    reversal: pd.DataFrame
    costs: pd.DataFrame
    masses: pd.DataFrame
    densities: dict[str, Tensor]
    frames: dict[str, Tensor]
    picture_history: pd.DataFrame
    flows: dict[tuple[str, str], Any]


def results(
    work: Workspace,
    *,
    sets: Sequence[str],
    units: int,
    layers: int,
    seeds: Sequence[int],
    continuous: Mapping[str, float],
    planar: Mapping[str, float],
    rates: Mapping[str, Sequence[float]],
    search: Mapping[str, float],
    tolerance: float,
    gradient: str,
    compiled: bool,
    held_out: int,
    pixels: int,
    shares: Sequence[float],
    reversal_tolerances: Sequence[float],
    picture_iterations: int,
    repeats: int,
    device: str,
) -> Results:
    """Train every flow and measure it; what is there is read.

    Args:
        work: of the notebook.
        sets: names in `reproduction.data.points.POINT_SETS`.
        units, layers: of the continuous and the planar flows.
        seeds: of the trainings.
        continuous, planar: see `reproduction.experiments.flow_runs.recipes`.
        rates: candidates for the learning rate, for `NF` and `CNF`.
        search: `seed` of the trials and the `share` of the iterations.
        tolerance, gradient: of the solves.
        compiled: whether the solver's steps are compiled in training.
        held_out: how many points a likelihood is measured with.
        pixels: in a row of a density.
        shares: of the time after which densities are drawn.
        reversal_tolerances: of the solves there and back.
        picture_iterations: of the training on a picture.
        repeats: see `reproduction.experiments.flows.cost_both_ways`.
        device: where to train.
    """
    store = work.store
    flows = [_Trained(*one) for one in product(("NF", "CNF"), sets, seeds)]
    sizes = {"NF": layers, "CNF": units}
    solver = {"rtol": tolerance, "atol": tolerance, "gradient": gradient}
    how = {"device": choose_device(device), "checkpoints": store.checkpoints}
    training = _Training(store, flows, sizes, recipes(continuous, planar), solver, compiled, how)

    def trial(kind: str, rate: float) -> Point:
        point = {"kind": kind, "sets": list(sets), "size": sizes[kind], "seed": int(search["seed"])}
        point |= {"training": trial_training(training.recipes[kind], search["share"], rate)}
        return {**point, "solver": solver if kind == "CNF" else None, "evaluation": held_out}

    ranked, trials = ranked_by_runs(store, likelihood_trial, candidates(rates), trial, compiled=compiled, **how)
    taken, runs = training.all(ranked, list(sets))
    picture = training.train_picture(seeds[0], picture_iterations, taken["CNF"])

    ways: dict[str, dict[str, Any]] = {"NF": {"leads_to": "base"}}
    ways["CNF"] = {"hidden": training.recipes["CNF"]["hidden"], "tolerance": tolerance}
    points = {flow: measured(runs[flow.name], flow.kind, sizes[flow.kind], **ways[flow.kind]) for flow in flows}
    drawn = measured(picture, "CNF", units, **ways["CNF"])
    by_weights = {points[flow]["weights"]: runs[flow.name] for flow in flows} | {drawn["weights"]: picture}
    measuring = _Measuring(store, points, by_weights, seeds[0])
    last = points[_Trained("CNF", sets[-1], seeds[0])]
    return Results(
        trials=pd.DataFrame(trials),
        rates=taken,
        history=_rows({flow: runs[flow.name] for flow in flows if flow.kind == "CNF"}),
        likelihoods=measuring.likelihoods(held_out),
        gaps=measuring.gaps(held_out),
        reversal=measuring.reversal(reversal_tolerances),
        costs=measuring.costs(held_out, repeats),
        masses=measuring.masses(),
        densities=measuring.densities(shares, pixels),
        frames=measuring.frames({"animation": last, "picture": drawn}),
        picture_history=picture.table(),
        flows={flow[:2]: load_flow(point, by_weights) for flow, point in points.items() if flow.seed == seeds[0]},
    )


class _Trained(NamedTuple):
    """Which flow, of those that are trained."""

    kind: str
    set: str
    seed: int

    @property
    def name(self) -> str:
        """Of the run of its training."""
        return f"{self.kind}-{self.set.replace(' ', '-')}-{self.seed}"


@dataclass(frozen=True)
class _Training:
    """How flows are trained, but for the learning rate.

    Attributes:
        store: of the runs.
        flows: which ones.
        sizes: layers and units, by kind.
        recipes: of both kinds; see `reproduction.experiments.flow_runs.recipes`.
        solver: of the continuous ones.
        compiled, how: what is bound.
    """

    store: Store
    flows: Sequence[_Trained]
    sizes: Mapping[str, int]
    recipes: Mapping[str, Mapping[str, Any]]
    solver: Mapping[str, Any]
    compiled: bool
    how: Mapping[str, Any]

    def all(
        self, ranked: Mapping[str, Mapping[str, float]], sets: Sequence[str]
    ) -> tuple[dict[str, float], dict[str, Run]]:
        """The learning rate of each kind, the best one that is stable, and the runs by name."""
        layers = {"sets": sets, "layers": self.sizes["NF"], "training": self.recipes["NF"]}
        units = {"sets": sets, "units": self.sizes["CNF"], "training": self.recipes["CNF"], "solver": self.solver}
        first, layered = first_stable(
            self.store, planar_likelihood_runs, "NF", ranked["NF"], layers, self.train_layers
        )
        second, solved = first_stable(self.store, likelihood_run, "CNF", ranked["CNF"], units, self.train_units)
        return {"NF": first, "CNF": second}, {**layered, **solved}

    def train_layers(self, rate: float) -> dict[str, Run]:
        """Planar flows, which are cheaper to train at once."""
        common = {"layers": self.sizes["NF"], "training": {**self.recipes["NF"], "rate": rate}}
        group = {
            flow.name: {"points_of": flow.set, "seed": flow.seed, **common}
            for flow in self.flows
            if flow.kind == "NF"
        }
        return self.store.obtain_together(planar_likelihood_runs, {"NF": group}, label="planar flows", **self.how)

    def train_units(self, rate: float) -> dict[str, Run]:
        """Continuous flows."""
        points = {
            flow.name: {"points_of": flow.set, "seed": flow.seed, **self._units(rate)}
            for flow in self.flows
            if flow.kind == "CNF"
        }
        return self.store.obtain(
            likelihood_run, points, label="continuous flows", compiled=self.compiled, **self.how
        )

    def train_picture(self, seed: int, iterations: int, rate: float) -> Run:
        """The continuous flow of a picture."""
        common = self._units(rate)
        common["training"]["iterations"] = iterations
        point = {"letters": LETTERS, "seed": seed, **common}
        found = self.store.obtain(
            picture_run, {"picture": point}, label="picture", compiled=self.compiled, **self.how
        )
        return found["picture"]

    def _units(self, rate: float) -> dict[str, Any]:
        training = {**self.recipes["CNF"], "rate": rate}
        return {"units": self.sizes["CNF"], "training": training, "solver": self.solver}


@dataclass(frozen=True)
class _Measuring:
    """What is measured of trained flows.

    Attributes:
        store: of the runs.
        points: what identifies each flow.
        runs: trainings, by the checksum of their weights.
        seed: the first one.
    """

    store: Store
    points: Mapping[_Trained, Point]
    runs: Mapping[str, Run]
    seed: int

    def likelihoods(self, held_out: int) -> pd.DataFrame:
        """Of all flows."""
        points = {
            flow: {"flow": point, "points_of": flow.set, "held_out": held_out}
            for flow, point in self.points.items()
        }
        return _rows(self._obtain(log_likelihood_run, "log_likelihood", points))

    def gaps(self, held_out: int) -> pd.DataFrame:
        """Of all flows of sets whose density is known."""
        points = {
            flow: {"flow": point, "points_of": flow.set, "held_out": held_out}
            for flow, point in self.points.items()
            if flow.set in TRUE_DENSITIES
        }
        return _rows(self._obtain(gap_run, "gap", points))

    def reversal(self, tolerances: Sequence[float]) -> pd.DataFrame:
        """Of all continuous flows."""
        points = {
            flow: {"flow": point, "tolerances": list(tolerances)}
            for flow, point in self.points.items()
            if flow.kind == "CNF"
        }
        return _rows(self._obtain(reversal_run, "reversal", points))

    def costs(self, held_out: int, repeats: int) -> pd.DataFrame:
        """Of all continuous flows."""
        points = {
            flow: {"flow": point, "points_of": flow.set, "held_out": held_out, "repeats": repeats}
            for flow, point in self.points.items()
            if flow.kind == "CNF"
        }
        return _rows(self._obtain(sampling_cost_run, "sampling_cost", points, alone=True))

    def masses(self) -> pd.DataFrame:
        """Of the flows of the first seed."""
        points = {
            flow: {"flow": point, "window": 8, "pixels": 200}
            for kind in ("CNF", "NF")
            for flow, point in self._first(kind).items()
        }
        return _rows(self._obtain(mass_run, "mass", points))

    def densities(self, shares: Sequence[float], pixels: int) -> dict[str, Tensor]:
        """Of the continuous flows of the first seed, by set."""
        shown = {"window": EDGE, "pixels": pixels, "shares": list(shares)}
        points = {flow: {"flow": point, **shown} for flow, point in self._first("CNF").items()}
        return {flow.set: _tensor(run) for flow, run in self._obtain(densities_run, "density", points).items()}

    def frames(self, flows: Mapping[str, Point]) -> dict[str, Tensor]:
        """Of moving pictures, by name."""
        shown = {"window": EDGE, "pixels": FRAME_PIXELS, "shares": [(k + 1) / FRAMES for k in range(FRAMES)]}
        points = {f"frames/{name}": {"flow": point, **shown} for name, point in flows.items()}
        runs = self.store.obtain(densities_run, points, label="frames", runs=self.runs)
        return {name: _tensor(runs[f"frames/{name}"]) for name in flows}

    def _first(self, kind: str) -> dict[_Trained, Point]:
        return {x: point for x, point in self.points.items() if x.kind == kind and x.seed == self.seed}

    def _obtain(
        self, function: Callable[..., Files], what: str, points: Mapping[_Trained, Point], alone: bool = False
    ) -> dict[_Trained, Run]:
        named = {f"{what}/{flow.name}": point for flow, point in points.items()}
        runs = self.store.obtain(function, named, label=what.replace("_", " "), alone=alone, runs=self.runs)
        return {flow: runs[f"{what}/{flow.name}"] for flow in points}


def _rows(runs: Mapping[_Trained, Run]) -> pd.DataFrame:
    """The tables of runs below each other, with columns for what they belong to."""
    tables = []
    for flow, run in runs.items():
        belongs = pd.DataFrame({"flow": flow.kind, "set": flow.set, "seed": flow.seed}, [0])
        tables.append(belongs.merge(run.table(), how="cross"))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["flow", "set", "seed"])


def _tensor(run: Run) -> Tensor:
    return read_tensors(run.file(".safetensors"))["density"].float()
