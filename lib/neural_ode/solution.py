"""What a solve returns: values, statistics and, where asked for, the dense output."""

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad

from neural_ode.errors import InvalidArgumentError
from neural_ode.methods import ExplicitRungeKutta, Method
from neural_ode.methods.base import Carry
from neural_ode.problem.state import State

__all__ = ["DenseOutput", "Made", "NoDenseOutput", "SampleStatistics", "Segment", "Solution", "State", "Statistics"]


@dataclass
class Statistics:
    """What a solve cost.

    Attributes:
        nfe: evaluations of the dynamics (number of function evaluations).
        accepted: steps that passed the error control, or all steps of a fixed grid; those of all samples together
            where each has its own.
        rejected: steps that did not pass and were repeated with a smaller step, counted likewise.
        step_sizes: lengths of the accepted steps, negative in reverse time.
        unconverged: accepted steps whose equations were not solved, of `implicit_adams`.
        per_sample: the counters of each sample, where each has its own steps; `nfe` then counts evaluations of
            the whole batch.
        compiled: how a solve with `compile=True` ran: `"solve"` as one graph with its loop, `"steps"` by compiled
            steps, `None` not compiled at all.
        not_compiled: why such a solve was not compiled, or in part only; `None` if there is nothing to explain.
        backward: the same for the backward pass, filled in when it has run, for every choice but `direct`. Here
            one evaluation of the dynamics includes its vector-Jacobian products, and steps made again count.
    """

    nfe: int = 0
    accepted: int = 0
    rejected: int = 0
    step_sizes: list[float] = field(default_factory=list, repr=False)
    unconverged: int = 0
    per_sample: "SampleStatistics | None" = None
    compiled: Literal["solve", "steps"] | None = None
    not_compiled: str | None = None
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
    frame: Carry
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
    carry: Carry
    dense: tuple[Any, ...]

    @property
    def t(self) -> float:
        """Where the step starts."""
        return self.made.t

    @property
    def h(self) -> float:
        """Its length, negative in reverse time."""
        return self.made.h


