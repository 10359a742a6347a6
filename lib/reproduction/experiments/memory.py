"""Memory of one training step against depth (the memory column of Table 1), and what it is traded for."""

import copy
import itertools
import math
from collections.abc import Sequence
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from neural_ode.errors import UnknownNameError, needs
from neural_ode.gradients import (
    Backsolve,
    Direct,
    Gradient,
    Interpolating,
    RecursiveCheckpoint,
    Reversible,
)
from neural_ode.nn import OdeBlock
from reproduction.measure.memory import bytes_kept, in_fresh_process, peak_memory
from reproduction.measure.timing import seconds_of
from reproduction.models.mnist import CHANNELS, ConvDynamics, Residual

with needs("notebooks"):
    from tqdm import tqdm

__all__ = [
    "CHOICES",
    "NETWORKS",
    "MemoryPoint",
    "TradeOff",
    "checkpoint_bound",
    "measure_memory",
    "memory_sweep",
    "trade_offs",
]

CHOICES: dict[str, tuple[Gradient, str, int]] = {
    "RK-Net": (Direct(), "rk4", 4),
    "ODE-Net": (Backsolve(), "rk4", 4),
    "recursive_checkpoint": (RecursiveCheckpoint(), "rk4", 4),
    "recursive_checkpoint, log": (RecursiveCheckpoint("log"), "rk4", 4),
    "interpolating": (Interpolating(), "dopri5", 6),
    "reversible": (Reversible(), "rk4", 8),
}
"""The ways to differentiate a solve, each with a method that it works with and the evaluations of one step."""

NETWORKS = ("ResNet", *CHOICES)
SIZE = 6
STEPS_TO_WARM_UP = 3


class MemoryPoint(NamedTuple):
    """A training step of `network` that evaluates its layer `evaluations` times, and its memory in bytes."""

    network: str
    evaluations: int
    repeat: int
    bytes_kept: int
    peak_bytes: int


def build(network: str, evaluations: int) -> nn.Module:
    """What lies between stem and classifier of a network in Table 1, `evaluations` layers deep.

    The residual network has that many blocks. The others make steps of constant length, so that the number of
    evaluations is chosen and not found: of the four-stage Runge-Kutta method `rk4`; of its reversible form, eight
    evaluations a step; or of `dopri5`, which has the dense output that `interpolating` needs, six and one at the
    start.

    Raises:
        UnknownNameError: no such network.
    """
    if network == "ResNet":
        return nn.Sequential(*(Residual() for _ in range(evaluations)))
    if network in CHOICES:
        gradient, method, stages = CHOICES[network]
        return OdeBlock(ConvDynamics(), method=method, step_size=stages / evaluations, gradient=gradient)
    raise UnknownNameError("network", network, NETWORKS)


def measure_memory(network: str, evaluations: int, batch: int, device: str, repeat: int = 0) -> MemoryPoint:
    """Memory of a training step (forward, backward) on `batch` feature maps of shape (64, 6, 6)."""
    torch.manual_seed(repeat)
    torch.set_num_threads(1)
    target = torch.device(device)
    images = torch.randn(batch, CHANNELS, SIZE, SIZE, device=target)
    # A network of three steps first: it loads what is loaded on first use, in first, middle and last steps.
    stages = CHOICES[network][2] if network in CHOICES else 1
    _train_once(build(network, STEPS_TO_WARM_UP * stages).to(target), images)
    body = build(network, evaluations).to(target)
    for parameter in body.parameters():  # exist in any training, so they are no part of the growth
        parameter.grad = torch.zeros_like(parameter)
    peak = peak_memory(lambda: _train_once(body, images), target)
    kept = bytes_kept(partial(_loss, body, images), [images, *body.parameters()])
    return MemoryPoint(network, evaluations, repeat, kept, peak)


def _train_once(body: nn.Module, images: Tensor) -> None:
    torch.autograd.backward(_loss(body, images))


def _loss(body: nn.Module, images: Tensor) -> Tensor:
    out: Tensor = body(images)
    return out.square().mean()


def memory_sweep(evaluations: Sequence[int], batch: int, repeats: int, device: str) -> list[MemoryPoint]:
    """Measure every network at every depth, each in a fresh process on a CPU."""
    cases = list(itertools.product(range(repeats), evaluations, NETWORKS))
    points = []
    for repeat, depth, network in tqdm(cases, desc="memory", unit="case"):
        arguments = (network, depth, batch, device, repeat)
        if torch.device(device).type == "cpu":
            points.append(in_fresh_process(measure_memory, *arguments))
        else:
            points.append(measure_memory(*arguments))
    return points


def checkpoint_bound(evaluations: int, batch: int) -> float:
    """Bytes of `2 + log2(n + 1)` states for `n` steps, what "recursive_checkpoint, log" may keep, and outputs."""
    steps = evaluations / CHOICES["recursive_checkpoint, log"][2]
    states = 2 + math.log2(steps + 1) + 2
    return states * 4 * batch * CHANNELS * SIZE**2 + 64  # with the times


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
        kept = bytes_kept(partial(_loss, body, images), [images, *f.parameters()])
        seconds = [seconds_of(partial(_gradient, body, images), target) for _ in range(repeats)]
        stats = body.stats
        backward = stats.backward.nfe if stats.backward is not None else 0
        points.append(TradeOff(choice, tolerance, kept, median(seconds), error, stats.nfe, backward))
    return points


def _gradient(body: nn.Module, images: Tensor) -> Tensor:
    """The gradients of all parameters, one after the other."""
    found = torch.autograd.grad(_loss(body, images), list(body.parameters()))
    return torch.cat([g.reshape(-1) for g in found])
