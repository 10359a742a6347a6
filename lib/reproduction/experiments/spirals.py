"""Notebook 08: the models of Table 2, their errors on test series, and what changes them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any, NamedTuple

import torch

from neural_ode.errors import UnknownNameError, needs
from reproduction.data.spirals import Spirals
from reproduction.experiments.search import first_stable, ranked
from reproduction.measure.prediction import latent_ode_errors, rnn_errors
from reproduction.results import Files, Run, Store, csv_bytes
from reproduction.sweep import Point
from reproduction.training.spirals import (
    BASE,
    TEST,
    Setting,
    latent_ode_run,
    latent_ode_trial,
    load_latent_ode,
    load_rnn,
    rnn_run,
    rnn_trial,
    run_name,
    spirals_for,
)
from reproduction.workspace import Workspace, choose_device

with needs("notebooks"):
    import pandas as pd

__all__ = ["LATENT_ODE", "RNNS", "VARIANTS", "Results", "results"]

LATENT_ODE = "latent ODE"

RNNS = {"RNN": False, "RNN with times": True}
"""The baselines, and whether they are told the time to the next observation."""

VARIANTS = {
    "noise 0.05": replace(BASE, noise=0.05),
    "noise 0.3": replace(BASE, noise=0.3),
    "two hidden layers": replace(BASE, layers=2),
    "mirrored spirals": replace(BASE, recipe="mirrored"),
    "no times in recognition": replace(BASE, with_times=False),
    "double precision": replace(BASE, double=True),
    "tolerance 1.5e-8": replace(BASE, tolerance=1.5e-8, double=True),
}
"""Each differs from `BASE` in one respect, but for the paper's tolerance, which needs double precision."""

Change = Mapping[str, Any]
"""What a candidate changes of the recipe for training."""


class Results(NamedTuple):
    """What notebook 08 shows.

    Attributes:
        errors: a row for each model of Table 2: `model`, `observations`, `seed`, its errors on test series (see
            `latent_ode_errors` and `rnn_errors`; `all windows` is `beyond` for windows that may start anywhere, so
            that points beyond them lie where training never was), and of the end of its training `validation`
            (`beyond` on validation series), `NFE` and `ms per step`.
        variants: a row for each variant and seed: `variant`, and the same columns.
        trials: a row for each candidate that was tried; see `ranked`.
        chosen: the candidate that each model was trained with.
    """

    errors: pd.DataFrame
    variants: pd.DataFrame
    trials: pd.DataFrame
    chosen: dict[str, Change]


def results(
    work: Workspace,
    *,
    observations: Sequence[int],
    seeds: Sequence[int],
    train_series: int,
    test_series: int,
    batch_size: int,
    lr: float,
    steps: int,
    rnn_steps: int,
    kl_warmup: int,
    noise_factor: float,
    recipes: Mapping[str, Sequence[Change]],
    search_seeds: Sequence[int],
    search_steps: int,
    variants: Sequence[str],
    schedules: Mapping[str, Change],
    variant_observations: int,
    variant_seeds: Sequence[int],
    variant_steps: int,
    device: str,
) -> Results:
    """Search for recipes, train every model with every seed and the variants, and test them; what is there is read.

    Args:
        work: of the notebook.
        observations: of a series, several numbers.
        seeds: of data and trainings.
        train_series: how many to train on.
        test_series: how many to validate, and to test, on.
        batch_size, lr, kl_warmup, noise_factor: see `reproduction.training.spirals.latent_ode_for`.
        steps, rnn_steps: of the trainings of latent ODEs and of recurrent networks.
        recipes: candidates by model: what they change of the recipe above.
        search_seeds, search_steps: of the trials of candidates.
        variants: names in `VARIANTS`.
        schedules: further variants by name: what they change of the recipe that was chosen.
        variant_observations, variant_seeds, variant_steps: of the trainings of variants; trials have as many
            observations.
        device: where to train.

    Raises:
        UnknownNameError: there is no such model or variant.
        NonFiniteError: a model's training diverges with every candidate.
    """
    for name in recipes:
        if name not in (LATENT_ODE, *RNNS):
            raise UnknownNameError("model", name, [LATENT_ODE, *RNNS])
    for name in variants:
        if name not in VARIANTS:
            raise UnknownNameError("variant", name, VARIANTS)
    recipe = {"batch_size": batch_size, "lr": lr, "kl_warmup": kl_warmup, "noise_factor": noise_factor}
    series = {"series": train_series, "validation_series": test_series}
    plan = _Plan(work.store, recipe, series, choose_device(device))
    tried = {"seeds": list(search_seeds), "observations": variant_observations}
    order, trials = plan.searched(recipes, search_steps, tried)

    rows, chosen = [], {}
    for model, candidates in order.items():
        length = steps if model == LATENT_ODE else rnn_steps
        chosen[model], found = plan.trained(model, candidates, length, observations, seeds)
        rows += found

    best = {**chosen.get(LATENT_ODE, {}), "steps": variant_steps}
    changed: dict[str, tuple[Setting, Change]] = {"base": (BASE, {})}
    changed |= {name: (VARIANTS[name], {}) for name in variants}
    changed |= {name: (BASE, change) for name, change in schedules.items()}
    varied = plan.varied(changed, best, variant_observations, variant_seeds)
    return Results(pd.DataFrame(rows), pd.DataFrame(varied), pd.DataFrame(trials), chosen)


class _Plan(NamedTuple):
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

    def obtain(self, function: Callable[..., Files], points: Mapping[str, Point], label: str) -> dict[str, Run]:
        how: dict[str, Any] = {"device": self.device, "checkpoints": self.store.checkpoints}
        return self.store.obtain(function, points, label=label, **how)

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
            trials |= self.obtain(function, points, f"{model}, trials") if points else {}

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
        function = latent_ode_run if model == LATENT_ODE else rnn_run
        names = {
            run_name("base" if model == LATENT_ODE else model, n, seed): {"observations": n, "seed": seed}
            for n in observations
            for seed in seeds
        }

        def train(change: Change) -> tuple[dict[str, Point], dict[str, Run]]:
            settings = self.settings(model, {"steps": steps, **change})
            points: dict[str, Point] = {name: {**settings, **own} for name, own in names.items()}
            return points, self.obtain(function, points, model)

        common = {**self.settings(model, {"steps": steps}), "observations": list(observations)}
        named = {_label(change): change for change in candidates}
        change, (points, runs) = first_stable(self.store, function, model, named, common, train)
        found = self.tested(model, points, runs)
        return change, [{"model": model, **names[name], **errors} for name, errors in found.items()]

    def varied(
        self,
        changed: Mapping[str, tuple[Setting, Change]],
        best: Change,
        observations: int,
        seeds: Sequence[int],
    ) -> list[dict[str, Any]]:
        """A row for each variant of the latent ODE and seed."""
        points: dict[str, Point] = {}
        names: dict[str, dict[str, Any]] = {}
        for name, (setting, change) in changed.items():
            settings = self.settings(LATENT_ODE, {**best, **change}, setting)
            for seed in seeds:
                run = f"variants/{run_name(name, observations, seed)}"
                points[run] = {**settings, "observations": observations, "seed": seed}
                names[run] = {"variant": name, "seed": seed}
        found = self.tested(LATENT_ODE, points, self.obtain(latent_ode_run, points, "variants"))
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
    test, anywhere = (
        spirals_for(chosen, series, observations, seed, TEST, inside=inside) for inside in (True, False)
    )
    return {".csv": csv_bytes([{**measure(test), "all windows": measure(anywhere)["beyond"]}])}
