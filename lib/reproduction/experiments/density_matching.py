"""Notebook 06: Theorem 1, what width costs, and flows that match a density (Figure 4)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

from neural_ode.errors import needs
from reproduction.experiments.flow_measurements import divergence_run, theorem_run
from reproduction.experiments.flow_runs import candidates, load_flow, measured, recipes, trial_training
from reproduction.experiments.flow_search import matching_trial
from reproduction.experiments.search import first_stable, ranked_by_runs
from reproduction.experiments.width import operations_run, times_run
from reproduction.measure.flow_quality import Flow
from reproduction.results import Run, Store
from reproduction.sweep import Point
from reproduction.training.flows import matching_run, planar_matching_runs
from reproduction.workspace import Workspace, choose_device

with needs("notebooks"):
    import pandas as pd

__all__ = ["Results", "results"]


class Results(NamedTuple):
    """What notebook 06 shows.

    Attributes:
        theorem: of three untrained flows (`flow`) and each `tolerance` the largest `error` of the change of
            log-density; for the Hamiltonian one, how far the log-determinant of the solver's map is from zero.
        operations: arithmetic `operations` for a point's share of the log-density by `work` (`trace`,
            `determinant`) and `width`.
        times: and CPU `seconds`.
        trials: a row for each learning rate that was tried: `model`, `candidate`, the divergence from each target
            and their `mean`.
        rates: the learning rates that were taken, by kind of flow.
        divergences: a row for each flow: `flow` (`NF`, `CNF`), `target`, `size`, `seed`, and `KL` in nats.
        history: a row for each record of the training of each continuous flow.
        planar: a row for the training of each planar flow: `target`, `size`, `seed`, `iterations`, `rate`, and its
            share of the `seconds` of those that were trained together.
        flows: those of the first seed, by kind, target and size.
    """

    theorem: pd.DataFrame
    operations: pd.DataFrame
    times: pd.DataFrame
    trials: pd.DataFrame
    rates: dict[str, float]
    divergences: pd.DataFrame
    history: pd.DataFrame
    planar: pd.DataFrame
    flows: dict[tuple[str, str, int], Flow]


def results(
    work: Workspace,
    *,
    targets: Sequence[str],
    sizes: Sequence[int],
    seeds: Sequence[int],
    continuous: Mapping[str, float],
    planar: Mapping[str, float],
    rates: Mapping[str, Sequence[float]],
    search: Mapping[str, float],
    tolerance: float,
    gradient: str,
    compiled: bool,
    evaluation: int,
    theorem_tolerances: Sequence[float],
    theorem_points: int,
    widths: Sequence[int],
    determinant_widths: Sequence[int],
    width_points: int,
    repeats: int,
    device: str,
) -> Results:
    """Check Theorem 1, count what width costs, train every flow and measure its divergence; what is there is read.

    Args:
        work: of the notebook.
        targets: names in `reproduction.data.densities.TARGETS`.
        sizes: numbers of layers and of hidden units.
        seeds: of the trainings.
        continuous, planar: `iterations`, `batch`, `annealing`, and for continuous flows `hidden` and `records`; see
            `reproduction.training.flows.train_continuous`.
        rates: candidates for the learning rate, for `NF` and `CNF`.
        search: `size` and `seed` of the trials and the `share` of the iterations.
        tolerance, gradient: of the solves.
        compiled: whether the solver's steps are compiled in training.
        evaluation: points for a divergence.
        theorem_tolerances, theorem_points: see `reproduction.experiments.flow_measurements.theorem_run`.
        widths, determinant_widths, width_points, repeats: see `reproduction.experiments.width`.
        device: where to train.
    """
    store = work.store
    shown = {"tolerances": list(theorem_tolerances), "points": theorem_points}
    (theorem,) = store.obtain(theorem_run, {"theorem1": shown}, label="Theorem 1").values()
    wide = {"widths": list(widths), "determinant_widths": list(determinant_widths), "points": width_points}
    (counted,) = store.obtain(operations_run, {"width_operations": wide}, label="operations of width").values()
    timed = {"width_times": {**wide, "repeats": repeats}}
    (times,) = store.obtain(times_run, timed, label="time of width", alone=True).values()

    flows = [_Trained(*one) for one in product(("NF", "CNF"), targets, sizes, seeds)]
    solver = {"rtol": tolerance, "atol": tolerance, "gradient": gradient}
    how = {"device": choose_device(device), "checkpoints": store.checkpoints}
    by_seed = sorted(flows, key=lambda flow: flow.seed)  # so that those of a computation under way can be shown
    training = _Training(store, by_seed, recipes(continuous, planar), solver, compiled, how)

    def trial(kind: str, rate: float) -> Point:
        point = {"kind": kind, "targets": list(targets), "size": int(search["size"]), "seed": int(search["seed"])}
        point |= {"training": trial_training(training.recipes[kind], search["share"], rate)}
        return {**point, "solver": solver if kind == "CNF" else None, "evaluation": evaluation}

    ranked, trials = ranked_by_runs(store, matching_trial, candidates(rates), trial, compiled=compiled, **how)
    grid = {"targets": list(targets), "sizes": list(sizes)}
    taken, runs = training.all(ranked, grid)

    ways: dict[str, dict[str, Any]] = {"NF": {"leads_to": "data"}}
    ways["CNF"] = {"hidden": training.recipes["CNF"]["hidden"], "tolerance": tolerance}
    points = {flow: measured(runs[flow.name], flow.kind, flow.size, **ways[flow.kind]) for flow in flows}
    by_weights = {points[flow]["weights"]: runs[flow.name] for flow in flows}
    tests = {
        f"divergence/{flow.name}": {"flow": point, "target": flow.target, "evaluation": evaluation}
        for flow, point in points.items()
    }
    found = store.obtain(divergence_run, tests, label="divergences", runs=by_weights)
    return Results(
        theorem=theorem.table(),
        operations=counted.table(),
        times=times.table(),
        trials=pd.DataFrame(trials),
        rates=taken,
        divergences=_rows({flow: found[f"divergence/{flow.name}"] for flow in flows}),
        history=_rows({flow: runs[flow.name] for flow in flows if flow.kind == "CNF"}),
        planar=_rows({flow: runs[flow.name] for flow in flows if flow.kind == "NF"}),
        flows={flow[:3]: load_flow(point, by_weights) for flow, point in points.items() if flow.seed == seeds[0]},
    )


class _Trained(NamedTuple):
    """Which flow, of those that are trained."""

    kind: str
    target: str
    size: int
    seed: int

    @property
    def name(self) -> str:
        """Of the run of its training."""
        return "-".join(str(part) for part in self)


@dataclass(frozen=True)
class _Training:
    """How flows are trained, but for the learning rate.

    Attributes:
        store: of the runs.
        flows: which ones.
        recipes: of both kinds; see `reproduction.experiments.flow_runs.recipes`.
        solver: of the continuous ones.
        compiled, how: what is bound.
    """

    store: Store
    flows: Sequence[_Trained]
    recipes: Mapping[str, Mapping[str, Any]]
    solver: Mapping[str, Any]
    compiled: bool
    how: Mapping[str, Any]

    def all(
        self, ranked: Mapping[str, Mapping[str, float]], grid: Mapping[str, Any]
    ) -> tuple[dict[str, float], dict[str, Run]]:
        """The learning rate of each kind, the best one that is stable, and the runs by name."""
        layers = {**grid, "training": self.recipes["NF"]}
        units = {**grid, "training": self.recipes["CNF"], "solver": self.solver}
        first, layered = first_stable(
            self.store, planar_matching_runs, "NF", ranked["NF"], layers, self.train_layers
        )
        second, solved = first_stable(self.store, matching_run, "CNF", ranked["CNF"], units, self.train_units)
        return {"NF": first, "CNF": second}, {**layered, **solved}

    def train_layers(self, rate: float) -> dict[str, Run]:
        """Planar flows; those with as many layers are cheaper to train at once."""
        groups: dict[str, dict[str, Point]] = {}
        for kind, target, size, seed in self.flows:
            if kind == "NF":
                point = {"target": target, "layers": size, "seed": seed}
                point["training"] = {**self.recipes["NF"], "rate": rate}
                groups.setdefault(f"{size}", {})[_Trained(kind, target, size, seed).name] = point
        return self.store.obtain_together(planar_matching_runs, groups, label="planar flows", **self.how)

    def train_units(self, rate: float) -> dict[str, Run]:
        """Continuous flows."""
        common = {"training": {**self.recipes["CNF"], "rate": rate}, "solver": self.solver}
        points = {
            flow.name: {"target": flow.target, "units": flow.size, "seed": flow.seed, **common}
            for flow in self.flows
            if flow.kind == "CNF"
        }
        return self.store.obtain(matching_run, points, label="continuous flows", compiled=self.compiled, **self.how)


def _rows(runs: Mapping[_Trained, Run]) -> pd.DataFrame:
    """The tables of runs below each other, with columns for what they belong to."""
    tables = []
    for flow, run in runs.items():
        belongs = pd.DataFrame(
            {"flow": flow.kind, "target": flow.target, "size": flow.size, "seed": flow.seed}, [0]
        )
        tables.append(belongs.merge(run.table(), how="cross"))
    return pd.concat(tables, ignore_index=True)
