"""Notebook 03: memory of a training step against depth, and what it is traded for."""

from collections.abc import Sequence
from typing import NamedTuple

from neural_ode.errors import needs
from reproduction.experiments.step_memory import CHOICES, NETWORKS, checkpoint_bound, memory_run, memory_sweep
from reproduction.experiments.trade_offs import trade_offs, trade_offs_run
from reproduction.workspace import Workspace, choose_device

with needs("notebooks"):
    import pandas as pd

__all__ = ["CHOICES", "Results", "checkpoint_bound", "memory_sweep", "results", "trade_offs"]


class Results(NamedTuple):
    """What notebook 03 shows.

    Attributes:
        memory: a row for each training step at a depth; see `MemoryPoint`.
        trade_offs: a row for each choice and tolerance; see `TradeOff`.
    """

    memory: pd.DataFrame
    trade_offs: pd.DataFrame


def results(
    work: Workspace,
    *,
    evaluations: Sequence[int],
    batch: int,
    repeats: int,
    tolerances: Sequence[float],
    trade_off_batch: int,
    trade_off_repeats: int,
    device: str,
) -> Results:
    """Measure training steps of all networks; what is there is read.

    Args:
        work: of the notebook.
        evaluations, batch, repeats: depths of the networks, feature maps in a step, and how often each is measured.
        tolerances: of the solves with error control.
        trade_off_batch, trade_off_repeats: feature maps in a step of these, and how often each is timed.
        device: where to measure.
    """
    where = choose_device(device)
    setting = {"evaluations": list(evaluations), "batch": batch, "repeats": repeats}
    points = {f"memory/{name.replace(', ', '-')}": {"network": name, **setting} for name in NETWORKS}
    memory = work.store.obtain(memory_run, points, label="networks", alone=True, device=where)
    point = {"tolerances": list(tolerances), "batch": trade_off_batch, "repeats": trade_off_repeats}
    (trades,) = work.store.obtain(
        trade_offs_run, {"trade_offs": point}, label="trade-offs", alone=True, device=where
    ).values()
    return Results(pd.concat([run.table() for run in memory.values()], ignore_index=True), trades.table())
