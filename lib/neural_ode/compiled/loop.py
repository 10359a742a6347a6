"""The loop with error control as a graph.

These functions are only run by `torch.compile`. They are written once for both ways to step: with one time for the
whole state, shape (), or with one for each row of a batch, shape (batch,).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from neural_ode.compiled.compiler import while_loop
from neural_ode.control.controllers import integral_factor
from neural_ode.control.first_step import initial_step
from neural_ode.control.policy import StepPolicy, stretch_for
from neural_ode.control.tolerance import Tolerance
from neural_ode.methods import ExplicitRungeKutta
from neural_ode.problem.norms import Norm
from neural_ode.problem.state import Dynamics, column
from neural_ode.stepping.settings import SolverSettings

__all__ = ["PATIENCE", "control_of", "patience_of", "run_through", "run_until", "tolerance_of"]

PATIENCE = 256
"""Tries after which a graph comes back, so that the loop in Python can be interrupted."""


def patience_of(capacity: int) -> int:
    """Tries after which a graph comes back that has room for so many steps, which shall be filled first."""
    return max(PATIENCE, 4 * capacity)


def control_of(settings: SolverSettings, direction: float, like: Tensor) -> Tensor:
    """What the graphs know of the settings: direction, safety, ifactor, dfactor, shortest and longest step, stretch
    of the last step, most steps; float64, shape (8,)."""
    control, stretch = settings.controller, stretch_for(settings.max_step)
    limits = (settings.min_step, settings.longest_step(like), stretch, settings.max_steps)
    return torch.tensor(
        [direction, control.safety, control.ifactor, control.dfactor, *limits],
        dtype=torch.float64,
        device=like.device,
    )


def tolerance_of(settings: SolverSettings, like: Tensor) -> tuple[Tensor, Tensor]:
    """`rtol` and `atol` as tensors."""
    tolerance = settings.tolerance
    rtol, atol = (
        x if isinstance(x, Tensor) else torch.tensor(x, dtype=torch.float64, device=like.device)
        for x in (tolerance.rtol, tolerance.atol)
    )
    return rtol, atol


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
    start, h, end = span.unbind()
    fsal, patience = method.tableau.fsal, patience_of(capacity)
    tolerance = Tolerance(rtol, atol, norm)
    if slope is None:
        h, slope = _begin(f, method, tolerance, start, h, end, y)
    log = span.new_empty((capacity, *span.shape))
    states = y.new_empty((capacity + 1, *y.shape))
    slopes = y.new_empty((capacity, method.tableau.stages, *y.shape))
    zero = torch.zeros((), dtype=torch.int64, device=y.device)
    none = torch.zeros_like(start)

    def goes_on(
        now: Tensor, h: Tensor, accepted: Tensor, tried: Tensor, recorded: Tensor, tries: Tensor, *state: Tensor
    ) -> Tensor:
        waiting = now != end
        stuck: Tensor = waiting & ~_policy(control).propose(now, h, end).moves
        return waiting.any() & ~stuck.any() & (recorded < capacity) & (tries < patience)

    def attempt(
        now: Tensor,
        h: Tensor,
        accepted: Tensor,
        tried: Tensor,
        recorded: Tensor,
        tries: Tensor,
        y: Tensor,
        *carry: Tensor,
    ) -> tuple[Tensor, ...]:
        before = y.clone()
        then, following, y, carried, passed, stages, taken = _attempt(
            f, method, control, tolerance, now, h, end, y, carry[0] if fsal else None
        )
        row = recorded.reshape(1)
        entry = torch.stack([now, torch.where(passed, taken, none), tries.to(now) + none])
        log.index_copy_(0, row, entry[None])
        states.index_copy_(0, row, before[None])
        slopes.index_copy_(0, row, torch.stack(stages)[None])
        return (
            then,
            following,
            accepted + passed,
            tried + (now != end),
            recorded + passed.any(),
            tries + 1,
            y,
            *((carried,) * fsal),
        )

    begin = (start.clone(), h.clone(), none.clone(), none.clone(), zero, zero.clone(), y.clone())
    found = while_loop(goes_on, attempt, (*begin, *((slope.clone(),) * fsal)))
    now, h, accepted, tried, recorded, tries, y, *carry = found
    states.index_copy_(0, recorded.reshape(1), y[None])
    totals = torch.stack([recorded, tries]).to(now)
    status = torch.cat([torch.stack([now, h, accepted, tried]).reshape(-1), totals])
    return status, y, carry[0] if fsal else slope.clone(), log, states, slopes


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
