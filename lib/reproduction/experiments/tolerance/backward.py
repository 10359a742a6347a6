"""Evaluations of the backward solve over those of the forward solve, batch by batch (Figure 3c)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from neural_ode import solve
from neural_ode.gradients import Backsolve
from neural_ode.methods import BlackBox, ScipySolver
from neural_ode.solution import Statistics
from reproduction.data.mnist import Split, load_splits
from reproduction.experiments.ode_net import SPAN, as_floats, block_of, end_of, load_ode_net
from reproduction.models.mnist import MnistNet
from reproduction.progress import tqdm
from reproduction.results import csv_bytes

__all__ = ["BOTH_WAYS", "LOSSES", "Backward", "backward_run", "backward_sweep", "there_and_back"]

BOTH_WAYS: dict[str, str | BlackBox] = {
    "VODE": ScipySolver("vode-adams"),
    "adams": "adams",
    "dopri5": "dopri5",
}
"""The paper's kind of solver, the library's Adams method, and what the networks were trained with."""

LOSSES = ("mean", "sum")
"""Of the cross-entropies of a batch: the sum is larger by as many times as there are images."""


class Backward(NamedTuple):
    """Evaluations of the two solves of a batch; `loss` is one of `LOSSES`."""

    solver: str
    batch: int
    loss: str
    forward_nfe: int
    backward_nfe: int


def there_and_back(
    model: MnistNet, state: Tensor, labels: Tensor, gradient: Backsolve, how: Mapping[str, Any], scale: float = 1.0
) -> Statistics:
    """Solve the ODE block, and backwards for `scale` times the mean cross-entropy; the counts of both solves.

    Args:
        model: with an ODE block.
        state: where it begins.
        labels: of the images.
        gradient: how the backward solve is made.
        how: keyword arguments of `neural_ode.solve`, for both solves.
        scale: of the loss.
    """
    solution = solve(block_of(model).f, state.detach().requires_grad_(), SPAN, gradient=gradient, **how)
    loss = scale * F.cross_entropy(model.head(end_of(solution.y)), labels.to(state.device))
    torch.autograd.backward(loss)
    model.zero_grad()
    return solution.stats


def backward_sweep(
    model: MnistNet, batches: Sequence[Split], tolerance: float, solvers: Mapping[str, str | BlackBox] = BOTH_WAYS
) -> list[Backward]:
    """Solve the ODE block of a trained network forwards and backwards, for both losses.

    One solver solves both ways, with the parameters' gradients in the error norm as in the paper.

    Args:
        model: in float64, with an ODE block.
        batches: images with their labels.
        tolerance: relative and absolute, of both solves.
        solvers: by name.
    """
    rows = []
    cases = [(name, number) for name in solvers for number in range(len(batches))]
    for name, number in tqdm(cases, desc="backward solves", unit="batch"):
        images, labels = batches[number]
        with torch.no_grad():
            state = model.stem(as_floats(images, model))
        how: dict[str, Any] = {"method": solvers[name], "rtol": tolerance, "atol": tolerance}
        for loss, scale in zip(LOSSES, (1.0, float(len(labels))), strict=True):
            stats = there_and_back(model, state, labels, Backsolve(), how, scale)
            assert stats.backward is not None
            rows.append(Backward(name, number, loss, stats.nfe, stats.backward.nfe))
    return rows


def backward_run(
    *,
    solver: str,
    weights: str,
    test_size: int | None,
    images: int,
    batches: int,
    tolerance: float,
    files: Mapping[str, Path],
    data: Path,
    device: torch.device,
) -> dict[str, bytes]:
    """`backward_sweep` of one solver as a run of `reproduction.results`.

    Args:
        solver: a name in `BOTH_WAYS`.
        weights: checksum of the file that has the network's.
        test_size: how many test images the batches are taken from, the first ones first; all for `None`.
        images, batches: how many in a batch, and of these.
        tolerance: see `backward_sweep`.
        files: weights by checksum.
        data: the folder of MNIST.
        device: where to solve.
    """
    test = load_splits(data, [None, None, test_size]).test
    parts = [Split(*(x[k * images : (k + 1) * images] for x in test)) for k in range(batches)]
    model = load_ode_net(files[weights], device).double()
    rows = backward_sweep(model, parts, tolerance, {solver: BOTH_WAYS[solver]})
    return {".csv": csv_bytes([row._asdict() for row in rows])}
