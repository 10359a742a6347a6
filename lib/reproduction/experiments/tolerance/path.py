"""Where a solver steps on the way of one image."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neural_ode import rms_norm, solve
from neural_ode.solution import Statistics
from reproduction.experiments.ode_net import SPAN, as_floats, block_of, end_of
from reproduction.models.mnist import MnistNet

__all__ = ["Path", "path_of"]


class Path(NamedTuple):
    """The features of one image on their way through the ODE block.

    Attributes:
        t, z: times, shape (n,), and features, shape (n, features), of a tight solve.
        nodes, at_nodes: the ends of the steps that the solver took, and where it was then; shapes as above.
        stats: what that solve cost.
        error: of the features at the end, relative to the tight solve.
    """

    t: NDArray[np.float64]
    z: NDArray[np.float64]
    nodes: NDArray[np.float64]
    at_nodes: NDArray[np.float64]
    stats: Statistics
    error: float


@torch.no_grad()
def path_of(model: MnistNet, image: Tensor, method: str, tolerance: float, points: int = 100) -> Path:
    """Where a solver steps on the way of one image, beside the way itself.

    Args:
        model: in float64, with an ODE block.
        image: uint8, shape (1, 28, 28).
        method: with error control and dense output.
        tolerance: relative and absolute.
        points: of the tight solve.
    """
    f, state = block_of(model).f, model.stem(as_floats(image[None], model))
    times = torch.linspace(*SPAN, points, dtype=torch.float64)
    versions = tuple(p._version for p in model.parameters())
    exact = _tight(model, versions, tuple(state.shape), tuple(state.flatten().tolist()), points)
    solution = solve(f, state, SPAN, method=method, rtol=tolerance, atol=tolerance, dense=True)
    nodes = torch.tensor([0.0, *solution.stats.step_sizes], dtype=torch.float64).cumsum(0).clamp(max=SPAN[1])
    at_nodes = solution.dense(nodes)
    assert isinstance(at_nodes, Tensor)
    error = rms_norm(end_of(solution.y) - exact[-1]) / rms_norm(exact[-1])
    t, z, ends, at_ends = (x.cpu().numpy() for x in (times, exact.flatten(1), nodes, at_nodes.flatten(1)))
    return Path(t, z, ends, at_ends, solution.stats, float(error))


@lru_cache(maxsize=32)
def _tight(
    model: MnistNet, versions: tuple[int, ...], shape: tuple[int, ...], state: tuple[float, ...], points: int
) -> Tensor:
    """The states of a tight solve, which takes most of the time and is the same for all solvers and tolerances.

    Args:
        model: see `path_of`.
        versions: of its parameters, which change where they are trained.
        shape, state: where the block begins.
        points: how many.
    """
    where = next(model.parameters())
    start = torch.tensor(state, dtype=where.dtype, device=where.device).reshape(shape)
    times = torch.linspace(*SPAN, points, dtype=torch.float64)
    exact = solve(block_of(model).f, start, times, method="adams", rtol=1e-7, atol=1e-7).y
    assert isinstance(exact, Tensor)
    return exact
