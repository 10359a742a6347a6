"""A solve in Python around the compiled loop.

The loop records up to a number of steps and comes back to Python, which takes the outputs and goes on.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from neural_ode.compiled.compiler import CannotCompile, call
from neural_ode.compiled.loop import control_of, patience_of, run_until, tolerance_of
from neural_ode.compiled.outputs import located, outputs_in
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
    settings, method, capacity = plan.settings, plan.method, plan.capacity
    now, end = plan.times[..., 0], plan.times[..., -1]
    h: Array = np.full_like(now, math.nan)  # the loop chooses it
    if settings.first_step is not None:
        h = plan.direction * np.minimum(np.abs(end - now), settings.first_step)
    evaluations = method.tableau.stages - method.tableau.fsal  # of a try
    stats = _begun(plan, 1 + (settings.first_step is None))
    recorded: list[Recorded] = []
    steps, tries = 0, _Tries(plan)
    carry: Tensor | None = None
    found = y.new_empty((plan.times.shape[-1], *y.shape))
    found[0] = y
    done = np.ones(plan.batch, dtype=np.int64)
    norm = plan.norm
    key = plan.dynamics.key(method, norm, capacity, now.ndim)
    control, (rtol, atol) = control_of(settings, plan.direction, y), tolerance_of(settings, y)
    while (now != end).any():
        span = torch.from_numpy(np.stack([now, h, end])).to(y.device)
        depends = key._replace(variant=(*key.variant, carry is None))
        functions = (plan.dynamics, method, norm, capacity)
        inputs = (y, carry, span, control, rtol, atol)
        status, y, carry, log, states, slopes = call(
            run_until, depends, y, *functions, *inputs, fuse_products=True, fuse_stacks=plan.small
        )
        numbers = status.cpu().numpy()
        now, h, accepted, tried = numbers[:-2].reshape(4, *now.shape)
        count, made = map(int, numbers[-2:])
        starts, lengths, before = log[:count].transpose(0, 1).cpu().numpy()
        ends = np.concatenate([starts[1:], now[None]])[:count]
        places, done = located(plan, done, ends)
        tries.add(made, before.reshape(count, -1)[:, :1].ravel() + 1, places[0])
        steps += count
        _count(plan, stats, lengths, accepted, tried, evaluations * made)
        chunk, values = outputs_in(
            plan, places, (starts, lengths, ends), (log[:count], states[: count + 1], slopes)
        )
        plan.rows(found)[chunk.targets] = values
        if keep:
            # The backward pass needs what was recorded, not all that there was room for.
            recorded.append(chunk._replace(log=chunk.log.clone(), states=chunk.states.clone()))
        if (now != end).any() and count < capacity and made < patience_of(capacity):
            raise CannotCompile("the solve fails", failed=True)
    return found, Solved(float(np.ravel(h)[0]), stats, steps, recorded)


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


def _count(plan: Plan, stats: Statistics, lengths: Array, accepted: Array, tried: Array, evaluations: int) -> None:
    """Add the lengths of recorded steps, what `run_until` counted, and evaluations of the dynamics."""
    stats.nfe += evaluations
    stats.accepted += int(accepted.sum())
    stats.rejected += int((tried - accepted).sum())
    if stats.per_sample is None:
        stats.step_sizes += lengths.tolist()
        return
    of_a_try = plan.method.tableau.stages - plan.method.tableau.fsal
    stats.per_sample.nfe.add_(torch.from_numpy(of_a_try * tried).long())
    stats.per_sample.accepted.add_(torch.from_numpy(accepted).long())
    stats.per_sample.rejected.add_(torch.from_numpy(tried - accepted).long())
