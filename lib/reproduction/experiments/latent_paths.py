"""Notebook 12: why latent ODEs fail to extrapolate, and what makes them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from neural_ode.errors import UnknownNameError, needs
from reproduction.data.spirals import Spirals
from reproduction.experiments.search import first_stable, ranked_by_runs
from reproduction.experiments.spiral_runs import LATENT_ODE, Change, Plan, trained_as, validation_error
from reproduction.measure.joining import Joining, joining
from reproduction.results import Run, csv_bytes
from reproduction.sweep import Point
from reproduction.training.spirals import (
    BASE,
    TEST,
    Setting,
    latent_ode_runs,
    latent_ode_trial,
    load_latent_ode,
    run_name,
    spirals_for,
)
from reproduction.workspace import Workspace, choose_device

with needs("notebooks"):
    import pandas as pd

__all__ = ["NOTEBOOK", "REMEDIES", "Results", "results"]

NOTEBOOK = "08_spirals"
"""Where the paper's model was trained."""

PAPERS = "paper"

REMEDIES = {
    "noise as it is": BASE,
    "path penalty": BASE,
    "consistency": BASE,
    "bounded speed": replace(BASE, bounded=True),
    "two hidden layers": replace(BASE, layers=2),
    "centred spirals": replace(BASE, recipe="centred"),
    "inward spirals": replace(BASE, recipe="inward"),
    "contributed example": replace(BASE, recipe="example, its windows", noise=0.3, layers=2, with_times=False),
}
"""What each changes of the model or of the data; what it changes of the training is a parameter."""

DIRECTIONS = {"both": None, "clockwise": True, "counter-clockwise": False}


class Results(NamedTuple):
    """What notebook 12 shows.

    Attributes:
        paths: a row for each model and direction of the series: `remedy` (`paper` for the paper's model),
            `observations`, `seed`, `direction`, the fields of `Joining` and `gap`, and at the end of its training
            `validation`.
        errors: a row for each model of a remedy, as those of notebook 08.
        trials: a row for each candidate that was tried; see `ranked_by_runs`.
        chosen: what each remedy changes of the paper's training.
    """

    paths: pd.DataFrame
    errors: pd.DataFrame
    trials: pd.DataFrame
    chosen: dict[str, Change]


def results(
    work: Workspace,
    *,
    observations: Sequence[int],
    seeds: Sequence[int],
    remedies: Mapping[str, Mapping[str, Change]],
    remedy_observations: Mapping[str, Sequence[int]],
    remedy_seeds: Sequence[int],
    steps: int,
    search_seeds: Sequence[int],
    search_steps: int,
    search_observations: int,
    train_series: int,
    test_series: int,
    device: str,
) -> Results:
    """Search for settings of remedies, train models with them, and measure how paths join; what is there is read.

    Args:
        work: of the notebook.
        observations: of a series, several numbers.
        seeds: of the models of notebook 08.
        remedies: candidates by name of the remedy and of the candidate: what they change of the training in
            notebook 08.
        remedy_observations: by name of the remedy; `observations` for one without.
        remedy_seeds: of the trainings with a remedy.
        steps: of these trainings, unless a remedy says otherwise.
        search_seeds, search_steps, search_observations: of the trials of candidates.
        train_series, test_series: how many to train on, and to validate and test on.
        device: where to train.

    Raises:
        UnknownNameError: there is no such remedy.
        MissingResultError: notebook 08 has not trained a model.
        NonFiniteError: training diverges with every candidate.
    """
    for name in remedies:
        if name not in REMEDIES:
            raise UnknownNameError("remedy", name, REMEDIES)
    files = {
        (n, seed): work.result(NOTEBOOK, f"{run_name('base', n, seed)}.safetensors")
        for n in observations
        for seed in seeds
    }
    recipe = trained_as(next(iter(files.values())))
    series = {"series": train_series, "validation_series": test_series}
    plan = Plan(work.store, recipe, series, choose_device(device))
    tried = {"seeds": list(search_seeds), "observations": search_observations}

    def trial(remedy: str, change: Change) -> Point:
        shortened = {**change, "steps": min(search_steps, change.get("steps", search_steps))}
        return {**plan.settings(LATENT_ODE, shortened, REMEDIES[remedy]), **tried}

    order, trials = ranked_by_runs(work.store, latent_ode_trial, remedies, trial, **plan.how)
    models = [_Model(PAPERS, BASE, n, seed, file, validation_error(file)) for (n, seed), file in files.items()]
    chosen, rows = {}, []
    for remedy, candidates in order.items():
        numbers = remedy_observations.get(remedy, observations)
        chosen[remedy], trained, errors = _trained(plan, remedy, candidates, steps, numbers, remedy_seeds)
        models += trained
        rows += errors
    return Results(_paths(plan, models), pd.DataFrame(rows), pd.DataFrame(trials), chosen)


