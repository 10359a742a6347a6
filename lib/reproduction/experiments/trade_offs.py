"""What the memory of a training step is traded for."""

import copy
import itertools
from collections.abc import Sequence
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from neural_ode.gradients import RecursiveCheckpoint
from neural_ode.nn import OdeBlock
from reproduction.experiments.step_memory import CHOICES, SIZE, step_loss
from reproduction.measure.memory import bytes_kept
from reproduction.measure.timing import seconds_of
from reproduction.models.mnist import CHANNELS, ConvDynamics
from reproduction.progress import tqdm
from reproduction.results import csv_bytes

__all__ = ["TradeOff", "trade_offs", "trade_offs_run"]


class TradeOff(NamedTuple):
    """One training step of an ODE block with error control.

    Attributes:
        choice: how it is differentiated.
        tolerance: of the solve.
        bytes_kept: for the backward pass.
        seconds: forward and backward, the median of some.
        gradient_error: of the parameters' gradients, relative to that of a far more accurate solve in float64.
        nfe, backward_nfe: evaluations of the dynamics.
    """

    choice: str
    tolerance: float
    bytes_kept: int
    seconds: float
    gradient_error: float
    nfe: int
    backward_nfe: int


def trade_offs(tolerances: Sequence[float], batch: int, repeats: int, device: str) -> list[TradeOff]:
    """Memory, time and gradient error of every choice, solved with `dopri5` at every tolerance.

    The network is that of Table 1 with random weights, the loss the mean square of its output. One thread, so that
    other work on the machine does not hold up a whole team.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _trade_offs(tolerances, batch, repeats, device)
    finally:
        torch.set_num_threads(threads)


def _trade_offs(tolerances: Sequence[float], batch: int, repeats: int, device: str) -> list[TradeOff]:
    torch.manual_seed(0)
    target = torch.device(device)
    f = ConvDynamics().to(target)
    images = torch.randn(batch, CHANNELS, SIZE, SIZE, device=target)
    exact = copy.deepcopy(f).double()
    tight: dict[str, Any] = {"rtol": 1e-8, "atol": 1e-8, "gradient": RecursiveCheckpoint()}
    reference = _gradient(OdeBlock(exact, **tight), images.double())
    points = []
    for tolerance, (choice, (gradient, _, _)) in tqdm(
        list(itertools.product(tolerances, CHOICES.items())), desc="trade-offs", unit="case"
    ):
        body = OdeBlock(f, rtol=tolerance, atol=tolerance, gradient=gradient)
        found = _gradient(body, images)
        error = float((found.double() - reference).norm() / reference.norm())
        kept = bytes_kept(partial(step_loss, body, images), [images, *f.parameters()])
        seconds = [seconds_of(partial(_gradient, body, images), target) for _ in range(repeats)]
        stats = body.stats
        backward = stats.backward.nfe if stats.backward is not None else 0
        points.append(TradeOff(choice, tolerance, kept, median(seconds), error, stats.nfe, backward))
    return points


def _gradient(body: nn.Module, images: Tensor) -> Tensor:
    """The gradients of all parameters, one after the other."""
    found = torch.autograd.grad(step_loss(body, images), list(body.parameters()))
    return torch.cat([g.reshape(-1) for g in found])


def trade_offs_run(
    *, tolerances: Sequence[float], batch: int, repeats: int, device: torch.device
) -> dict[str, bytes]:
    """`trade_offs` as a run of `reproduction.results`; for the arguments see there."""
    points = trade_offs(tolerances, batch, repeats, str(device))
    return {".csv": csv_bytes([point._asdict() for point in points])}
