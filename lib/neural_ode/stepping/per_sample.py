"""The loop with error control in which every row of a batch has its own time, step and acceptance.

Lienen & Günnemann (2022), *torchode*: a batch that shares its steps takes the shortest that any row needs, and an
error norm over the batch lets single rows miss the tolerance.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neural_ode.control.first_step import initial_step
from neural_ode.control.tolerance import Tolerance
from neural_ode.errors import MaxStepsError, NonFiniteError, SolverError, StepSizeUnderflowError
from neural_ode.methods import ExplicitRungeKutta
from neural_ode.methods.base import Carry
from neural_ode.problem.norms import Norm, rms_norm
from neural_ode.problem.state import Dynamics, real_dtype
from neural_ode.solution import SampleStatistics, Statistics
from neural_ode.stepping.adaptive import check_start, policy_of
from neural_ode.stepping.settings import SolverSettings, Trajectory
from neural_ode.stepping.step_records import Again

__all__ = ["PerSample", "Record", "Sweep", "by_rows", "per_sample"]

Array = NDArray[Any]

_EXPLODED = 100.0
"""An error ratio that says: this attempt left all that is reasonable. (It cannot exceed about 1 / rtol.)"""


class Sweep(NamedTuple):
    """One attempt that some rows accepted, in numbers; see `Made`. Arrays have the shape (batch,).

    Attributes:
        number: of the attempt among such, from zero.
        now, after, h: where the steps of the rows start and end, and their lengths.
        passed: whose error was small enough, also of rows that are done.
        accepted: which rows moved on.
        done: how many output times of each row lie before it.
    """

    number: int
    now: Array
    after: Array
    h: Array
    passed: Array
    accepted: Array
    done: Array
    restarted: bool = True


Record = Callable[[Sweep, Tensor, tuple[Tensor, ...]], None]
"""Called with an attempt, the states it started from, and what the continuous extension needs of it."""


def per_sample(
    f: Dynamics,
    y0: Tensor,
    t: Tensor,
    settings: SolverSettings,
    stats: Statistics,
    record: Record | None = None,
) -> Trajectory:
    """Solve every row of `y0` with steps of its own.

    Args:
        f: the dynamics; gets times of shape (batch,).
        y0: the initial states, shape (batch, *state).
        t: output times, float64, shape (n,), or (batch, n) with times for each row.
        settings: how to solve, with an explicit Runge-Kutta method.
        stats: counters to add to.
        record: called with every attempt that some rows accepted.

    Returns:
        The states, shape (n, batch, *state).
    """
    solve = PerSample(f, y0, t, settings, stats)
    try:
        return Trajectory(t, solve.run(y0, record))
    except SolverError as error:
        raise error.at(
            float((solve.now * solve.direction).min()) * solve.direction, (t, solve.outputs(float("nan")))
        ) from None


class PerSample:
    """One solve: where each row is, and what has been found.

    Times, steps and decisions are NumPy arrays, whose small operations cost a fraction of those of tensors.
    """

    def __init__(self, f: Dynamics, y0: Tensor, t: Tensor, settings: SolverSettings, stats: Statistics):
        assert isinstance(settings.method, ExplicitRungeKutta)
        self.f, self.settings, self.stats, self.method = f, settings, stats, settings.method
        self.t = t.expand(len(y0), t.shape[-1])
        self.moving = t.requires_grad and torch.is_grad_enabled()
        self.times: Array = self.t.detach().numpy()
        self.now = self.times[:, 0].copy()
        self.direction = -1.0 if (np.diff(self.times) < 0).any() else 1.0
        self.dtype, self.device = real_dtype(y0), y0.device
        self.column = (len(y0), *[1] * (y0.dim() - 1))
        self.shape = y0.shape
        self.found: list[tuple[Tensor, Tensor]] = [(torch.arange(len(y0), device=y0.device), y0)]
        self.done = np.ones(len(y0), dtype=np.int64)
        self.counts = {name: np.zeros(len(y0), dtype=np.int64) for name in SampleStatistics._fields}

    def run(self, y: Tensor, record: Record | None = None) -> Tensor:
        """The states at the output times, shape (n, batch, *state); `record` is given what some row accepts."""
        settings, stats, counts, method = self.settings, self.stats, self.counts, self.method
        stats.per_sample = SampleStatistics(*(torch.from_numpy(counts[name]) for name in SampleStatistics._fields))
        if self.times.size == 0 or self.times.shape[1] == 1:
            return self.outputs()
        tolerance, policy = by_rows(settings.tolerance), policy_of(np, settings, self.direction, y)
        end = self.times[:, -1]
        carry: Tensor | None = self.f(self._time(), y)
        assert carry is not None
        check_start(carry, y, self.now[0])
        self._count(1, np.ones(len(end), dtype=bool))
        planned = self._first_steps(y, carry, end - self.now)
        earlier: tuple[Array, ...] = ()
        err = np.zeros_like(planned)
        steps = recorded = 0
        while True:
            active = self.now != end
            if not active.any():
                return self.outputs()
            if steps == settings.max_steps:
                row = int(active.nonzero()[0][0])
                raise MaxStepsError(
                    f"{steps} steps were not enough for row {row} of the batch: reached t = {self.now[row]}; allow "
                    "more with max_steps, loosen rtol and atol, or use a method for stiff problems"
                )
            steps += 1
            attempt = policy.propose(self.now, planned, end)
            h, after = attempt.h, attempt.after  # for rows that are done no step, and where they are
            stuck = active & ~attempt.moves
            if stuck.any():
                self._give_up(stuck, h, err)
            step = method.step(self.f, self._time(), y, self._tensor(h).reshape(self.column), carry)
            assert step.error is not None
            with torch.no_grad():
                scale = tolerance.scale(torch.maximum(y.abs(), step.y1.abs()))
                err = tolerance.norm(step.error / scale).double().cpu().numpy()
            err, passed, lost = policy.judge(attempt, err)
            lost &= active
            if lost.any():
                self._give_up(lost, h, err)
            following, latest = policy.go_on(attempt, passed, err, method.order, earlier)
            repeated = active & ~(err < _EXPLODED)
            if repeated.any():
                # What is not selected below gets a gradient of zero, and zero times infinity is NaN: repeat the
                # step, shorter for the rows that overflow or are about to.
                self._count(step.nfe, repeated)
                counts["rejected"] += repeated
                stats.rejected += int(repeated.sum())
                planned = np.where(repeated, following, attempt.planned)
                before, latest = ((*x, np.ones_like(h), np.ones_like(h))[:2] for x in (earlier, latest))
                earlier = tuple(np.where(repeated, new, old) for new, old in zip(latest, before, strict=True))
                del step
                continue
            self._count(step.nfe, active)
            accepted = passed & active
            counts["accepted"] += accepted
            counts["rejected"] += active & ~accepted
            stats.accepted += int(accepted.sum())
            stats.rejected += int((active & ~accepted).sum())
            if record is not None and accepted.any():
                record(Sweep(recorded, self.now, after, h, passed, accepted, self.done.copy()), y, step.dense)
                recorded += 1
            self._collect(y, step.dense, h, after, accepted)
            assert step.carry is None or isinstance(step.carry, Tensor)
            if passed.all():
                carry, y = step.carry, step.y1
            else:
                select = torch.from_numpy(passed).to(self.device).reshape(self.column)
                carry = None if step.carry is None else torch.where(select, step.carry, step.dense[0])
                y = torch.where(select, step.y1, y)
            self.now = np.where(accepted, after, self.now)
            planned, earlier = following, latest
            del step

    def again(self, made: Sweep, y: Tensor, carry: Carry, then: Sweep | None, collect: bool = True) -> Again:
        """Make an attempt again, and find the outputs in it; see `neural_ode.stepping.step_records`."""
        self.now, self.done, self.found = made.now, made.done.copy(), []
        h = self._tensor(made.h).reshape(self.column)
        step = self.method.step(self.f, self._time(), y, h, None)
        self.stats.nfe += step.nfe
        self.stats.accepted += 1
        if collect:
            self._collect(y, step.dense, made.h, made.after, made.accepted)
        select = torch.from_numpy(made.passed).to(self.device).reshape(self.column)
        y1 = torch.where(select, step.y1, y)
        if not self.found:
            return Again(y1, None, None, None)
        ((index, states),) = self.found
        return Again(y1, None, (index // len(y), index % len(y)), states)

    def beginning(self, made: Sweep) -> tuple[Dynamics, Tensor]:
        """The dynamics, and the times where the rows of an attempt start."""
        self.now = made.now
        return self.f, self._time()

    def _tensor(self, x: Array) -> Tensor:
        return torch.from_numpy(x).to(self.device, self.dtype)

    def _time(self) -> Tensor:
        """The times of the rows: shape (batch,), float64."""
        if self.moving:
            return (self.t[:, 0] + torch.from_numpy(self.now - self.times[:, 0])).to(self.device)
        return torch.from_numpy(self.now).to(self.device)

    def _count(self, evaluations: int, active: Array) -> None:
        self.stats.nfe += evaluations
        self.counts["nfe"] += evaluations * active

    def _first_steps(self, y: Tensor, slope: Tensor, span: Array) -> Array:
        if self.settings.first_step is not None:
            given: Array = self.direction * np.minimum(np.abs(span), self.settings.first_step)
            return given
        self._count(1, np.ones(len(span), dtype=bool))
        start, distance = torch.from_numpy(np.stack([self.now, span])).to(self.device)
        tolerance = by_rows(self.settings.tolerance)
        found: Array = initial_step(self.f, start, y, slope, distance, self.method.order, tolerance).cpu().numpy()
        return found

    def _collect(self, y: Tensor, dense: tuple[Tensor, ...], h: Array, after: Array, accepted: Array) -> None:
        """Find the states at the output times that the accepted steps pass over."""
        reached = (self.times - after[:, None]) * self.direction <= 0
        reached &= accepted[:, None]
        reached &= np.arange(self.times.shape[1]) >= self.done[:, None]
        rows, columns = reached.nonzero()
        if not len(rows):
            return
        self.done += reached.sum(axis=1)
        if self.moving:
            shift = torch.from_numpy((self.now - self.times[:, 0])[rows])
            theta = (self.t[rows, columns] - self.t[rows, 0] - shift) / torch.from_numpy(h[rows])
        else:
            theta = torch.from_numpy((self.times[rows, columns] - self.now[rows]) / h[rows])
        index = torch.from_numpy(rows).to(self.device)
        states = self.method.interpolate_rows(y, dense, self._tensor(h), theta.to(self.device, self.dtype), index)
        self.found.append((torch.from_numpy(columns * len(y) + rows).to(self.device), states))

    def outputs(self, missing: float = 0.0) -> Tensor:
        """The states found so far, shape (n, batch, *state)."""
        index = torch.cat([index for index, _ in self.found])
        states = torch.cat([states for _, states in self.found])
        n, batch = self.times.shape[1], len(self.times)
        empty = states.new_full((n * batch, *self.shape[1:]), missing)
        return empty.index_put((index,), states).reshape(n, *self.shape)

    def _give_up(self, stuck: Array, h: Array, err: Array) -> None:
        row = int(stuck.nonzero()[0][0])
        if not np.isfinite(err[row]):
            raise NonFiniteError(
                f"f(t, y) is NaN or infinite just after t = {self.now[row]} in row {row} of the batch, however "
                "small the step: does the solution blow up there, or leave the domain of f?"
            )
        raise StepSizeUnderflowError(
            f"at t = {self.now[row]} the error control asks for a step of {h[row]:.1e} in row {row} of the batch, "
            "too small to change t: loosen rtol and atol, use float64, or a method for stiff problems"
        )


def by_rows(tolerance: Tolerance) -> Tolerance:
    """The tolerance with a norm that measures every row of a batch, shape (batch,)."""
    return replace(tolerance, norm=partial(_row_norms, tolerance.norm))


def _row_norms(norm: Norm, x: Tensor) -> Tensor:
    if norm is rms_norm:
        flat = x.flatten(1) if x.dim() > 1 else x[:, None]
        size: Tensor = torch.linalg.vector_norm(flat, dim=1) / max(flat.shape[1], 1) ** 0.5
        return size
    norms: Tensor = torch.func.vmap(norm)(x)
    found: Tensor = norms.abs()
    return found
