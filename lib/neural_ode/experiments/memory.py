"""Memory of one training step against depth (the memory column of Table 1)."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from neural_ode.errors import UnknownNameError
from neural_ode.measure.memory import bytes_kept, in_fresh_process, peak_memory
from neural_ode.models.mnist import CHANNELS, ConvDynamics, Residual
from neural_ode.models.ode_block import OdeBlock

__all__ = ["NETWORKS", "MemoryPoint", "measure_memory", "memory_sweep"]

NETWORKS = ("ResNet", "RK-Net", "ODE-Net")
SIZE = 6
STAGES = 4


class MemoryPoint(NamedTuple):
    """A training step of `network` that evaluates its layer `evaluations` times, and its memory in bytes."""

    network: str
    evaluations: int
    repeat: int
    bytes_kept: int
    peak_bytes: int


def build(network: str, evaluations: int) -> nn.Module:
    """What lies between stem and classifier of a network in Table 1, `evaluations` layers deep.

    The residual network has that many blocks. The other two make `evaluations / 4` steps of the four-stage
    Runge-Kutta method `rk4`, so that the number of evaluations is chosen and not found.

    Raises:
        UnknownNameError: no such network.
    """
    if network == "ResNet":
        return nn.Sequential(*(Residual() for _ in range(evaluations)))
    if network in NETWORKS:
        gradient = "direct" if network == "RK-Net" else "backsolve"
        return OdeBlock(ConvDynamics(), method="rk4", step_size=STAGES / evaluations, gradient=gradient)
    raise UnknownNameError("network", network, NETWORKS)


def measure_memory(network: str, evaluations: int, batch: int, device: str, repeat: int = 0) -> MemoryPoint:
    """Memory of a training step (forward, backward) on `batch` feature maps of shape (64, 6, 6)."""
    torch.manual_seed(repeat)
    torch.set_num_threads(1)
    target = torch.device(device)
    images = torch.randn(batch, CHANNELS, SIZE, SIZE, device=target)
    # A network of three steps first: it loads what is loaded on first use, in first, middle and last steps.
    _train_once(build(network, 3 * STAGES).to(target), images)
    body = build(network, evaluations).to(target)
    for parameter in body.parameters():  # exist in any training, so they are no part of the growth
        parameter.grad = torch.zeros_like(parameter)
    peak = peak_memory(lambda: _train_once(body, images), target)
    kept = bytes_kept(lambda: body(images).square().mean(), [images, *body.parameters()])
    return MemoryPoint(network, evaluations, repeat, kept, peak)


def _train_once(body: nn.Module, images: Tensor) -> None:
    torch.autograd.backward(body(images).square().mean())


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