class _Model(NamedTuple):
    remedy: str
    setting: Setting
    observations: int
    seed: int
    file: Path
    validation: float


def _trained(
    plan: Plan,
    remedy: str,
    candidates: Mapping[str, Change],
    steps: int,
    observations: Sequence[int],
    seeds: Sequence[int],
) -> tuple[Change, list[_Model], list[dict[str, Any]]]:
    """The first candidate that diverges with no seed, the models that were trained with it, and their errors."""
    setting = REMEDIES[remedy]
    names = {f"{run_name(remedy, n, seed)}": (n, seed) for n in observations for seed in seeds}

    def train(change: Change) -> tuple[dict[str, Point], dict[str, Run]]:
        settings = plan.settings(LATENT_ODE, {"steps": steps, **change}, setting)
        return plan.train(LATENT_ODE, {name: (settings, *own) for name, own in names.items()}, remedy)

    common = {**plan.settings(LATENT_ODE, {"steps": steps}, setting), "observations": list(observations)}
    change, (points, runs) = first_stable(plan.store, latent_ode_runs, remedy, candidates, common, train)
    tested = plan.tested(LATENT_ODE, points, runs)
    rows, models = [], []
    for name, (n, seed) in names.items():
        rows.append({"remedy": remedy, "observations": n, "seed": seed, **tested[name]})
        file = runs[name].file(".safetensors")
        models.append(_Model(remedy, setting, n, seed, file, tested[name]["validation"]))
    return change, models, rows


def _paths(plan: Plan, models: Sequence[_Model]) -> pd.DataFrame:
    """How the paths of the models join."""
    checksums = [hashlib.sha256(model.file.read_bytes()).hexdigest() for model in models]
    names = [f"paths/{run_name(model.remedy, model.observations, model.seed)}" for model in models]
    points: dict[str, Point] = {
        name: {
            "setting": asdict(model.setting),
            "observations": model.observations,
            "seed": model.seed,
            "series": plan.series["validation_series"],
            "weights": checksum,
        }
        for name, model, checksum in zip(names, models, checksums, strict=True)
    }
    files = {checksum: model.file for checksum, model in zip(checksums, models, strict=True)}
    runs = plan.store.obtain(_joining_run, points, label="paths", files=files)
    tables = [
        runs[name]
        .table()
        .assign(**{x: getattr(model, x) for x in ("remedy", "observations", "seed", "validation")})
        for name, model in zip(names, models, strict=True)
    ]
    return pd.concat(tables, ignore_index=True)


def _joining_run(
    *,
    setting: Mapping[str, Any],
    observations: int,
    seed: int,
    series: int,
    weights: str,
    files: Mapping[str, Path],
) -> dict[str, bytes]:
    """How the paths of a model join, on test series of each direction, as a run."""
    chosen = Setting(**setting)
    model = load_latent_ode(chosen, files[weights])
    data = spirals_for(chosen, series, observations, seed, TEST)
    rows = []
    for direction, clockwise in DIRECTIONS.items():
        part: Spirals = data if clockwise is None else data.rows(data.clockwise == clockwise)
        with torch.no_grad():
            found: Joining = joining(model, part)
        rows.append({"direction": direction, **found._asdict(), "gap": found.gap})
    return {".csv": csv_bytes(rows)}
