"""What a solve returns: values, statistics and, where asked for, the dense output."""

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from neural_ode.errors import InvalidArgumentError
from neural_ode.methods import Method
from neural_ode.state import State

__all__ = ["DenseOutput", "Made", "SampleStatistics", "Segment", "Solution", "Statistics"]


@dataclass
class Statistics:
    """What a solve cost.

    Attributes:
        nfe: evaluations of the dynamics (number of function evaluations).
        accepted: steps that passed the error control, or all steps of a fixed grid.
        rejected: steps that did not pass and were repeated with a smaller step.
        step_sizes: lengths of the accepted steps, negative in reverse time.
        per_sample: the counters of each sample, where each has its own steps; `nfe` then counts evaluations of
            the whole batch.
        backward: the same for the backward pass, filled in when it has run, for every choice but `direct`. Here
            one evaluation of the dynamics includes its vector-Jacobian products, and steps made again count.
    """

    nfe: int = 0
    accepted: int = 0
    rejected: int = 0
    step_sizes: list[float] = field(default_factory=list, repr=False)
    per_sample: "SampleStatistics | None" = None
    backward: "Statistics | None" = None


class SampleStatistics(NamedTuple):
    """Counters of each sample of a batch, integer tensors of shape (batch,).

    Attributes:
        nfe: evaluations that the sample needed; those made while it only waited for others are not counted.
        accepted, rejected: its steps.
    """

    nfe: Tensor
    accepted: Tensor
    rejected: Tensor


class Made(NamedTuple):
    """An accepted step in numbers: with the state it started from, what is needed to make it again.

    Attributes:
        number: of the step, from zero.
        t, end: where it starts and ends.
        h: its length as the method was given it, which may differ from `end - t` by rounding.
        done: how many output times lie before it.
        restarted: whether the step started from `t` and the state alone, without the `carry` of the step before,
            or could have.
        frame: the `carry` that it started from, with `None` in place of its tensors.
        event: the time of the event that ended the solve in it, or `None`.
    """

    number: int
    t: float
    end: float
    h: float
    done: int
    restarted: bool
    frame: Any
    event: float | None


class Segment(NamedTuple):
    """One accepted step, as it was made.

    Attributes:
        made: the step in numbers.
        y: the state it started from.
        carry: what it started from besides.
        dense: what the continuous extension needs of it.
    """

    made: Made
    y: Tensor
    carry: Any
    dense: tuple[Any, ...]

    @property
    def t(self) -> float:
        return self.made.t

    @property
    def h(self) -> float:
        return self.made.h


@dataclass(frozen=True)
class DenseOutput:
    """The solution as a function of time, by the continuous extension of the method.

    Attributes:
        method: the method that made the steps.
        segments: the accepted steps in the order they were made.
        end: the time where the solve ended.
        restore: turns packed states into the user's structure.
    """

    method: Method
    segments: list[Segment]
    end: float
    restore: Callable[[Tensor], State]

    @cached_property
    def _starts(self) -> list[float]:
        """Where the steps start, ascending."""
        return [math.copysign(1.0, segment.h) * segment.t for segment in self.segments]

    def packed(self, t: float) -> Tensor:
        """The packed state at one time; outside of the interval, the first or last step is continued."""
        direction = math.copysign(1.0, self.segments[0].h)
        segment = self.segments[max(bisect_right(self._starts, direction * t) - 1, 0)]
        theta = segment.y.new_tensor([(t - segment.t) / segment.h]).real
        return self.method.interpolate(segment.y, segment.dense, segment.h, theta)[0]

    def __call__(self, t: Tensor | float) -> State:
        """The state at times inside the interval of the solve, differentiable as the solve is.

        Args:
            t: a time, or a tensor of them of any shape, in any order.

        Returns:
            The states, shape (*t.shape, *state).

        Raises:
            InvalidArgumentError: a time lies outside the interval.
        """
        first = self.segments[0]
        times = torch.as_tensor(t, dtype=torch.float64).to("cpu")
        flat = times.reshape(-1)
        direction = math.copysign(1.0, first.h)
        states = []
        for time in flat:
            number = time.item()
            if not direction * first.t <= direction * number <= direction * self.end:
                raise InvalidArgumentError(
                    f"t = {number} lies outside the interval of the solve, {first.t} to {self.end}; "
                    "solve over a longer interval to evaluate there"
                )
            states.append(self.packed(number))
        y = torch.stack(states) if states else first.y.new_empty((0, *first.y.shape))
        return self.restore(y.reshape(times.shape + first.y.shape))


@dataclass(frozen=True)
class Solution:
    """The result of `solve`.

    Attributes:
        t: the output times, shape (n,), or (batch, n) with a step for each sample; after an event the output
            times before it and its own.
        y: the states there: a tensor of shape (n, *state), or a tuple of such tensors for a tuple state.
        stats: what the solve cost; its `backward` part is filled in by the backward pass.
        dense: the solution as a function of time, or `None` where it was not asked for.
        event: which number of the event function ended the solve; `None` if none did.
    """

    t: Tensor
    y: State
    stats: Statistics
    dense: DenseOutput | None = None
    event: int | None = None
