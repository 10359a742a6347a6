"""Trials of learning rates for flows: a shorter training from a seed that counts nowhere else, and how good it is.

They stand apart from what else is measured, so that editing that does not make the search anew.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from neural_ode.errors import SolverError
from reproduction.data.densities import get_target
from reproduction.data.points import points
from reproduction.measure.flow_quality import Flow, divergence, log_likelihood
from reproduction.results import csv_bytes
from reproduction.training.flows import Likelihood, Matching, Objective, train_continuous, train_planar

__all__ = ["VALIDATION_SEED", "likelihood_trial", "matching_trial"]

VALIDATION_SEED = 10**6 + 1
"""Of the points that decide between learning rates."""


def matching_trial(
    *,
    kind: str,
    targets: Sequence[str],
    size: int,
    seed: int,
    training: Mapping[str, Any],
    evaluation: int,
    solver: Mapping[str, Any] | None,
    compiled: bool,
    device: str | torch.device,
    checkpoints: Path,
) -> dict[str, bytes]:
    """The divergence that flows reach from each target, as a run: columns `name` and `loss`.

    Args:
        kind: `"NF"` for planar flows, `"CNF"` for continuous ones.
        targets: names in `reproduction.data.densities.TARGETS`.
        size: how many layers or units.
        seed, training, solver: see `reproduction.training.flows`; planar flows solve nothing, `None`.
        evaluation: points for the estimate.
        compiled, device, checkpoints: see `reproduction.training.flows.matching_run`.
    """
    objectives = [Matching(name) for name in targets]
    how = {**(solver or {}), "compile": compiled}
    flows = _trained(kind, objectives, size, seed, training, how, device, checkpoints)
    return _losses(flows, lambda name, flow: divergence(flow, get_target(name), evaluation))


def likelihood_trial(
    *,
    kind: str,
    sets: Sequence[str],
    size: int,
    seed: int,
    training: Mapping[str, Any],
    evaluation: int,
    solver: Mapping[str, Any] | None,
    compiled: bool,
    device: str | torch.device,
    checkpoints: Path,
) -> dict[str, bytes]:
    """The negative log-likelihood that flows reach for points for validation of each set, as a run.

    Args:
        sets: names in `reproduction.data.points.POINT_SETS`.
        kind, size, seed, training, evaluation, solver, compiled, device, checkpoints: see `matching_trial`.
    """
    objectives = [Likelihood(name) for name in sets]
    how = {**(solver or {}), "compile": compiled}
    flows = _trained(kind, objectives, size, seed, training, how, device, checkpoints)
    return _losses(flows, lambda name, flow: -log_likelihood(flow, points(name, evaluation, VALIDATION_SEED)))


def _trained(
    kind: str,
    objectives: Sequence[Objective],
    size: int,
    seed: int,
    training: Mapping[str, Any],
    solver: Mapping[str, Any],
    device: str | torch.device,
    checkpoints: Path,
) -> dict[str, Flow | None]:
    """Flows by the name of their objective, `None` for one whose training diverged."""
    flows: dict[str, Flow | None] = {objective.name: None for objective in objectives}
    if kind == "NF":
        pairs = [(objective, seed) for objective in objectives]
        try:
            found, _ = train_planar(
                pairs, size, training, checkpoints / f"search-NF-{training['rate']:g}.pt", device
            )
        except SolverError:  # they are trained at once: one that diverges is the end of all
            return flows
        return {name: found[name, seed] for name in flows}
    for objective in objectives:
        file = checkpoints / f"search-CNF-{objective.name.replace(' ', '-')}-{training['rate']:g}.pt"
        try:
            flow, _ = train_continuous(objective, size, seed, training, solver, file, device=device)
        except SolverError:
            continue
        flow.how["compile"] = False  # to compile for another number of points would take longer than to run
        flows[objective.name] = flow
    return flows


def _losses(flows: Mapping[str, Flow | None], loss: Callable[[str, Flow], float]) -> dict[str, bytes]:
    rows = []
    for name, flow in flows.items():
        try:
            rows.append({"name": name, "loss": math.inf if flow is None else loss(name, flow)})
        except SolverError:
            rows.append({"name": name, "loss": math.inf})
    return {".csv": csv_bytes(rows)}
