"""What is measured of trained flows, as runs for notebooks 06 and 07.

They stand apart from where notebooks put their results together, so that editing that measures nothing anew.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from reproduction.data.densities import get_target
from reproduction.data.points import points
from reproduction.experiments.flow_runs import load_flow
from reproduction.experiments.flows import (
    cost_both_ways,
    density_grid,
    jacobian_log_det,
    theorem_errors,
    transported_density,
    untrained_flows,
)
from reproduction.measure.flow_quality import divergence, log_likelihood
from reproduction.measure.reversal import base_points, reversal_error
from reproduction.results import Run, csv_bytes
from reproduction.sweep import Point
from reproduction.training.weights import tensor_bytes

__all__ = [
    "densities_run",
    "divergence_run",
    "log_likelihood_run",
    "mass_run",
    "reversal_run",
    "sampling_cost_run",
    "theorem_run",
    "unseen_points",
]

COST_POINTS = 2000
"""How many points are evaluated and sampled to measure what that costs."""


def unseen_points(name: str, n: int) -> Tensor:
    """Points of a set that no flow has seen, shape (n, 2)."""
    return points(name, n, 10**6)


def theorem_run(*, tolerances: Sequence[float], points: int) -> dict[str, bytes]:
    """Errors of the change of log-density of untrained flows: `flow`, `tolerance`, `error`."""
    flows = untrained_flows()
    torch.manual_seed(1)
    z = torch.randn(points, 2, dtype=torch.float64)
    found = {name: theorem_errors(flows[name], z, tolerances) for name in ("planar", "any network")}
    found["Hamiltonian"] = [
        float(jacobian_log_det(flows["Hamiltonian"], z, tolerance).abs().max()) for tolerance in tolerances
    ]
    rows = [
        {"flow": name, "tolerance": tolerance, "error": error}
        for name, errors in found.items()
        for tolerance, error in zip(tolerances, errors, strict=True)
    ]
    return {".csv": csv_bytes(rows)}


def divergence_run(*, flow: Point, target: str, evaluation: int, runs: Mapping[str, Run]) -> dict[str, bytes]:
    """`KL` from a target, with so many points for its evaluation."""
    found = divergence(load_flow(flow, runs), get_target(target), evaluation)
    return {".csv": csv_bytes([{"KL": found}])}


def log_likelihood_run(*, flow: Point, points_of: str, held_out: int, runs: Mapping[str, Run]) -> dict[str, bytes]:
    """Mean `log p` of held-out points."""
    found = log_likelihood(load_flow(flow, runs), unseen_points(points_of, held_out))
    return {".csv": csv_bytes([{"log p": found}])}


def reversal_run(*, flow: Point, tolerances: Sequence[float], runs: Mapping[str, Run]) -> dict[str, bytes]:
    """How far from the start the way there and back ends: `tolerance`, `error`."""
    model, start = load_flow(flow, runs).double(), base_points().double()
    errors = [reversal_error(model, start, tolerance) for tolerance in tolerances]
    rows = [{"tolerance": x, "error": error} for x, error in zip(tolerances, errors, strict=True)]
    return {".csv": csv_bytes(rows)}


def sampling_cost_run(
    *, flow: Point, points_of: str, held_out: int, repeats: int, runs: Mapping[str, Run]
) -> dict[str, bytes]:
    """What evaluating and sampling cost: `work`, `nfe`, `seconds`."""
    x = unseen_points(points_of, held_out)[:COST_POINTS]
    found = cost_both_ways(load_flow(flow, runs), x, repeats)
    return {".csv": csv_bytes([{"work": name, **cost} for name, cost in found.items()])}


def mass_run(*, flow: Point, window: float, pixels: int, runs: Mapping[str, Run]) -> dict[str, bytes]:
    """What a density integrates to: `mass`."""
    grid = density_grid(load_flow(flow, runs).log_prob, window, pixels)
    return {".csv": csv_bytes([{"mass": float(grid.sum()) * (2 * window / pixels) ** 2}])}


def densities_run(
    *, flow: Point, window: float, pixels: int, shares: Sequence[float], runs: Mapping[str, Run]
) -> dict[str, bytes]:
    """Densities after shares of the time, in half precision: more digits cannot be seen."""
    model = load_flow(flow, runs)
    grids = [density_grid(transported_density(model, share), window, pixels) for share in shares]
    return {".safetensors": tensor_bytes({"density": torch.stack(grids).half()})}
