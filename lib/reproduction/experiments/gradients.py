"""Notebook 16: does the way to differentiate the solve matter for training?"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from neural_ode.errors import needs
from reproduction.results import Run
from reproduction.training.gradient_choices import curve_run, digits_run, flow_run
from reproduction.workspace import Workspace, choose_device

with needs("notebooks"):
    import pandas as pd

__all__ = ["Results", "last_tested", "results"]

HIDDEN = 32
"""Width of the hypernetwork, as in notebook 07."""

MOST_STEPS = 1000
"""Of a solve to learn a curve, between two outputs: many times what a trained curve takes at the highest rate."""


class Results(NamedTuple):
    """What notebook 16 shows: tables with a row for each way (`name`), seed and epoch.

    Attributes:
        digits: see `reproduction.training.gradient_choices.digits_run`.
        flows: see `flow_run`.
        curves: see `curve_run`; with the `rate`.
    """

    digits: pd.DataFrame
    flows: pd.DataFrame
    curves: pd.DataFrame


def results(
    work: Workspace,
    *,
    ways: Sequence[str],
    seeds: Sequence[int],
    dimensions: int,
    digits_hidden: int,
    train_size: int,
    test_size: int,
    digits_training: Mapping[str, float],
    points_of: str,
    units: int,
    held_out: int,
    flow_training: Mapping[str, float],
    rates: Sequence[float],
    hidden: int,
    starts: int,
    curve_training: Mapping[str, float],
    device: str,
) -> Results:
    """Train everything; what is there is read.

    Args:
        work: of the notebook.
        ways: names in `reproduction.training.gradient_choices.WAYS`.
        seeds: of all trainings.
        dimensions, digits_hidden, train_size, test_size, digits_training: see `digits_run`.
        points_of, units, held_out, flow_training: see `flow_run`.
        rates, hidden, starts, curve_training: see `curve_run`.
        device: where to train.
    """
    coarse, fine = {"rtol": 1e-3, "atol": 1e-3}, {"rtol": 1e-5, "atol": 1e-5}
    how: dict[str, Any] = {"device": choose_device(device), "checkpoints": work.store.checkpoints}
    common: dict[str, Any] = {"ways": list(ways)}

    images: dict[str, Any] = {"dimensions": dimensions, "hidden": digits_hidden}
    images |= {"train_size": train_size, "test_size": test_size}
    images |= {"training": _whole(digits_training), "solver": coarse, **common}
    digits = work.store.obtain(
        digits_run,
        {f"digits-{seed}": {"seed": seed, **images} for seed in seeds},
        label="digits",
        alone=True,
        data=work.root / "data" / "mnist",
        **how,
    )
    plane: dict[str, Any] = {"points_of": points_of, "units": units, "hidden": HIDDEN, "held_out": held_out}
    plane |= {"training": _whole(flow_training), "solver": fine, **common}
    flows = work.store.obtain(
        flow_run, {f"flow-{seed}": {"seed": seed, **plane} for seed in seeds}, label="flows", alone=True, **how
    )
    drawn: dict[str, Any] = {"hidden": hidden, "starts": starts, "training": _whole(curve_training), **common}
    drawn |= {"solver": {**coarse, "max_steps": MOST_STEPS}}
    grid = {f"curve-{rate:g}-{seed}": {"rate": rate, "seed": seed, **drawn} for seed in seeds for rate in rates}
    curves = work.store.obtain(curve_run, grid, label="curves", alone=True, **how)
    return Results(digits=_rows(digits), flows=_rows(flows), curves=_rows(curves))


def last_tested(table: pd.DataFrame) -> pd.DataFrame:
    """The last row of each training, by `name` and `seed`; where its test failed, with the test of before."""
    return table.sort_values("epoch").groupby(["name", "seed"], sort=False).last()


def _rows(runs: Mapping[str, Run]) -> pd.DataFrame:
    """The tables of all runs, with the settings that tell them apart."""
    tables = []
    for run in runs.values():
        own = {name: value for name, value in run.record["settings"].items() if name in ("seed", "rate")}
        tables.append(run.table().assign(**own))
    return pd.concat(tables)


def _whole(training: Mapping[str, float]) -> dict[str, float]:
    """The training with whole numbers where they are meant."""
    return {name: value if name == "lr" else int(value) for name, value in training.items()}
