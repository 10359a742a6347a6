"""The densities that points of Figure 5 are drawn from, and how far trained flows are from them."""

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from neural_ode.errors import UnknownNameError
from reproduction.experiments.flow_measurements import unseen_points
from reproduction.experiments.flow_runs import load_flow
from reproduction.results import Run, csv_bytes
from reproduction.sweep import Point

__all__ = ["TRUE_DENSITIES", "gap_run", "true_log_prob"]

NODES = 200
"""Of the quadrature over an angle, where the integrand is a bell some 0.1 wide."""


def true_log_prob(name: str, x: Tensor) -> Tensor:
    """The log-density of a set of `reproduction.data.points` where it is known.

    Args:
        name: in `TRUE_DENSITIES`.
        x: points, shape (n, 2).

    Returns:
        Shape (n,), float64, in nats.

    Raises:
        UnknownNameError: the density of that set is not known.
    """
    if name not in TRUE_DENSITIES:
        raise UnknownNameError("density of points", name, TRUE_DENSITIES)
    return TRUE_DENSITIES[name](x.double())


@torch.no_grad()
def gap_run(*, flow: Point, points_of: str, held_out: int, runs: Mapping[str, Run]) -> dict[str, bytes]:
    """KL(true‖flow) as the mean of `log p - log q` over held-out points, in nats.

    Returns:
        `true log p` and `gap`, means over the points, and the `standard error` of the gap.
    """
    x = unseen_points(points_of, held_out)
    true = true_log_prob(points_of, x)
    gaps = true - load_flow(flow, runs).log_prob(x)
    row = {"true log p": float(true.mean()), "gap": float(gaps.mean())}
    return {".csv": csv_bytes([{**row, "standard error": float(gaps.std()) / math.sqrt(held_out)}])}


def _two_circles(x: Tensor) -> Tensor:
    """Normal noise round circles: a Bessel function."""
    rings = torch.tensor([3.0, 1.5], dtype=torch.float64)
    noise, radius = 0.24, x.norm(dim=1)[:, None]
    bell = -(radius - rings).square() / (2 * noise**2)
    bell = bell + torch.special.i0e(radius * rings / noise**2).log() - math.log(2 * math.pi * noise**2)
    log_prob: Tensor = bell.logsumexp(1) - math.log(2)
    return log_prob


def _two_moons(x: Tensor) -> Tensor:
    """Normal noise round half circles: the second is the first, turned by half a turn."""
    return torch.stack([_upper_moon(x), _upper_moon(-x)]).logsumexp(0) - math.log(2)


def _upper_moon(x: Tensor) -> Tensor:
    """By quadrature over the angle, Gauss-Legendre's from 0 to π."""
    places, weights = map(torch.from_numpy, np.polynomial.legendre.leggauss(NODES))
    angle, noise = math.pi * (places + 1) / 2, 0.2
    arc = 2 * torch.stack([angle.cos(), angle.sin()], 1) - torch.tensor([1.0, 0.5], dtype=torch.float64)
    bells = -torch.cdist(x, arc).square() / (2 * noise**2) + (weights / 2).log()
    return bells.logsumexp(1) - math.log(2 * math.pi * noise**2)


TRUE_DENSITIES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "two circles": _two_circles,
    "two moons": _two_moons,
}
"""By the name of the set, its log-density at points in float64."""
