"""What a training step of the networks in Table 1 costs."""

import statistics
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from neural_ode.errors import needs
from reproduction.measure.memory import bytes_kept
from reproduction.measure.timing import seconds_of
from reproduction.training.mnist import classification_loss

with needs("notebooks"):
    from tqdm import tqdm

__all__ = ["StepCost", "step_costs"]


class StepCost(NamedTuple):
    """Memory and time of a training step.

    Attributes:
        bytes_kept: what the forward pass keeps for the backward pass, beside images and parameters.
        seconds: forward and backward, the median of some.
    """

    bytes_kept: int
    seconds: float


def step_costs(models: Mapping[str, nn.Module], images: Tensor, labels: Tensor, rounds: int) -> dict[str, StepCost]:
    """Measure the networks in turn, so that whatever else the machine does weighs on all of them.

    Args:
        models: by name, all on one device; their gradients are overwritten.
        images: float32, shape (n, 1, 28, 28).
        labels: shape (n,).
        rounds: how often each is timed.
    """
    device = next(iter(next(iter(models.values())).parameters())).device
    batch = images.to(device), labels.to(device)
    kept = {
        name: bytes_kept(partial(classification_loss, model, batch), [*batch, *model.parameters()])
        for name, model in models.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in tqdm(range(rounds), desc="training steps", unit="round"):
        for name, model in models.items():
            seconds[name].append(seconds_of(partial(_train_once, model, batch), device))
            model.zero_grad()
    return {name: StepCost(kept[name], statistics.median(seconds[name])) for name in models}


def _train_once(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    torch.autograd.backward(classification_loss(model, batch))
