"""Solves of the block at many tolerances, forwards and backwards (Figure 3a, b and c)."""

import itertools
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from neural_ode import rms_norm, solve
from neural_ode.errors import MaxStepsError
from neural_ode.gradients import Backsolve
from neural_ode.methods import BlackBox, ScipySolver
from reproduction.data.mnist import Split, load_splits
from reproduction.experiments.ode_net import SPAN, as_floats, block_of, end_of, load_ode_net
from reproduction.measure.timing import seconds_of
from reproduction.models.mnist import MnistNet
from reproduction.progress import tqdm
from reproduction.results import csv_bytes

__all__ = [
    "SOLVERS",
    "Forward",
    "Scaled",
    "backward_scales",
    "forward_run",
    "forward_sweep",
    "scales_run",
]

SOLVERS: dict[str, str | BlackBox] = {
    "dopri5": "dopri5",
    "tsit5": "tsit5",
    "dopri8": "dopri8",
    "adams": "adams",
    "VODE": ScipySolver("vode-adams"),
}
"""Explicit Runge-Kutta methods of three kinds, the library's Adams method, and the implicit Adams of the paper."""

BACKWARD_STEPS = 500
"""Backward solves of high order crawl over the kinks of the network: after so many steps they are given up."""


class Forward(NamedTuple):
    """One solve of a batch, and its backward solves.

    Attributes:
        solver: a name in `SOLVERS`.
        batch: which batch.
        tolerance: relative and absolute.
        error: of the state at the end, relative to a far tighter solve (root mean square).
        seconds: of the forward solve, the median of some.
        nfe: evaluations of the forward solve.
        backward_nfe: of the backward solve, with the parameters' gradients in the error norm, as in the paper.
            `None` for all but the first batch, and where the solve did not end within the allowed steps.
        seminorm_nfe: without them. `None` also for a solver whose norm cannot be chosen.
    """

    solver: str
    batch: int
    tolerance: float
    error: float
    seconds: float
    nfe: int
    backward_nfe: int | None
    seminorm_nfe: int | None


def forward_sweep(
    model: MnistNet,
    batches: Sequence[Split],
    tolerances: Sequence[float],
    repeats: int,
    solvers: Mapping[str, str | BlackBox] = SOLVERS,
) -> list[Forward]:
    """Solve the ODE block of a trained network with every solver at every tolerance, forwards and backwards.

    Float64 shows errors down to the tightest tolerance. The loss of the backward solve is the one of training, the
    mean cross-entropy of the batch. One solver solves both ways.

    Args:
        model: in float64, with an ODE block.
        batches: times and backward solves are those of the first one; the others add errors and counts.
        tolerances: relative and absolute.
        repeats: how often a solve of the first batch is timed.
        solvers: by name.
    """
    block = block_of(model)
    tight = min(tolerances) / 100
    states, exact = [], []
    with torch.no_grad():
        for batch in batches:
            states.append(model.stem(as_floats(batch.images, model)))
            # Where f has kinks (ReLU), steps of high order gain nothing, and this method needs fewest evaluations.
            exact.append(end_of(solve(block.f, states[-1], SPAN, method="adams", rtol=tight, atol=tight).y))
    rows = []
    cases = list(itertools.product(range(len(batches)), tolerances, solvers))
    for number, tolerance, name in tqdm(cases, desc="tolerances", unit="solve"):
        how: dict[str, Any] = {"method": solvers[name], "rtol": tolerance, "atol": tolerance}
        forward = partial(solve, block.f, states[number], SPAN, **how)
        with torch.no_grad():
            solution = forward()
            seconds = [seconds_of(forward, states[number].device) for _ in range(repeats if number == 0 else 1)]
        error = rms_norm(end_of(solution.y) - exact[number]) / rms_norm(exact[number])
        counts: list[int | None] = [None, None]
        if number == 0:
            for k, norm in enumerate((None, "seminorm")):
                if norm is None or not isinstance(solvers[name], BlackBox):
                    gradient = Backsolve(norm=norm, options={"max_steps": BACKWARD_STEPS})
                    with suppress(MaxStepsError):
                        labels = batches[number].labels
                        counts[k] = _backward_evaluations(model, states[number], labels, gradient, how)
        nfe = solution.stats.nfe
        rows.append(Forward(name, number, tolerance, float(error), median(seconds), nfe, *counts))
    return rows


