"""The loop with error control: try a step, accept or reject it, choose the next."""

import math
from bisect import bisect_right
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from neural_ode.control.arithmetic import FLOATS
from neural_ode.control.controllers import factor_for_rows
from neural_ode.control.first_step import initial_step
from neural_ode.control.policy import StepPolicy, stretch_for
from neural_ode.errors import (
    MaxStepsError,
    NonFiniteError,
    SolverError,
    StepSizeUnderflowError,
)
from neural_ode.methods import Method, Step
from neural_ode.methods.base import Carry
from neural_ode.problem.dynamics import check_slope
from neural_ode.problem.event import Event
from neural_ode.problem.state import Dynamics
from neural_ode.solution import Made, Segment, Statistics
from neural_ode.stepping.events import EventWatch
from neural_ode.stepping.settings import SolverSettings, Trajectory
from neural_ode.stepping.step_records import Again, frame_of
from neural_ode.stepping.times import Clock, Outputs, strictly_inside

__all__ = ["Adaptive", "adaptive", "check_start", "policy_of"]


def adaptive(
    f: Dynamics,
    y: Tensor,
    t: Tensor,
    settings: SolverSettings,
    stats: Statistics,
    record: Callable[[Segment], None] | None = None,
    event: Event | None = None,
) -> Trajectory:
    """Solve with steps as long as the tolerance allows; arguments as for `integrate`."""
    solve = Adaptive(f, y, t, settings, stats)
    try:
        return solve.run(y, record, event)
    except SolverError as error:
        raise error.at(solve.now, solve.outputs.partial(t.new_tensor(solve.now), solve.y)) from None


