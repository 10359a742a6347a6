"""What a solve returns: values, statistics and, where asked for, the dense output."""

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from neural_ode.errors import InvalidArgumentError
from neural_ode.methods import ExplicitRungeKutta
from neural_ode.state import State, TupleState

__all__ = ["DenseOutput", "Segment", "Solution", "Statistics"]


@dataclass
class Statistics:
    """What a solve cost.

    Attributes:
        nfe: evaluations of the dynamics (number of function evaluations).
        accepted: steps that passed the error control, or all steps of a fixed grid.
        rejected: steps that did not pass and were repeated with a smaller step.
        step_sizes: lengths of the accepted steps, negative in reverse time.
        backward: the same for the backward pass of `backsolve`, filled in when the backward pass has run. Here
            one evaluation of the dynamics includes its vector-Jacobian products.
    """

    nfe: int = 0
    accepted: int = 0
    rejected: int = 0
    step_sizes: list[float] = field(default_factory=list, repr=False)
    backward: "Statistics | None" = None


class Segment(NamedTuple):
    """One accepted step: all that the continuous extension needs."""

    t: float
    h: float
    y: Tensor
    stages: tuple[Tensor, ...]


@dataclass(frozen=True)
class DenseOutput:
    """The solution as a function of time, by the continuous extension of the method.

    Attributes:
        method: the method that made the steps.
        segments: the accepted steps in the order they were made.
        end: the time where the solve ended.
        structure: how a tuple state was packed, `None` for a tensor.
    """

    method: ExplicitRungeKutta
    segments: list[Segment]
    end: float
    structure: TupleState | None = None

    def __call__(self, t: Tensor | float) -> State:
        """The state at time `t` inside the interval of the solve, with the state's shape.

        Raises:
            InvalidArgumentError: `t` lies outside the interval.
        """
        time = float(t)
        first = self.segments[0]
        direction = 1.0 if first.h > 0 else -1.0
        if not direction * first.t <= direction * time <= direction * self.end:
            raise InvalidArgumentError(
                f"t = {time} lies outside the interval of the solve, {first.t} to {self.end}; "
                "solve over a longer interval to evaluate there"
            )
        starts = [direction * segment.t for segment in self.segments]
        segment = self.segments[bisect_right(starts, direction * time) - 1]
        theta = torch.tensor([(time - segment.t) / segment.h], dtype=segment.y.abs().dtype, device=segment.y.device)
        y = self.method.interpolate(segment.y, segment.stages, segment.h, theta)[0]
        return y if self.structure is None else self.structure.unpack(y)


@dataclass(frozen=True)
class Solution:
    """The result of `solve`.

    Attributes:
        t: the output times, shape (n,).
        y: the states there: a tensor of shape (n, *state), or a tuple of such tensors for a tuple state.
        stats: what the solve cost; its `backward` part is filled in by the backward pass.
        dense: the solution as a function of time, or `None` where it was not asked for.
    """

    t: Tensor
    y: State
    stats: Statistics
    dense: DenseOutput | None = None
