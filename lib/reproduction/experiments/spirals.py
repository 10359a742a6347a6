"""Notebook 08: the models of Table 2, their errors on test series, and what changes them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from neural_ode.errors import UnknownNameError, needs
from reproduction.experiments.spiral_runs import LATENT_ODE, PAPERS_RNN, RNNS, Change, Plan
from reproduction.training.spirals import BASE, Setting
from reproduction.workspace import Workspace, choose_device

with needs("notebooks"):
    import pandas as pd

__all__ = ["LATENT_ODE", "PAPERS_RNN", "RNNS", "VARIANTS", "Results", "results"]

VARIANTS = {
    "noise 0.05": replace(BASE, noise=0.05),
    "noise 0.3": replace(BASE, noise=0.3),
    "no times in recognition": replace(BASE, with_times=False),
    "double precision": replace(BASE, double=True),
    "tolerance 1.5e-8": replace(BASE, tolerance=1.5e-8, double=True),
}
"""Each differs from `BASE` in one respect, but for the paper's tolerance, which needs double precision."""


class Results(NamedTuple):
    """What notebook 08 shows.

    Attributes:
        errors: a row for each model of Table 2: `model`, `observations`, `seed`, its errors on test series (see
            `latent_ode_errors` and `rnn_errors`; `anywhere` and `outside` are `beyond` for other windows, see
            `draw_spirals`), and of the end of its training `validation` (`beyond` on validation series), `NFE` and
            `ms per step`.
        lengths: the same for the recurrent network of the paper by `steps` of its training.
        variants: a row for each variant and seed: `variant`, and the same columns.
        trials: a row for each candidate that was tried; see `ranked`.
        chosen: the candidate that each model was trained with.
    """

    errors: pd.DataFrame
    lengths: pd.DataFrame
    variants: pd.DataFrame
    trials: pd.DataFrame
    chosen: dict[str, Change]


def results(
    work: Workspace,
    *,
    observations: Sequence[int],
    seeds: Sequence[int],
    rnn_seeds: Sequence[int],
    train_series: int,
    test_series: int,
    batch_size: int,
    lr: float,
    steps: int,
    rnn_steps: int,
    rnn_lengths: Sequence[int],
    kl_warmup: int,
    noise_factor: float,
    compiled: bool,
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
        seeds: of data and trainings of latent ODEs.
        rnn_seeds: of those of recurrent networks.
        train_series: how many to train on.
        test_series: how many to validate, and to test, on.
        batch_size, lr, kl_warmup, noise_factor, compiled: see `reproduction.training.spirals.latent_odes_for`.
        steps, rnn_steps: of the trainings of latent ODEs and of recurrent networks.
        rnn_lengths: steps of further, shorter trainings of the recurrent network that the paper describes.
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
    recipe["compiled"] = compiled
    series = {"series": train_series, "validation_series": test_series}
    plan = Plan(work.store, recipe, series, choose_device(device))
    tried = {"seeds": list(search_seeds), "observations": variant_observations}
    order, trials = plan.searched(recipes, search_steps, tried)

    rows, short, chosen = [], [], {}
    for model, candidates in order.items():
        length, own = (steps, seeds) if model == LATENT_ODE else (rnn_steps, rnn_seeds)
        chosen[model], found = plan.trained(model, candidates, length, observations, own)
        rows += found
        if model == PAPERS_RNN:
            for length in rnn_lengths:
                short += plan.shorter(model, {**chosen[model], "steps": length}, observations, own)

    best = {**chosen.get(LATENT_ODE, {}), "steps": variant_steps}
    changed: dict[str, tuple[Setting, Change]] = {"base": (BASE, {})}
    changed |= {name: (VARIANTS[name], {}) for name in variants}
    changed |= {name: (BASE, change) for name, change in schedules.items()}
    varied = plan.varied(changed, best, variant_observations, variant_seeds)
    errors, lengths, changes, tried_out = (pd.DataFrame(table) for table in (rows, short, varied, trials))
    return Results(errors, lengths, changes, tried_out, chosen)
