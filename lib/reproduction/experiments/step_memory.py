"""Memory of one training step against depth (the memory column of Table 1).

Processes that measure have loaded this module and nothing else, so it imports little.
"""

import itertools
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from neural_ode.errors import UnknownNameError
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
from reproduction.models.mnist import CHANNELS, ConvDynamics, Residual
from reproduction.progress import tqdm
from reproduction.results import csv_bytes

__all__ = [
    "CHOICES",
    "NETWORKS",
    "SIZE",
    "MemoryPoint",
    "build",
    "checkpoint_bound",
    "measure_memory",
    "memory_run",
    "memory_sweep",
    "step_loss",
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
"""Pixels along each side of a feature map."""
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
    kept = bytes_kept(partial(step_loss, body, images), [images, *body.parameters()])
    return MemoryPoint(network, evaluations, repeat, kept, peak)


def _train_once(body: nn.Module, images: Tensor) -> None:
    torch.autograd.backward(step_loss(body, images))


def step_loss(body: nn.Module, images: Tensor) -> Tensor:
    """The mean square of the output."""
    out: Tensor = body(images)
    return out.square().mean()


def memory_sweep(
    network: str, evaluations: Sequence[int], batch: int, repeats: int, device: str
) -> list[MemoryPoint]:
    """Measure a network at every depth, each time in a fresh process on a CPU."""
    cases = list(itertools.product(range(repeats), evaluations))
    points = []
    for repeat, depth in tqdm(cases, desc=network, unit="case"):
        arguments = (network, depth, batch, device, repeat)
        if torch.device(device).type == "cpu":
            with _hidden_program():
                points.append(in_fresh_process(measure_memory, *arguments))
        else:
            points.append(measure_memory(*arguments))
    return points


@contextmanager
def _hidden_program() -> Iterator[None]:
    """A block in which new processes do not load the program that runs, which would be in their memory, too."""
    main = vars(sys.modules["__main__"])
    before: dict[str, Any] = {name: main[name] for name in ("__spec__", "__file__") if name in main}
    main.update(dict.fromkeys(before))
    try:
        yield
    finally:
        main.update(before)


def memory_run(
    *, network: str, evaluations: Sequence[int], batch: int, repeats: int, device: torch.device
) -> dict[str, bytes]:
    """`memory_sweep` as a run of `reproduction.results`; for the arguments see there."""
    points = memory_sweep(network, evaluations, batch, repeats, str(device))
    return {".csv": csv_bytes([point._asdict() for point in points])}


def checkpoint_bound(evaluations: int, batch: int) -> float:
    """Bytes of `2 + log2(n + 1)` states for `n` steps, what "recursive_checkpoint, log" may keep, and outputs."""
    steps = evaluations / CHOICES["recursive_checkpoint, log"][2]
    states = 2 + math.log2(steps + 1) + 2
    return states * 4 * batch * CHANNELS * SIZE**2 + 64  # with the times
