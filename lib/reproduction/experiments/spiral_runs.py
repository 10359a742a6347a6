"""What the trainings of notebooks 08 and 12 have in common: models on spirals, several at once, and their tests."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch

from reproduction.data.spirals import RECIPES, WINDOWS, Spirals
from reproduction.experiments.search import first_stable, ranked
from reproduction.files import read_json
from reproduction.measure.prediction import latent_ode_errors, rnn_errors
from reproduction.results import Run, Store, csv_bytes
from reproduction.sweep import Point
from reproduction.training.loop import read_history
from reproduction.training.spirals import (
    BASE,
    TEST,
    Setting,
    latent_ode_runs,
    latent_ode_trial,
    load_latent_ode,
    load_rnn,
    rnn_runs,
    rnn_trial,
    run_name,
    spirals_for,
)

__all__ = ["LATENT_ODE", "PAPERS_RNN", "RNNS", "Change", "Plan", "trained_as", "validation_error"]

LATENT_ODE = "latent ODE"

PAPERS_RNN = "RNN"

RNNS = {PAPERS_RNN: False, "RNN with times": True}
"""The baselines, and whether they are told the time to the next observation."""

TOGETHER = 10
"""How many models are trained at once, at most: those whose seeds differ in the last digit only."""

Change = Mapping[str, Any]
"""What a candidate changes of the recipe for training."""


class Plan(NamedTuple):
    """What all trainings have in common.

    Attributes:
        store: of the notebook.
        recipe: for training.
        series: how many to train and to validate on.
        device: where to train.
    """

    store: Store
    recipe: Mapping[str, Any]
    series: Mapping[str, int]
    device: torch.device

    def settings(self, model: str, change: Change, setting: Setting = BASE) -> Point:
        """Of a training, but for observations and seed: what a recurrent network does not use is left out."""
        training = {**self.recipe, **change}
        if model == LATENT_ODE:
            return {"setting": asdict(setting), "training": training, **self.series}
        data = {"recipe": setting.recipe, "noise": setting.noise}
        used = {name: training[name] for name in ("batch_size", "lr", "steps")}
        return {"setting": data, "with_times": RNNS[model], "training": used, **self.series}

    @property
    def how(self) -> dict[str, Any]:
        """What does not identify a training."""
        return {"device": self.device, "checkpoints": self.store.checkpoints}

    def train(
        self, model: str, runs: Mapping[str, tuple[Point, int, int]], label: str
    ) -> tuple[dict[str, Point], dict[str, Run]]:
        """The settings of trainings, and their runs.

        Args:
            model: a latent ODE, or one of `RNNS`.
            runs: by name, of each training its `settings`, observations and seed.
            label: name in the progress bar.
        """

        def alike(name: str) -> str:
            settings, observations, seed = runs[name]
            return f"{settings} {observations} {seed // TOGETHER}"

        groups: dict[str, dict[str, Point]] = {}
        for key, members in groupby(sorted(runs, key=alike), key=alike):
            names = sorted(members, key=lambda name: runs[name][2])
            together = [runs[name][2] for name in names]
            groups[key] = {
                name: {**settings, "observations": observations, "seed": seed, "together": together}
                for name in names
                for settings, observations, seed in [runs[name]]
            }
        function = latent_ode_runs if model == LATENT_ODE else rnn_runs
        found = self.store.obtain_together(function, groups, label=label, **self.how)
        points = {name: point for group in groups.values() for name, point in group.items()}
        return {name: points[name] for name in runs}, {name: found[name] for name in runs}

    def searched(
        self, recipes: Mapping[str, Sequence[Change]], steps: int, tried: Mapping[str, Any]
    ) -> tuple[dict[str, list[Change]], list[dict[str, Any]]]:
        """The candidates of each model, the best one first, and their trials; see `ranked`."""
        trials: dict[str, Run] = {}
        for model, changes in recipes.items():
            points = {
                _trial_name(model, change): {**self.settings(model, {"steps": steps, **change}), **tried}
                for change in (changes if len(changes) > 1 else ())
            }
            function = latent_ode_trial if model == LATENT_ODE else rnn_trial
            trials |= self.store.obtain(function, points, label=f"{model}, trials", **self.how)

        def losses(model: str, change: Change) -> dict[str, float]:
            table = trials[_trial_name(model, change)].table()
            return dict(zip(table["name"], table["loss"], strict=True))

        return ranked(recipes, losses)

    def trained(
        self,
        model: str,
        candidates: Sequence[Change],
        steps: int,
        observations: Sequence[int],
        seeds: Sequence[int],
    ) -> tuple[Change, list[dict[str, Any]]]:
        """The first candidate that diverges with no seed, and a row for each model that was trained with it."""
        function = latent_ode_runs if model == LATENT_ODE else rnn_runs
        kind = "base" if model == LATENT_ODE else model
        names = {run_name(kind, n, seed): (n, seed) for n in observations for seed in seeds}

        def train(change: Change) -> tuple[dict[str, Point], dict[str, Run]]:
            settings = self.settings(model, {"steps": steps, **change})
            return self.train(model, {name: (settings, *own) for name, own in names.items()}, model)

        common = {**self.settings(model, {"steps": steps}), "observations": list(observations)}
        named = {_label(change): change for change in candidates}
        change, (points, runs) = first_stable(self.store, function, model, named, common, train)
        found = self.tested(model, points, runs)
        rows = [{"model": model, **_numbers(*names[name]), **errors} for name, errors in found.items()]
        return change, rows

    def shorter(
        self, model: str, change: Change, observations: Sequence[int], seeds: Sequence[int]
    ) -> list[dict[str, Any]]:
        """A row for each recurrent network of a training of other length."""
        settings, steps = self.settings(model, change), change["steps"]
        names = {
            f"lengths/{run_name(f'{model} {steps}', n, seed)}": (n, seed) for n in observations for seed in seeds
        }
        runs = {name: (settings, *own) for name, own in names.items()}
        found = self.tested(model, *self.train(model, runs, f"{model}, {steps} steps"))
        how = {"model": model, "steps": steps}
        return [{**how, **_numbers(*names[name]), **errors} for name, errors in found.items()]

    def varied(
        self,
        changed: Mapping[str, tuple[Setting, Change]],
        best: Change,
        observations: int,
        seeds: Sequence[int],
    ) -> list[dict[str, Any]]:
        """A row for each variant of the latent ODE and seed."""
        runs: dict[str, tuple[Point, int, int]] = {}
        names: dict[str, dict[str, Any]] = {}
        for name, (setting, change) in changed.items():
            settings = self.settings(LATENT_ODE, {**best, **change}, setting)
            for seed in seeds:
                run = f"variants/{run_name(name, observations, seed)}"
                runs[run] = (settings, observations, seed)
                names[run] = {"variant": name, "seed": seed}
        found = self.tested(LATENT_ODE, *self.train(LATENT_ODE, runs, "variants"))
        return [{**names[run], **errors} for run, errors in found.items()]

    def tested(
        self, model: str, points: Mapping[str, Point], runs: Mapping[str, Run]
    ) -> dict[str, dict[str, float]]:
        """Errors of trained models on test series, and the end of their history."""
        weights = {name: run.identity(".safetensors") for name, run in runs.items()}
        tests = self.store.obtain(
            _errors,
            {
                f"errors/{name}": {
                    "model": model,
                    **{key: points[name][key] for key in ("setting", "observations", "seed")},
                    "series": self.series["validation_series"],
                    "weights": weights[name],
                }
                for name in runs
            },
            label=f"{model}, errors",
            runs={weights[name]: run for name, run in runs.items()},
        )
        found = {}
        for name, run in runs.items():
            last = run.table().iloc[-1]
            found[name] = {
                **tests[f"errors/{name}"].table().iloc[0].to_dict(),
                "validation": last["beyond"],
                "NFE": last["nfe_forward"],
                "ms per step": 1e3 * last["seconds"] / points[name]["training"]["steps"],
            }
        return found


def trained_as(weights: Path) -> dict[str, Any]:
    """How another notebook has trained the model with these weights: `training` of `latent_odes_for`.

    Raises:
        FileError: there is no such record.
    """
    records = read_json(weights.parent / "provenance.json", f"restore it, or compute {weights.parent.name} again")
    training: dict[str, Any] = records[weights.stem]["settings"]["training"]
    return training


def validation_error(weights: Path) -> float:
    """The RMSE beyond the window on validation series at the end of that training."""
    return read_history(weights.with_suffix(".csv"))[-1]["beyond"]


def _numbers(observations: int, seed: int) -> dict[str, int]:
    return {"observations": observations, "seed": seed}


def _label(change: Change) -> str:
    """Of a candidate, in names of files."""
    return "-".join(f"{name}-{value:g}" for name, value in change.items()) or "unchanged"


def _trial_name(model: str, change: Change) -> str:
    return f"search/{model.replace(' ', '-')}-{_label(change)}"


def _errors(
    *,
    model: str,
    setting: Mapping[str, Any],
    observations: int,
    seed: int,
    series: int,
    weights: str,
    runs: Mapping[str, Run],
) -> dict[str, bytes]:
    """The test series are looked at here, and nowhere before."""
    chosen, file = Setting(**setting), runs[weights].file(".safetensors")
    measure: Callable[[Spirals], Mapping[str, float]]
    if model == LATENT_ODE:
        measure = partial(latent_ode_errors, load_latent_ode(chosen, file))
    else:
        measure = partial(rnn_errors, load_rnn(RNNS[model], file))
    errors = {
        where: measure(spirals_for(chosen, series, observations, seed, TEST, where))
        for where in (WINDOWS if RECIPES[chosen.recipe].goes_on else ["inside"])
    }
    others = {where: found["beyond"] for where, found in errors.items() if where != "inside"}
    return {".csv": csv_bytes([{**errors["inside"], **others}])}