@dataclass(frozen=True)
class DenseOutput:
    """The solution as a function of time, by the continuous extension of the method.

    Attributes:
        method: the method that made the steps.
        segments: the accepted steps in the order they were made; none of a solve that ended where it started.
        y0: the packed state at the start.
        end: the time where the solve ended.
        restore: turns packed states into the user's structure.
    """

    method: Method
    segments: list[Segment]
    y0: Tensor
    end: float
    restore: Callable[[Tensor], State]

    @cached_property
    def start(self) -> float:
        """The time where the solve started."""
        return self.segments[0].t if self.segments else self.end

    @cached_property
    def _direction(self) -> float:
        return math.copysign(1.0, self.end - self.start)

    @cached_property
    def _starts(self) -> list[float]:
        """Where the steps start, ascending."""
        return [self._direction * segment.t for segment in self.segments]

    def packed(self, t: float) -> Tensor:
        """The packed state at one time; outside of the interval, the first or last step is continued."""
        segment = self.segments[max(bisect_right(self._starts, self._direction * t) - 1, 0)]
        theta = segment.y.new_tensor([(t - segment.t) / segment.h]).real
        return self.method.interpolate(segment.y, segment.dense, segment.h, theta)[0]

    def __call__(self, t: Tensor | float) -> State:
        """The state at times inside the interval of the solve, differentiable as the solve is, and in `t`.

        Args:
            t: a time, or a tensor of them of any shape, in any order. A time that an end of the interval rounds
                to, in the dtype of `t`, is that end.

        Returns:
            The states, shape (*t.shape, *state).

        Raises:
            InvalidArgumentError: a time lies outside the interval.
        """
        # A number, or a list of them, would be rounded to the default dtype.
        asked = torch.as_tensor(t, dtype=None if hasattr(t, "dtype") else torch.float64)
        times = self._inside(asked)
        if not self.segments:
            y = self.y0.expand(len(times), *self.y0.shape)
        elif len(times) == 1 and not _moving(times):
            y = self.packed(times.item())[None]
        else:
            starts = times.new_tensor(self._starts)
            found = torch.searchsorted(starts, self._direction * times.detach(), right=True) - 1
            steps, rows = torch.unique(found.clamp_min(0), return_inverse=True)
            y = self._states([self.segments[step] for step in steps.tolist()], rows, times)
        return self.restore(y.reshape(asked.shape + self.y0.shape))

    def _inside(self, asked: Tensor) -> Tensor:
        """The times in float64 on the CPU, shape (m,), those that an end rounds to moved there."""
        times = asked.reshape(-1).cpu().double()
        values = times.detach()
        if asked.is_floating_point() and asked.dtype != torch.float64:
            for end in (self.start, self.end):
                values = torch.where(values == torch.tensor(end, dtype=asked.dtype).double(), end, values)
        inside = values == values.clamp(*sorted((self.start, self.end)))  # NaN is not
        if not inside.all():
            raise InvalidArgumentError(
                f"t = {values[~inside][0].item()} lies outside the interval of the solve, {self.start} to "
                f"{self.end}; solve over a longer interval to evaluate there"
            )
        return times + (values - times.detach()) if _moving(times) else values

    def _states(self, segments: list[Segment], rows: Tensor, times: Tensor) -> Tensor:
        """The packed states, shape (m, *state), at times that lie each in the step that `rows` says.

        Args:
            segments: the steps in which times lie.
            rows: which of them, shape (m,).
            times: shape (m,).
        """
        like = self.y0.abs() if self.y0.is_complex() else self.y0
        start, h = times.new_tensor([[segment.t, segment.h] for segment in segments]).reshape(-1, 2).unbind(1)
        theta = ((times - start[rows]) / h[rows]).to(like.dtype).to(like.device)  # MPS has no float64
        if isinstance(self.method, ExplicitRungeKutta) and len(rows) * like.numel() < _FEW * len(segments):
            y = torch.stack([segment.y for segment in segments])
            slopes = zip(*(segment.dense for segment in segments), strict=True)
            dense = tuple(torch.stack(stage) for stage in slopes)
            return self.method.interpolate_rows(
                y, dense, h.to(like.dtype).to(like.device), theta, rows.to(like.device)
            )
        order = rows.argsort()
        parts = torch.split(theta[order.to(theta.device)], rows.bincount().tolist())
        states = [self.y0.new_empty(0, *self.y0.shape)]
        for segment, part in zip(segments, parts, strict=True):
            states.append(self.method.interpolate(segment.y, segment.dense, segment.h, part))
        return torch.cat(states)[order.argsort().to(theta.device)]


def _moving(times: Tensor) -> bool:
    """Whether derivatives in the times are wanted, backwards or forwards."""
    return times.requires_grad or _unpack_dual(times).tangent is not None


_unpack_dual: Any = forward_ad.unpack_dual  # not typed

_FEW = 2**10
"""Up to so many numbers for each step, calls take longer than arithmetic: all steps are evaluated in one."""


@dataclass(frozen=True)
class NoDenseOutput:
    """In place of a dense output that was not kept. Is false; called, it says what to do."""

    def __bool__(self) -> bool:
        return False

    def __call__(self, t: Tensor | float) -> NoReturn:
        raise InvalidArgumentError(
            "the solution has no dense output, because the steps were not kept: pass dense=True to solve. What an "
            "error has as its partial solution never has one"
        )


@dataclass(frozen=True)
class Solution:
    """The result of `solve`.

    Attributes:
        t: the output times, shape (n,), or (batch, n) with a step for each sample; after an event the output
            times before it and its own.
        y: the states there: a tensor of shape (n, *state), or a tuple of such tensors for a tuple state.
        stats: what the solve cost; its `backward` part is filled in by the backward pass.
        dense: the solution as a function of time: `dense(t)`. Where it was not asked for it is false, and to call
            it raises `InvalidArgumentError`.
        event: which number of the event function ended the solve; `None` if none did.
    """

    t: Tensor
    y: State
    stats: Statistics
    dense: DenseOutput | NoDenseOutput = field(default_factory=NoDenseOutput)
    event: int | None = None
