"""Which states of a solve to keep, and in which order to find the others again.

In the forward pass the number of steps is unknown: states are kept at a stride that doubles whenever the memory is
full. The backward pass needs the states from the last to the first. It finds those between two kept ones by making
steps again, and keeps some of these in the memory that the states behind it have left free, chosen so that no step
is made more often than necessary (Griewank & Walther 2000, *Algorithm 799: revolve*; with `s` states and `r`
repetitions of a step one gets through `C(s + r, s)` steps).
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from neural_ode.methods.base import Carry
from neural_ode.stepping.step_records import Replay

__all__ = ["Budget", "Checkpoints", "Kept", "Snapshot"]

Recorded = TypeVar("Recorded")

Budget = int | Literal["log"] | None
"""How many states to keep: so many, a number that grows like the logarithm of the steps, or all."""


class Snapshot(NamedTuple):
    """What a step starts from.

    Attributes:
        y: the state.
        carry: what else; `None` if the state is all.
    """

    y: Tensor
    carry: Carry


Kept = tuple[int, Snapshot]
"""A step, and what it started from."""


class Checkpoints:
    """The states that are kept of one solve.

    Attributes:
        kept: the steps whose states are kept, the first one always, in their order.
    """

    def __init__(self, budget: Budget):
        self.budget = budget
        self.kept: list[Kept] = []
        self._stride = 1

    def offer(self, number: int, snapshot: Snapshot) -> None:
        """Keep what a step starts from, or not. Steps come in order, from zero on."""
        while number % self._stride == 0:
            if len(self.kept) < self.capacity(number + 1):
                self.kept.append((number, snapshot))
                return
            self._stride *= 2
            self.kept = [one for one in self.kept if one[0] % self._stride == 0]

    def capacity(self, steps: int) -> int:
        """How many states may be kept of so many steps."""
        if self.budget is None:
            return steps
        return self.budget if self.budget != "log" else 1 + math.ceil(math.log2(steps + 1))

    def backwards(self, made: Sequence[Recorded], kept: Sequence[Kept], replay: Replay[Recorded]) -> Iterator[Kept]:
        """Every step with what it started from, the last one first; see `Trail`.

        Never holds more than `capacity(len(made))` of them, besides the one that it gives away.
        """

        def advance(first: int, last: int, snapshot: Snapshot) -> Snapshot:
            with torch.no_grad():
                for number in range(first, last):
                    again = replay.again(made[number], *snapshot, made[number + 1], collect=False)
                    snapshot = Snapshot(again.y, again.carry)
            return snapshot

        stack, capacity = list(kept), self.capacity(len(made))
        for last in reversed(range(len(made))):
            number, snapshot = stack[-1]
            while last > number and len(stack) < capacity:
                middle = number + first_part(last + 1 - number, capacity - len(stack) + 1)
                number, snapshot = middle, advance(number, middle, snapshot)
                stack.append((number, snapshot))
            if number == last:
                stack.pop()
            else:
                snapshot = advance(number, last, snapshot)
            yield last, snapshot


def first_part(length: int, snapshots: int) -> int:
    """After how many of `length` steps to keep the next state.

    Args:
        length: at least 2.
        snapshots: how many states may be kept of them, the one they start from included; at least 2.
    """
    repetitions = 1
    while math.comb(snapshots + repetitions, snapshots) < length:
        repetitions += 1
    # Both parts then need no more repetitions: the first one less, as its steps have been made once.
    return min(
        math.comb(snapshots + repetitions - 1, snapshots),
        length - math.comb(snapshots + repetitions - 2, snapshots - 1),
    )