class Adaptive:
    """One solve: where it is, and what it has found."""

    def __init__(self, f: Dynamics, y: Tensor, t: Tensor, settings: SolverSettings, stats: Statistics):
        assert isinstance(settings.method, Method)
        self.f, self.settings, self.stats = f, settings, stats
        self.clock = clock = Clock(t, y)
        self.outputs = Outputs(clock, y)
        self.method = settings.method.for_tolerance(settings.tolerance).controlled(settings.controller)
        self.now, self.end = clock.times[0], clock.times[-1]
        self.stops = _Stops(settings, self.now, clock.direction)
        self.jumps = frozenset(settings.jump_t)

    def run(
        self, y: Tensor, record: Callable[[Segment], None] | None = None, event: Event | None = None
    ) -> Trajectory:
        """Step until the last output time or an event; arguments as for `integrate`, errors without their partial
        solution."""
        clock, outputs, settings, stats, method = self.clock, self.outputs, self.settings, self.stats, self.method
        tolerance, policy = settings.tolerance, policy_of(FLOATS, settings, clock.direction, y)
        self.y = y
        slope = self._slope(y)
        check_start(slope, y, self.now)
        watch = None
        if event is not None:
            watch = EventWatch(event, clock.tensor(self.now).detach(), y.detach())
            zero = watch.at_start()
            if zero is not None:
                return Trajectory(*outputs.finish(clock.t[0].detach(), y), event=zero)
        carry: Carry = method.begin(slope)
        restarted = True
        planned = self._first_step(y, slope)
        del slope
        err = 0.0
        earlier: tuple[float, ...] = ()
        number, steps = -1, 0
        while not outputs.complete:
            if steps == settings.max_steps:
                self._too_many_steps(event is not None)
            steps += 1
            if math.isinf(self.end) and abs(self.now) + policy.longest > torch.finfo(y.dtype).max:
                raise MaxStepsError(
                    f"no event until t = {self.now}, after which times are no numbers of {y.dtype}: does the "
                    "event function change its sign at all? If it does so later, set a finite end"
                )
            # The next time to end a step at; a step that would overshoot it is cut.
            attempt = policy.propose(self.now, planned, self.stops.after(self.now, self.end))
            h, after = attempt.h, attempt.after
            if not attempt.moves:
                _give_up(self.now, h, err)
            if settings.callbacks.step is not None:
                self._call(settings.callbacks.step, y, h)
            step = self._step(y, h, after, carry)
            assert step.error is not None
            err, passed, lost = policy.judge(attempt, tolerance.ratio(step.error, y, step.y1))
            if lost:
                _give_up(self.now, h, err)

            def ratio(error: Tensor, y0: Tensor = y, y1: Tensor = step.y1) -> float:
                return tolerance.ratio(error, y0, y1)

            following = method.after(step, carry, err, ratio)
            planned, earlier = policy.go_on(attempt, passed, following.err, following.order, earlier)
            before, carry = carry, following.carry
            if not passed:
                stats.rejected += 1
                if settings.callbacks.reject is not None:
                    self._call(settings.callbacks.reject, y, h)
                del step, ratio, following, before  # or the slopes would live, in memory, through the next step
                continue
            stats.accepted += 1
            number += 1
            stats.step_sizes.append(h)
            if settings.callbacks.accept is not None:
                self._call(settings.callbacks.accept, y, h)
            crossing = None
            if watch is not None:
                crossing = self._crossing(watch, y, step, h, after)
            if record is not None:
                afresh = restarted or not method.has_history
                frame = None if not method.has_history else frame_of(before)
                ends_at = None if crossing is None else crossing[0]
                made = Made(number, self.now, after, h, outputs.done, afresh, frame, ends_at)
                record(Segment(made, y, before, step.dense))
            if crossing is not None:
                time, component = crossing
                self._collect(y, step, h, time, crossing=True)
                at = clock.t.new_tensor([time])
                return Trajectory(*outputs.finish(at, self._inside(y, step, h, at)), event=component)
            found = outputs.done
            self._collect(y, step, h, after)
            if outputs.done > found:
                steps = 0
            self.now, self.y = after, step.y1
            y = step.y1
            if after in self.jumps:
                carry = None
            restarted = carry is None
            if carry is None and not outputs.complete:
                carry = method.begin(self._slope(y))
            del step, ratio, following, before
        return Trajectory(clock.t, outputs.stacked(), planned)

    def again(self, made: Made, y: Tensor, carry: Carry, then: Made | None, collect: bool = True) -> Again:
        """Make an accepted step again, and find the outputs in it; see `neural_ode.stepping.step_records`."""
        self.now = made.t
        if carry is None:
            carry = self.method.continued(self.method.begin(self._slope(y)), made.frame)
        step = self._step(y, made.h, made.end, carry)
        self.stats.accepted += 1
        self.outputs.resume(made.done)
        if collect:
            crossing = made.event is not None
            self._collect(y, step, made.h, made.end if made.event is None else made.event, crossing)
            if made.event is not None:
                at = self.clock.t.new_tensor([made.event])
                self.outputs.add(self._inside(y, step, made.h, at))
        following = None if then is None or then.restarted else self.method.continued(step.carry, then.frame)
        outputs = self.outputs.stacked() if self.outputs.states else None
        return Again(step.y1, following, slice(made.done, self.outputs.done), outputs)

    def beginning(self, made: Made) -> tuple[Dynamics, Tensor]:
        """The dynamics as an accepted step sees them, and the time where it starts."""
        self.now = made.t
        return self._dynamics(made.end), self.clock.tensor(made.t)

    def _step(self, y: Tensor, h: float, after: float, carry: Carry) -> Step:
        """The step from where the solve is to `after`."""
        step = self.method.step(self._dynamics(after), self.clock.tensor(self.now), y, h, carry)
        self.stats.nfe += step.nfe
        return step

    def _slope(self, y: Tensor) -> Tensor:
        """`f` where the solve is; on the far side, if that is a discontinuity."""
        self.stats.nfe += 1
        f = self.f
        if self.now in self.jumps:
            f = strictly_inside(f, self.now, self.clock.direction * math.inf)
        return f(self.clock.tensor(self.now), y)

    def _dynamics(self, after: float) -> Dynamics:
        if self.jumps and (self.now in self.jumps or after in self.jumps):
            return strictly_inside(self.f, self.now, after)
        return self.f

    def _first_step(self, y: Tensor, slope: Tensor) -> float:
        settings, span = self.settings, self.end - self.now
        if settings.first_step is not None:
            return math.copysign(min(settings.first_step, abs(span)), span)
        self.stats.nfe += 1
        start, distance = torch.tensor([self.now, span], dtype=torch.float64, device=y.device)
        return initial_step(self.f, start, y, slope, distance, self.method.order, settings.tolerance).item()

    def _call(self, callback: Callable[[Tensor, Tensor, Tensor], object], y: Tensor, h: float) -> None:
        now, length = torch.tensor([self.now, abs(h)], dtype=torch.float64, device=y.device)
        callback(now, y, length)

    def _collect(self, y: Tensor, step: Step, h: float, after: float, crossing: bool = False) -> None:
        # Without a gradient in the times, an output at the end of the step is y1 itself; an event ends it earlier.
        self.outputs.collect(
            after,
            self._start(),
            h,
            step.y1,
            not self.clock.moving and not crossing,
            lambda theta: self.method.interpolate(y, step.dense, h, theta),
        )

    def _start(self) -> Tensor | float:
        """Where the step starts: a tensor where gradients with respect to the times are wanted."""
        clock = self.clock
        return clock.t[0] + (self.now - clock.times[0]) if clock.moving else self.now

    def _inside(self, y: Tensor, step: Step, h: float, at: Tensor) -> Tensor:
        """The state at a time inside the step, shape (1,)."""
        return self.method.interpolate(y, step.dense, h, self.clock.fractions(at, self._start(), h))[0]

    def _crossing(
        self, watch: EventWatch, y: Tensor, step: Step, h: float, after: float
    ) -> tuple[float, int] | None:
        """The time of the event in the step, and which component it is of, if there is one."""
        now, method = self.now, self.method
        found = watch.crossing(
            lambda theta: method.interpolate(y, step.dense, h, theta),
            lambda theta: torch.tensor(
                after if theta == 1.0 else now + theta * h, dtype=torch.float64, device=y.device
            ),
            step.y1.detach(),
            abs(h),
        )
        return None if found is None else (after if found[0] == 1.0 else now + found[0] * h, found[1])

    def _too_many_steps(self, waits_for_event: bool) -> None:
        limit, clock = self.settings.max_steps, self.clock
        if waits_for_event:
            raise MaxStepsError(
                f"max_num_steps exceeded: no event in {limit} steps from t = {clock.times[0]} to {self.now}: does "
                "the event function change its sign at all? A solve that goes on from an event does not see that "
                "one again, and takes the sign at the start from rounding: start behind it, or pass "
                "Event(function, direction=...) or Event(function, skip_start=True). Allow more with max_steps"
            )
        raise MaxStepsError(
            f"max_num_steps exceeded: {limit} steps were not enough to go on from "
            f"t = {clock.times[self.outputs.done - 1]} to {clock.times[self.outputs.done]}: reached "
            f"t = {self.now}; allow more with max_steps, loosen rtol and atol, or use a method for stiff problems, "
            "such as kvaerno5"
        )


