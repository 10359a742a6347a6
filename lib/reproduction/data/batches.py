"""Minibatches by the number of the training step."""

from dataclasses import dataclass

import torch
from torch import Tensor

from neural_ode.errors import InvalidArgumentError

__all__ = ["Minibatches"]


@dataclass(frozen=True)
class Minibatches:
    """Which examples a step sees: a function without a state, so any step can be repeated.

    Each epoch goes once through the examples in a new order; a last, incomplete batch is left out.

    Attributes:
        examples: how many there are.
        size: of a batch.
        seed: decides the order.

    Raises:
        InvalidArgumentError: a batch is empty, or larger than all examples together.
    """

    examples: int
    size: int
    seed: int

    def __post_init__(self) -> None:
        if not 0 < self.size <= self.examples:
            raise InvalidArgumentError(f"batch size {self.size} with {self.examples} examples")

    @property
    def steps_per_epoch(self) -> int:
        """How many whole batches there are."""
        return self.examples // self.size

    def __call__(self, step: int) -> Tensor:
        """The numbers of the examples, int64, shape (size,)."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order = torch.randperm(
            self.examples, generator=torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        )
        return order[position * self.size : (position + 1) * self.size]
