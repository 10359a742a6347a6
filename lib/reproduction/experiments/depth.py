"""Notebook 01: depth in layers and depth as time, on data of one dimension (Figure 1 of Chen et al. 2018)."""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from neural_ode import solve
from neural_ode.errors import needs
from reproduction.models.depth import DEPTH, DEPTH_NETWORKS, Flow, Layers
from reproduction.results import Run, csv_bytes
from reproduction.training.depth import depth_run, inputs, root_mean_square
from reproduction.workspace import Workspace, choose_device

with needs("notebooks"):
    import pandas as pd

__all__ = ["DEPTH", "Evaluation", "Results", "euler_errors", "results", "trace"]


class Results(NamedTuple):
    """What notebook 01 shows.

    Attributes:
        layers: the residual network that was trained to be a staircase.
        flow: the ODE network.
        errors: root mean square error of both on the staircase, by name.
        reflections: of both after a training to change the sign, over that of the best increasing function.
        distances: `steps` of Euler's method and `distance` to the ODE; see `euler_errors`.
    """

    layers: Layers
    flow: Flow
    errors: dict[str, float]
    reflections: dict[str, float]
    distances: pd.DataFrame


def results(work: Workspace, *, iterations: int, steps: Sequence[int], device: str) -> Results:
    """Train both networks to both ends, and measure how Euler steps become the ODE; what is there is read.

    Args:
        work: of the notebook.
        iterations: of each training.
        steps: numbers of Euler steps.
        device: where to compute.
    """
    where = choose_device(device)
    points = {}
    for name in DEPTH_NETWORKS:
        file = name.replace(" ", "-")
        points[file] = {"network": name, "target": "stairs", "iterations": iterations}
        points[f"reflection/{file}"] = {"network": name, "target": "reflection", "iterations": iterations}
    trained = work.store.obtain(depth_run, points, label="networks", device=where)
    layers, flow = Layers(), Flow()
    trained["ResNet"].load(layers)
    trained["ODE-network"].load(flow)

    weights = trained["ODE-network"].identity(".safetensors")
    (distances,) = work.store.obtain(
        _distances,
        {"distances": {"weights": weights, "steps": list(steps)}},
        label="Euler steps",
        run=trained["ODE-network"],
        device=where,
    ).values()
    best = root_mean_square(inputs(64))
    return Results(
        layers.to(where),
        flow.to(where),
        {name: _error(trained[name.replace(" ", "-")]) for name in DEPTH_NETWORKS},
        {name: _error(trained[f"reflection/{name.replace(' ', '-')}"]) / best for name in DEPTH_NETWORKS},
        distances.table(),
    )


def _error(run: Run) -> float:
    return float(run.table()["error"].iloc[-1])


def _distances(*, weights: str, steps: Sequence[int], run: Run, device: torch.device) -> dict[str, bytes]:
    flow = Flow()
    run.load(flow)
    rows = zip(steps, euler_errors(flow.to(device), steps), strict=True)
    return {".csv": csv_bytes([{"steps": n, "distance": distance} for n, distance in rows])}


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


class Evaluation(NamedTuple):
    """Where a solver evaluated the dynamics of one number.

    Attributes:
        t, h: time and state.
        accepted: whether that is a point of the solution, where an accepted step begins or ends. The others are the
            stages within steps, those of steps that were rejected, and what the first step's length is found from.
    """

    t: float
    h: float
    accepted: bool


@torch.no_grad()
def trace(flow: Flow, start: float, **how: Any) -> list[Evaluation]:
    """Every evaluation of the dynamics in one solve from `start`.

    Args:
        flow: the network.
        start: the input.
        **how: keyword arguments of `neural_ode.solve`, with a method whose last stage is the end of the step.
    """
    found: list[tuple[float, float]] = []

    def watched(t: Tensor, h: Tensor) -> Tensor:
        found.append((t.item(), h.item()))
        return flow.field(t, h)

    h0 = torch.tensor([[start]], dtype=torch.float64, device=_device(flow))
    lengths = solve(watched, h0, (0.0, float(DEPTH)), **how).stats.step_sizes
    # The last but one stage has the time of the end, too, but not its state.
    ends = {max(k for k, (t, _) in enumerate(found) if math.isclose(t, end)) for end in accumulate(lengths)}
    return [Evaluation(t, h, k == 0 or k in ends) for k, (t, h) in enumerate(found)]


@torch.no_grad()
def euler_errors(flow: Flow, steps: Sequence[int]) -> list[float]:
    """Root mean square distance between the output of the ODE and that of so many equal Euler steps.

    With Euler's method the network is a residual network with tied weights; with more and shorter steps it should
    become the ODE.
    """
    x = inputs(64).to(_device(flow))
    span = (0.0, float(DEPTH))
    exact = flow.states(x, span, rtol=1e-11, atol=1e-11)[-1]
    return [root_mean_square(flow.states(x, span, method="euler", step_size=DEPTH / n)[-1] - exact) for n in steps]
