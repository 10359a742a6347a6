"""The loop with error control as a graph.

These functions are only run by `torch.compile`. They are written once for both ways to step: with one time for the
whole state, shape (), or with one for each row of a batch, shape (batch,).
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from neural_ode.compiled.compiler import while_loop
from neural_ode.control.controllers import integral_factor
from neural_ode.control.first_step import initial_step
from neural_ode.control.policy import StepPolicy, stretch_for
from neural_ode.control.tolerance import Tolerance
from neural_ode.methods import ExplicitRungeKutta
from neural_ode.problem.norms import Norm
from neural_ode.problem.state import Dynamics, column
from neural_ode.stepping.settings import SolverSettings

__all__ = ["PATIENCE", "control_of", "patience_of", "read_until", "run_through", "run_until", "tolerance_of"]

PATIENCE = 256
"""Tries after which a graph comes back, so that the loop in Python can be interrupted."""


def patience_of(capacity: int) -> int:
    """Tries after which a graph comes back that has room for so many steps, which shall be filled first."""
    return max(PATIENCE, 4 * capacity)


def control_of(settings: SolverSettings, direction: float, like: Tensor) -> Tensor:
    """What the graphs know of the settings: direction, safety, ifactor, dfactor, shortest and longest step, stretch
    of the last step, most steps; float64, shape (8,)."""
    control, stretch = settings.controller, stretch_for(settings.max_step)
    limits = (settings.min_step, settings.longest_step(like), stretch, float(settings.max_steps))
    return _numbers((direction, control.safety, control.ifactor, control.dfactor, *limits), like.device)


def tolerance_of(settings: SolverSettings, like: Tensor) -> tuple[Tensor, Tensor]:
    """`rtol` and `atol` as tensors."""
    tolerance = settings.tolerance
    rtol, atol = (
        x if isinstance(x, Tensor) else _numbers(float(x), like.device) for x in (tolerance.rtol, tolerance.atol)
    )
    return rtol, atol


@lru_cache(maxsize=256)
def _numbers(values: float | tuple[float, ...], device: torch.device) -> Tensor:
    """Numbers as a tensor, the same one every time, in whatever mode it is asked for: nothing writes into it."""
    with unset_fake_temporarily(), torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float64, device=device)


def _policy(control: Tensor) -> StepPolicy[Tensor]:
    """The rule for the steps, from what `control_of` gives."""
    direction, safety, ifactor, dfactor, shortest, longest, stretch, _ = control.unbind()

    def factor(err: Tensor, order: int, earlier: Sequence[Tensor]) -> Tensor:
        return integral_factor(err, order, safety, ifactor, dfactor)

    return StepPolicy(torch, factor, direction, shortest, longest, stretch)


def _attempt(
    f: Dynamics,
    method: ExplicitRungeKutta,
    control: Tensor,
    tolerance: Tolerance,
    now: Tensor,
    h: Tensor,
    end: Tensor,
    y: Tensor,
    carry: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, tuple[Tensor, ...], Tensor]:
    """Try a step; what did not pass stays where it is.

    Returns:
        The time and the step after it, the state and the carry there, whether it passed, its stages and length.
    """
    policy, active = _policy(control), now != end
    attempt = policy.propose(now, h, end)
    step = method.step(f, now, y, column(attempt.h.to(y.dtype), y), carry)
    assert step.error is not None
    scale = tolerance.scale(torch.maximum(y.abs(), step.y1.abs()))
    err = torch.as_tensor(tolerance.norm(step.error / scale)).abs().to(now)
    err, passed, lost = policy.judge(attempt, err)
    passed = passed & active
    following, _ = policy.go_on(attempt, passed, err, method.order, ())
    chosen = column(passed, y)
    assert step.carry is None or isinstance(step.carry, Tensor)
    return (
        torch.where(passed, attempt.after, now),
        # Without a shorter step to try, the loop is stuck, which a step that is NaN says.
        torch.where(lost & active, math.nan, following),
        torch.where(chosen, step.y1, y),
        y if step.carry is None else torch.where(chosen, step.carry, step.dense[0]),
        passed,
        step.dense,
        attempt.h,
    )


def _begin(
    f: Dynamics, method: ExplicitRungeKutta, tolerance: Tolerance, now: Tensor, h: Tensor, end: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """The first step, chosen where it is NaN, and the slope at the start."""
    now, h, end = now.clone(), h.clone(), end.clone()  # a loop takes no views of one tensor

    def evaluate(left: Tensor, step: Tensor, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        slope = f(now, y)
        chosen = initial_step(f, now, y, slope, end - now, method.order, tolerance)
        return left - 1, torch.where(h.isnan(), chosen, h), slope

    # A loop of one turn, because loops refuse functions with side effects, such as counters of evaluations. Outside
    # the side effects would happen once a graph.
    one = torch.ones((), dtype=torch.int64, device=y.device)
    _, h, slope = while_loop(lambda left, *_: left > 0, evaluate, (one, h.clone(), y.clone()))
    return h, slope


Notes = tuple[Tensor, ...]
"""What a loop hands on besides the solve."""


def _march(
    f: Dynamics,
    method: ExplicitRungeKutta,
    norm: Norm,
    capacity: int,
    where: tuple[Tensor, Tensor | None, Tensor],
    control: Tensor,
    tolerance: tuple[Tensor, Tensor],
    notes: Notes,
    may_go_on: Callable[..., Tensor] | None,
    note: Callable[..., Notes],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Notes]:
    """Solve on for up to `capacity` steps.

    Args:
        f, method, norm: see `run_until`.
        where: `y`, `slope` and `span` of `run_until`.
        control, tolerance: the same.
        notes: what `note` hands on.
        may_go_on: whether the loop may, from that; `None` if always.
        note: called after every try with a `_Try` and the notes.

    Returns:
        The status that `run_until` describes, `y` and `slope` there, how many steps are recorded, and the notes.
    """
    y, slope, span = where
    start, h, end = span.unbind()
    fsal, patience = method.tableau.fsal, patience_of(capacity)
    controlled = Tolerance(*tolerance, norm)
    if slope is None:
        h, slope = _begin(f, method, controlled, start, h, end, y)
    zero = torch.zeros((), dtype=torch.int64, device=y.device)
    none = torch.zeros_like(start)
    kept = len(notes)

    def goes_on(
        now: Tensor, h: Tensor, accepted: Tensor, tried: Tensor, recorded: Tensor, tries: Tensor, *rest: Tensor
    ) -> Tensor:
        waiting = now != end
        stuck: Tensor = waiting & ~_policy(control).propose(now, h, end).moves
        going = waiting.any() & ~stuck.any() & (recorded < capacity) & (tries < patience)
        return going if may_go_on is None else going & may_go_on(*rest[:kept])

    def attempt(
        now: Tensor, h: Tensor, accepted: Tensor, tried: Tensor, recorded: Tensor, tries: Tensor, *rest: Tensor
    ) -> tuple[Tensor, ...]:
        y, *carry = rest[kept:]
        then, following, new, carried, passed, stages, taken = _attempt(
            f, method, control, controlled, now, h, end, y, carry[0] if fsal else None
        )
        length = torch.where(passed, taken, none)
        made = _Try(recorded, now, length, tries, then, passed, y.clone(), new, stages)
        noted = note(made, *rest[:kept])
        counts = (accepted + passed, tried + (now != end), recorded + passed.any(), tries + 1)
        return (then, following, *counts, *noted, new, *((carried,) * fsal))

    begin = (start.clone(), h.clone(), none.clone(), none.clone(), zero, zero.clone(), *notes, y.clone())
    found = while_loop(goes_on, attempt, (*begin, *((slope.clone(),) * fsal)))
    now, h, accepted, tried, recorded, tries, *rest = found
    notes, (y, *carry) = tuple(rest[:kept]), rest[kept:]
    totals = torch.stack([recorded, tries]).to(now)
    status = torch.cat([torch.stack([now, h, accepted, tried]).reshape(-1), totals])
    return status, y, carry[0] if fsal else slope.clone(), recorded, notes


class _Try(NamedTuple):
    """A step that was tried.

    Attributes:
        row: where to record it, shape ().
        now, length, then: the time before it, its length (zero for rows that it did not advance), the time after.
        tries: how many there were before, shape ().
        passed: whether it was accepted.
        y, y1: the states before and after it.
        stages: the slopes in between.
    """

    row: Tensor
    now: Tensor
    length: Tensor
    tries: Tensor
    then: Tensor
    passed: Tensor
    y: Tensor
    y1: Tensor
    stages: tuple[Tensor, ...]

    @property
    def entry(self) -> Tensor:
        """What a log has of it."""
        return torch.stack([self.now, self.length, self.tries.to(self.now) + torch.zeros_like(self.now)])


def run_until(
    f: Dynamics,
    method: ExplicitRungeKutta,
    norm: Norm,
    capacity: int,
    y: Tensor,
    slope: Tensor | None,
    span: Tensor,
    control: Tensor,
    rtol: Tensor,
    atol: Tensor,
) -> tuple[Tensor, ...]:
    """Solve on, and record up to `capacity` steps.

    Args:
        f, method, norm: the dynamics, what makes steps, and the norm of an error: shape (), or (batch,).
        y: where the solve is.
        slope: `f` there; `None` at the start of a solve.
        span: the time there, the step to try and the end, float64, shape (3,) or (3, batch). At the start of a
            solve a step that is NaN is to be chosen, which costs a further evaluation.
        control, rtol, atol: see `control_of` and `tolerance_of`.

    Returns:
        status: times, next steps, accepted and tried steps, then how many steps are recorded and how many tries
            were made, shape (4 times that of a time, plus 2).
        y, slope: where the solve is then.
        log: of each recorded step its start, its length (zero for rows that it did not advance) and the number of
            tries before it, shape (capacity, 3) or (capacity, 3, batch).
        states: where they start and, in the next row, where the last one ended.
        slopes: their stages, shape (capacity, stages, *state).
    """
    log = span.new_empty((capacity, *span.shape))
    states = y.new_empty((capacity + 1, *y.shape))
    slopes = y.new_empty((capacity, method.tableau.stages, *y.shape))

    def record(made: _Try) -> Notes:
        row = made.row.reshape(1)
        log.index_copy_(0, row, made.entry[None])
        states.index_copy_(0, row, made.y[None])
        slopes.index_copy_(0, row, torch.stack(made.stages)[None])
        return ()

    status, y, slope, recorded, _ = _march(
        f, method, norm, capacity, (y, slope, span), control, (rtol, atol), (), None, record
    )
    states.index_copy_(0, recorded.reshape(1), y[None])
    return status, y, slope, log, states, slopes


def read_until(
    f: Dynamics,
    method: ExplicitRungeKutta,
    norm: Norm,
    capacity: int,
    y: Tensor,
    slope: Tensor | None,
    span: Tensor,
    control: Tensor,
    rtol: Tensor,
    atol: Tensor,
    times: Tensor,
    passed: Tensor,
    keep: Tensor,
) -> tuple[Tensor, ...]:
    """`run_until` that finds the outputs itself, between two steps, and records no slopes.

    Args:
        f, method, norm, capacity, y, slope, span, control, rtol, atol: see there.
        times: of the outputs, behind them at least once infinity, float64, shape (n,) or (n, batch).
        passed: how many of them have been passed, of each row of a batch, and tries since the last of them; int64,
            shape (2,) or (2, batch).
        keep: 1 if the steps are needed for a backward pass, 0 if not, shape ().

    Returns:
        status, y, slope, log, states: see there; all steps are written into the first row of `states` if they are
            not kept.
        passed: as it is then.
        outputs: the states at those of the `times` that were passed now, shape (n, *state).
    """
    log = span.new_empty((capacity, *span.shape))
    states = y.new_empty((capacity + 1, *y.shape))
    last = len(times) - 1
    # A state as rows that have steps of their own, of which there is one if all have the same.
    rows = y.shape if span.dim() == 2 else (1, *y.shape)
    outputs = y.new_empty((len(times) * rows[0], *rows[1:]))
    lanes = torch.arange(rows[0], device=y.device)

    def read(made: _Try, passed: Tensor, since: Tensor) -> Notes:
        at = passed

        def time(at: Tensor) -> Tensor:
            return times.reshape(-1).index_select(0, at.reshape(-1) * rows[0] + lanes).reshape(at.shape)

        def waits(at: Tensor) -> Tensor:
            return made.passed & (control[0] * (time(at) - made.then) <= 0)

        def take(at: Tensor) -> tuple[Tensor]:
            waiting, when = waits(at), time(at)
            theta = (when - made.now) / made.length
            weights = made.length.reshape(-1, 1) * method.dense_weights(theta.reshape(-1))
            value = made.y
            for weight, stage in zip(weights.to(value.dtype).unbind(1), made.stages, strict=True):
                value = value + column(weight.reshape(at.shape), value) * stage
            # An output at the end of a step is the state there.
            value = torch.where(column(when == made.then, value), made.y1, value)
            place = torch.where(waiting, at, last).reshape(-1) * rows[0] + lanes
            outputs.index_copy_(0, place, value.reshape(rows))
            return (at + waiting,)

        (at,) = while_loop(lambda at: waits(at).any(), take, (passed.clone(),))
        row = made.row * keep
        log.index_copy_(0, made.row.reshape(1), made.entry[None])
        states.index_copy_(0, row.reshape(1), made.y[None])
        tries = since + 1
        # Rows with steps of their own have common tries.
        reset = (at > passed) & (tries <= control[7]) if span.dim() == 1 else torch.zeros_like(made.passed)
        return at, torch.where(reset, 0, tries)

    def may_try(passed: Tensor, since: Tensor) -> Tensor:
        return (since <= control[7]).all()

    begin = tuple(x.clone() for x in passed.unbind())
    status, y, slope, recorded, found = _march(
        f, method, norm, capacity, (y, slope, span), control, (rtol, atol), begin, may_try, read
    )
    states.index_copy_(0, (recorded * keep).reshape(1), y[None])
    return status, y, slope, log, states, torch.stack(found), outputs.reshape(-1, *y.shape)


def run_through(
    f: Dynamics,
    method: ExplicitRungeKutta,
    norm: Norm,
    restart: Callable[..., Tensor],
    observed: tuple[Tensor, ...],
    y: Tensor,
    status: Tensor,
    times: Tensor,
    control: Tensor,
    rtol: Tensor,
    atol: Tensor,
) -> tuple[Tensor, Tensor]:
    """Solve from the last of `times` to the first, with a jump of the state at each of them.

    Args:
        f, method, norm, control, rtol, atol: as for `run_until`.
        restart: the state after the jump at an observation, from the state before it and what is observed there.
        observed: tensors with an entry for each time.
        y: where the solve is.
        status: the number of the time it comes from, the time, the step to try (NaN: to be chosen), and the
            counters of accepted steps, tries, tries since the last observation and intervals begun; float64,
            shape (7,).
        times: of the observations, float64, shape (n,).

    Returns:
        `status` and `y`. It is finished when the number of the time is 0.
    """
    fsal = method.tableau.fsal
    tolerance = Tolerance(rtol, atol, norm)
    limit = status[4] + PATIENCE

    def interval(
        number: Tensor,
        now: Tensor,
        h: Tensor,
        accepted: Tensor,
        tries: Tensor,
        since: Tensor,
        begun: Tensor,
        going: Tensor,
        y: Tensor,
    ) -> tuple[Tensor, ...]:
        end = times.index_select(0, (number - 1).to(torch.int64).reshape(1))[0]
        h = control[0] * torch.minimum(h.abs(), (end - now).abs())

        def goes_on(
            now: Tensor, h: Tensor, accepted: Tensor, tries: Tensor, since: Tensor, *state: Tensor
        ) -> Tensor:
            moves: Tensor = _policy(control).propose(now, h, end).moves
            return (now != end) & moves & (tries < limit) & (since < control[7])

        def attempt(
            now: Tensor, h: Tensor, accepted: Tensor, tries: Tensor, since: Tensor, y: Tensor, *carry: Tensor
        ) -> tuple[Tensor, ...]:
            then, following, y, carried, passed, _, _ = _attempt(
                f, method, control, tolerance, now, h, end, y, carry[0] if fsal else None
            )
            return then, following, accepted + passed, tries + 1, since + 1, y, *((carried,) * fsal)

        carry = (f(now, y),) if fsal else ()
        now, h, accepted, tries, since, y, *_ = while_loop(
            goes_on, attempt, (now.clone(), h, accepted.clone(), tries.clone(), since.clone(), y.clone(), *carry)
        )
        arrived = now == end
        number = number - arrived.to(number)
        row = number.to(torch.int64).reshape(1)
        jumped = restart(y, *(x.index_select(0, row)[0] for x in observed))
        y = torch.where(arrived, jumped, y)
        return number, now, h, accepted, tries, torch.where(arrived, 0.0, since), begun + 1, arrived, y

    def unfinished(number: Tensor, *rest: Tensor) -> Tensor:
        tries, going = rest[3], rest[6]
        return (number > 0) & going & (tries < limit)

    number, now, h, accepted, tries, since, begun = status.unbind()
    end = times.index_select(0, (number - 1).to(torch.int64).reshape(1))[0]
    h, _ = _begin(f, method, tolerance, now, h, end, y)
    going = torch.ones((), dtype=torch.bool, device=y.device)
    counts: Any = (number, now, h, accepted, tries, since, begun)
    *counts, _, y = while_loop(unfinished, interval, (*(x.clone() for x in counts), going, y.clone()))
    return torch.stack(counts), y
