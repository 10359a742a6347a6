"""A solve in Python around the compiled loop.

The loop records up to a number of steps and comes back to Python, which takes the outputs and goes on.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from neural_ode.compiled.compiler import CannotCompile, call
from neural_ode.compiled.loop import control_of, patience_of, read_until, run_until, tolerance_of
from neural_ode.compiled.outputs import located, outputs_in, readings
from neural_ode.compiled.plan import Array, Plan, Recorded
from neural_ode.solution import SampleStatistics, Statistics

__all__ = ["Solved", "run"]


class Solved(NamedTuple):
    """What a solve has found besides the states.

    Attributes:
        next_step: as in `Trajectory`.
        stats: what it cost.
        steps: how many steps were recorded.
        recorded: what the backward pass needs.
    """

    next_step: float
    stats: Statistics
    steps: int
    recorded: list[Recorded]


def run(plan: Plan, y0: Tensor, keep: bool = False) -> tuple[Tensor, Solved]:
    """The states at the output times, shape (n, *state), without a graph.

    Args:
        plan: what is solved.
        y0: the initial state.
        keep: whether to keep what the backward pass needs.

    Raises:
        CannotCompile: it cannot be compiled, or not be finished.
    """
    with torch.no_grad():
        return _run(plan, y0.detach(), keep)


def _run(plan: Plan, y: Tensor, keep: bool) -> tuple[Tensor, Solved]:
    march = (_Reading if plan.reads else _Recording)(plan, y, keep)
    now, end = plan.times[..., 0], plan.times[..., -1]
    h: Array = np.full_like(now, math.nan)  # the loop chooses it
    if plan.settings.first_step is not None:
        h = plan.direction * np.minimum(np.abs(end - now), plan.settings.first_step)
    stats = _begun(plan, 1 + (plan.settings.first_step is None))
    steps = 0
    while (now != end).any():
        status = march.on(np.stack([now, h, end]))
        now, h, accepted, tried = status[:-2].reshape(4, *now.shape)
        count, made = map(int, status[-2:])
        steps += count
        march.take(now, count, made)
        _count(plan, stats, march.lengths, accepted, tried, made)
        if (now != end).any() and count < plan.capacity and made < patience_of(plan.capacity):
            raise CannotCompile("the solve fails", failed=True)
    return march.found, Solved(float(np.ravel(h)[0]), stats, steps, march.recorded)


class _March:
    """A solve on its way.

    Attributes:
        plan: what is solved.
        keep: whether to keep what the backward pass needs.
        found: the states at the output times, shape (n, *state).
        done: how many of them are there, for each row that has steps of its own.
        lengths: of the steps that were recorded last.
        recorded: what is kept.
    """

    def __init__(self, plan: Plan, y: Tensor, keep: bool):
        self.plan, self.keep = plan, keep
        self.found = y.new_empty((plan.times.shape[-1], *y.shape))
        self.found[0] = y
        self.done = np.ones(plan.batch, dtype=np.int64)
        self.lengths: Array = np.empty(0)
        self.recorded: list[Recorded] = []
        self._y, self._slope = y, None
        norm = plan.norm
        self._key = plan.dynamics.key(plan.method, norm, plan.capacity, plan.times.ndim)
        self._functions = (plan.dynamics, plan.method, norm, plan.capacity)
        self._control = (control_of(plan.settings, plan.direction, y), *tolerance_of(plan.settings, y))

    def _call(self, function: Callable[..., Any], span: Array, *rest: Any) -> tuple[Array, list[Tensor]]:
        """Run the graph of a loop: the status, and what it returns besides the state."""
        inputs = (self._y, self._slope, torch.from_numpy(span).to(self._y.device), *self._control, *rest)
        key = self._key._replace(variant=(*self._key.variant, self._slope is None))
        fuse = {"fuse_products": True, "fuse_stacks": self.plan.small}
        status, self._y, self._slope, *found = call(function, key, self._y, *self._functions, *inputs, **fuse)
        return status.cpu().numpy(), found


class _Recording(_March):
    """Outputs are read off the steps that a loop has recorded."""

    def __init__(self, plan: Plan, y: Tensor, keep: bool):
        super().__init__(plan, y, keep)
        self._tries = _Tries(plan)

    def on(self, span: Array) -> Array:
        """Run the loop; returns the status of `run_until`."""
        status, (self._log, self._states, self._slopes) = self._call(run_until, span)
        return status

    def take(self, now: Array, count: int, made: int) -> None:
        """Take what the loop has found.

        Args:
            now: where it is.
            count, made: how many steps it recorded, and tried.
        """
        plan, device_log, states = self.plan, self._log[:count], self._states[: count + 1]
        log = device_log.cpu().numpy()
        self.lengths = log[:, 1]
        ends = np.concatenate([log[1:, 0], now[None]])[:count]
        before = self.done
        places, self.done = located(plan, before, ends)
        self._tries.add(made, log[:, 2].reshape(count, -1)[:, :1].ravel() + 1, places.steps)
        read = readings(plan, places, log, ends, states)
        values, rates = outputs_in(plan, read, states, self._slopes)
        plan.rows(self.found)[read.targets] = values
        if self.keep:
            # The backward pass needs what was recorded, not all that there was room for.
            self.recorded.append(Recorded(device_log.clone(), states.clone(), ends, before, rates))


class _Reading(_March):
    """Outputs are found by the loop."""

    def __init__(self, plan: Plan, y: Tensor, keep: bool):
        super().__init__(plan, y, keep)
        self._key = self._key._replace(variant=(*self._key.variant, plan.room))
        times = np.full((plan.room + 1, *plan.times.shape[:-1]), plan.direction * math.inf)
        times[: plan.times.shape[-1]] = plan.times.T
        self._given = torch.from_numpy(times), torch.tensor(int(keep), device="cpu")
        self._since = 0

    def on(self, span: Array) -> Array:
        """Run the loop; returns the status of `run_until`."""
        times, keep = self._given
        passed = np.stack([self.done, np.full_like(self.done, self._since)])
        given = torch.from_numpy(passed if self.plan.by_rows else passed[:, 0])
        status, found = self._call(read_until, span, times, given, keep)
        self._log, self._states, self._passed, self._outputs = found
        return status

    def take(self, now: Array, count: int, made: int) -> None:
        """Take what the loop has found, see `_Recording.take`.

        Raises:
            CannotCompile: there were too many tries since the last output.
        """
        plan, log, before = self.plan, self._log[:count], self.done
        starts, self.lengths = log.numpy()[:, 0], log.numpy()[:, 1]
        self.done, (self._since, *_) = self._passed.numpy().reshape(2, -1)
        if self._since > plan.settings.max_steps:
            raise CannotCompile("the solve takes too many steps", failed=True)
        if self.keep:
            ends = np.concatenate([starts[1:], now[None]])[:count]
            self.recorded.append(Recorded(log.clone(), self._states[: count + 1].clone(), ends, before))
        least, most = before.min(), self.done.max()
        if before.max() == least and self.done.min() == most:
            self.found[least:most] = self._outputs[least:most]
            return
        number = np.arange(least, most)[:, None]
        found = torch.from_numpy((before <= number) & (number < self.done))
        self.found[least:most][found] = self._outputs[least:most][found]


class _Tries:
    """Counts tries, which must not be too many from one output to the next; with own steps for rows, in all."""

    def __init__(self, plan: Plan):
        self.joint, self.limit = not plan.by_rows, plan.settings.max_steps
        self.total = self.last = 0

    def add(self, made: int, marks: Array, steps: Array) -> None:
        """
        Args:
            made: so many were made.
            marks: how many of them up to each recorded step.
            steps: the steps in which outputs lie, ascending.

        Raises:
            CannotCompile: they are too many.
        """
        passed: list[int] = []
        if self.joint and len(steps):
            passed = (self.total + np.unique(marks[steps])).astype(int).tolist()
        self.total += made
        gaps = np.diff([self.last, *passed, self.total])
        if gaps.max() > self.limit:
            raise CannotCompile("the solve takes too many steps", failed=True)
        if passed:
            self.last = passed[-1]


def _begun(plan: Plan, evaluations: int) -> Statistics:
    """The statistics before the first step."""
    stats = Statistics(nfe=evaluations, compiled="solve")
    if plan.by_rows:
        counts = (torch.zeros(plan.batch, dtype=torch.int64) for _ in SampleStatistics._fields)
        stats.per_sample = SampleStatistics(*counts)
        stats.per_sample.nfe.add_(evaluations)
    return stats


def _count(plan: Plan, stats: Statistics, lengths: Array, accepted: Array, tried: Array, made: int) -> None:
    """Add the lengths of recorded steps and what the loop counted."""
    of_a_try = plan.method.tableau.stages - plan.method.tableau.fsal
    stats.nfe += of_a_try * made
    stats.accepted += int(accepted.sum())
    stats.rejected += int((tried - accepted).sum())
    if stats.per_sample is None:
        stats.step_sizes += lengths.tolist()
        return
    stats.per_sample.nfe.add_(torch.from_numpy(of_a_try * tried).long())
    stats.per_sample.accepted.add_(torch.from_numpy(accepted).long())
    stats.per_sample.rejected.add_(torch.from_numpy(tried - accepted).long())