class _Stops:
    """The times, besides the end, that steps must end at."""

    def __init__(self, settings: SolverSettings, start: float, direction: float):
        ahead = {time for time in (*settings.step_t, *settings.jump_t) if (time - start) * direction > 0}
        self.direction = direction
        self.keys = sorted(direction * time for time in ahead)

    def after(self, now: float, end: float) -> float:
        if not self.keys:
            return end
        position = bisect_right(self.keys, self.direction * now)
        if position == len(self.keys):
            return end
        return self.direction * min(self.keys[position], self.direction * end)


def policy_of(xp: Any, settings: SolverSettings, direction: float, y: Tensor) -> StepPolicy[Any]:
    """The rule for the steps of a solve, in floats or arrays; `xp` as in `StepPolicy`."""
    longest, stretch = settings.longest_step(y), stretch_for(settings.max_step)
    controller = settings.controller
    factor: Any = controller.factor if xp is FLOATS else factor_for_rows(controller)
    return StepPolicy(xp, factor, direction, settings.min_step, longest, stretch)


def check_start(slope: Tensor, y: Tensor, time: float) -> None:
    """The first evaluation of the dynamics shows whether they fit the state.

    Raises:
        InvalidArgumentError: `f` returned no tensor, or one of another shape, dtype or device than `y`.
        NonFiniteError: `f` returned NaN or infinity.
    """
    check_slope(slope, y)
    if not torch.isfinite(slope.detach()).all():
        raise NonFiniteError(f"f(t, y) is not finite at the start, t = {time}: check y0 and the parameters of f")


def _give_up(now: float, h: float, err: float) -> None:
    if not math.isfinite(err):
        raise NonFiniteError(
            f"f(t, y) is NaN or infinite just after t = {now}, however small the step: does the solution "
            "blow up there, or leave the domain of f?"
        )
    raise StepSizeUnderflowError(
        f"underflow in dt: at t = {now} the error control asks for a step of {h:.1e}, too small to change t; "
        "loosen rtol and atol, use float64, or a method for stiff problems, such as kvaerno5"
    )