def forward_run(
    *,
    solver: str,
    weights: str,
    test_size: int | None,
    images: int,
    batches: int,
    tolerances: Sequence[float],
    repeats: int,
    files: Mapping[str, Path],
    data: Path,
    device: torch.device,
) -> dict[str, bytes]:
    """`forward_sweep` of one solver as a run of `reproduction.results`.

    Args:
        solver: a name in `SOLVERS`.
        weights: checksum of the file that has the network's.
        test_size: how many test images the batches are taken from, the first ones first; all for `None`.
        images, batches: how many in a batch, and of these.
        tolerances, repeats: see `forward_sweep`.
        files: weights by checksum.
        data: the folder of MNIST.
        device: where to solve.
    """
    test = load_splits(data, [None, None, test_size]).test
    parts = [Split(*(x[k * images : (k + 1) * images] for x in test)) for k in range(batches)]
    model = load_ode_net(files[weights], device).double()
    rows = forward_sweep(model, parts, tolerances, repeats, {solver: SOLVERS[solver]})
    return {".csv": csv_bytes([row._asdict() for row in rows])}


def _backward_evaluations(
    model: MnistNet, state: Tensor, labels: Tensor, gradient: Backsolve, how: Mapping[str, Any], scale: float = 1.0
) -> int:
    """Evaluations of the backward solve for `scale` times the mean cross-entropy."""
    solution = solve(block_of(model).f, state.detach().requires_grad_(), SPAN, gradient=gradient, **how)
    loss = scale * F.cross_entropy(model.head(end_of(solution.y)), labels.to(state.device))
    torch.autograd.backward(loss)
    model.zero_grad()
    assert solution.stats.backward is not None
    return solution.stats.backward.nfe


class Scaled(NamedTuple):
    """Evaluations of a backward solve for a loss times `scale`, over those of the forward solve."""

    solver: str
    scale: float
    ratio: float


def backward_scales(
    model: MnistNet,
    batch: Split,
    scales: Sequence[float],
    tolerance: float,
    solvers: Mapping[str, str | BlackBox] = SOLVERS,
) -> list[Scaled]:
    """How the cost of the backward solve depends on the size of the loss.

    Error control compares the adjoint with an *absolute* tolerance. A loss that is ten times larger has the same
    minimum and ten times the adjoint, so it takes more evaluations: the ratio of backward to forward evaluations is
    no property of a solver alone.
    """
    block = block_of(model)
    with torch.no_grad():
        state = model.stem(as_floats(batch.images, model))
    rows = []
    for name in solvers:
        how: dict[str, Any] = {"method": solvers[name], "rtol": tolerance, "atol": tolerance}
        with torch.no_grad():
            nfe = solve(block.f, state, SPAN, **how).stats.nfe
        rows += [
            Scaled(name, scale, _backward_evaluations(model, state, batch.labels, Backsolve(), how, scale) / nfe)
            for scale in scales
        ]
    return rows


def scales_run(
    *,
    solver: str,
    weights: str,
    test_size: int | None,
    images: int,
    scales: Sequence[float],
    tolerance: float,
    files: Mapping[str, Path],
    data: Path,
    device: torch.device,
) -> dict[str, bytes]:
    """`backward_scales` of one solver as a run of `reproduction.results`; for the arguments see `forward_run`."""
    test = load_splits(data, [None, None, test_size]).test
    batch = Split(*(x[:images] for x in test))
    model = load_ode_net(files[weights], device).double()
    rows = backward_scales(model, batch, scales, tolerance, {solver: SOLVERS[solver]})
    return {".csv": csv_bytes([row._asdict() for row in rows])}
