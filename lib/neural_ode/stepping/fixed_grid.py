"""The loop without error control: one step from each point of a grid to the next."""

import math
import warnings
from collections.abc import Callable, Iterator
from itertools import count, pairwise
from typing import Any

import torch
from torch import Tensor

from neural_ode.errors import InvalidArgumentError, MaxStepsError, NeuralODEWarning, NonFiniteError, SolverError
from neural_ode.methods import Method, Step
from neural_ode.methods.base import Carry
from neural_ode.problem.event import Event
from neural_ode.problem.state import Dynamics
from neural_ode.solution import Made, Segment, Statistics
from neural_ode.stepping.adaptive import check_start
from neural_ode.stepping.events import EventWatch
from neural_ode.stepping.settings import SolverSettings, Trajectory, longest_step
from neural_ode.stepping.step_records import Again, frame_of
from neural_ode.stepping.times import Clock, Outputs, strictly_inside

__all__ = ["FixedGrid", "fixed_grid"]


def fixed_grid(
    f: Dynamics,
    y: Tensor,
    t: Tensor,
    settings: SolverSettings,
    stats: Statistics,
    record: Callable[[Segment], None] | None = None,
    event: Event | None = None,
) -> Trajectory:
    """Solve on the grid of the settings; arguments as for `integrate`."""
    solve = FixedGrid(f, y, t, settings, stats)
    try:
        return solve.run(y, record, event)
    except SolverError as error:
        raise error.at(solve.now, solve.outputs.partial(t.new_tensor(solve.now), solve.y)) from None


class FixedGrid:
    """One solve: where it is, and what it has found."""

    def __init__(self, f: Dynamics, y: Tensor, t: Tensor, settings: SolverSettings, stats: Statistics):
        assert isinstance(settings.method, Method)
        self.f, self.settings, self.stats = f, settings, stats
        self.clock = clock = Clock(t, y)
        self.outputs = Outputs(clock, y)
        self.method = settings.method.for_tolerance(settings.tolerance)
        self.now = clock.times[0]
        # `None` without a last point.
        self.grid = None if math.isinf(clock.times[-1]) else _grid(settings, clock)
        # Of the last step, where an output has needed it: the next step can start from it.
        self.slope_at_end: Tensor | None = None
        self.with_grad = torch.is_grad_enabled()
        # Whether moving an output time moves a grid point with it.
        self.grid_is_outputs = settings.step_size is None and settings.grid is None

    def run(
        self, y: Tensor, record: Callable[[Segment], None] | None = None, event: Event | None = None
    ) -> Trajectory:
        """Step from point to point; arguments as for `integrate`, errors without their partial solution."""
        clock, outputs, settings, stats, method = self.clock, self.outputs, self.settings, self.stats, self.method
        self.y = y
        watch = None
        if event is not None:
            watch = EventWatch(event, clock.tensor(self.now).detach(), y.detach())
            zero = watch.at_start()
            if zero is not None:
                return Trajectory(*outputs.finish(clock.t[0].detach(), y), event=zero)
        carry: Carry = None
        longest = longest_step(method, y)
        unconverged: list[float] = []
        for number, (start, end) in enumerate(self._intervals()):
            if number == settings.max_steps:
                raise MaxStepsError(
                    f"{number} steps were not enough to reach t = {clock.times[-1]}"
                    + ("" if event is None else " or an event")
                    + f": reached t = {self.now}; allow more with max_steps or take longer steps"
                )
            now, after = _number(start), _number(end)
            if abs(after - now) > longest:
                raise SolverError(
                    f"the step from t = {now} to {after} is too long for {y.dtype}, whose numbers end at "
                    f"{torch.finfo(y.dtype).max:.4g}: take shorter steps, or a state of another dtype"
                )
            h: Tensor | float = end - start if clock.moving else after - now
            if settings.callbacks.step is not None:
                times = torch.tensor([now, abs(after - now)], dtype=torch.float64, device=y.device)
                settings.callbacks.step(times[0], y, times[1])
            if settings.perturb and isinstance(carry, Tensor):
                carry = None  # the slope at the end of the last step: just inside of this one it may be another
            step = self._step(y, start, after, h, carry)
            if number == 0:
                self._check(step, y)
            if step.error is not None and torch.isinf(step.error.detach()).any():
                raise NonFiniteError(
                    f"{method.name} cannot make the step from t = {now} to {after}: its equations have no solution "
                    "that Newton's iteration finds, or f is infinite; take shorter steps, or none of fixed length"
                )
            stats.accepted += 1
            stats.step_sizes.append(after - now)
            if not step.converged:
                unconverged.append(now)
            interpolate = self._interpolation(y, step, h, end)
            crossing = None
            if watch is not None:
                crossing = self._crossing(watch, interpolate, step.y1, now, after)
            if record is not None:
                restarted = carry is None or not method.has_history
                frame = None if restarted else frame_of(carry)
                ends_at = None if crossing is None else crossing[0]
                made = Made(number, now, after, after - now, outputs.done, restarted, frame, ends_at)
                record(Segment(made, y, carry, step.dense))
            if crossing is not None:
                self._warn(unconverged)
                time, component = crossing
                outputs.collect(time, start, h, self.y, False, interpolate)
                at = clock.t.new_tensor([time])
                state = interpolate(clock.fractions(at, start, h))[0]
                return Trajectory(*outputs.finish(at, state), event=component)
            carry = step.carry
            outputs.collect(after, start, h, step.y1, self._follows(after), interpolate)
            if carry is None and not outputs.complete:
                carry = self._begin()
            self.now, self.y = after, step.y1
            y = step.y1
            del step, interpolate
        if not torch.isfinite(y.detach()).all():
            raise NonFiniteError(
                f"the state is NaN or infinite at t = {self.now}: take shorter steps, or a method for stiff "
                "problems, such as kvaerno5. The attribute partial of this exception has all states, also those "
                "of rows that are finite"
            )
        self._warn(unconverged)
        return Trajectory(clock.t, outputs.stacked())

    def again(self, made: Made, y: Tensor, carry: Carry, then: Made | None, collect: bool = True) -> Again:
        """Make a step again, and find the outputs in it; see `neural_ode.stepping.step_records`."""
        clock = self.clock
        self.now, self.y = made.t, y
        start, end = self._interval(made)
        h: Tensor | float = end - start if clock.moving else made.h
        step = self._step(y, start, made.end, h, carry)
        self.stats.accepted += 1
        self.outputs.resume(made.done)
        if collect:
            interpolate = self._interpolation(y, step, h, end)
            if made.event is None:
                self.outputs.collect(made.end, start, h, step.y1, self._follows(made.end), interpolate)
            else:
                self.outputs.collect(made.event, start, h, y, False, interpolate)
                at = clock.t.new_tensor([made.event])
                self.outputs.add(interpolate(clock.fractions(at, start, h))[0])
        following = None if then is None or then.restarted else step.carry
        outputs = self.outputs.stacked() if self.outputs.states else None
        return Again(step.y1, following, slice(made.done, self.outputs.done), outputs)

    def beginning(self, made: Made) -> tuple[Dynamics, Tensor]:
        """The dynamics as a step sees them, and the time where it starts."""
        return self._seen(self._interval(made)[0], made.end)

    def _interval(self, made: Made) -> tuple[Tensor | float, Tensor | float]:
        if not self.clock.moving:
            return made.t, made.end
        if self.grid is None:
            return self._endless(made.number)
        return self.grid[made.number], self.grid[made.number + 1]

    def _step(self, y: Tensor, start: Tensor | float, after: float, h: Tensor | float, carry: Carry) -> Step:
        clock = self.clock
        f, time = self._seen(start, after)
        length = h.to(clock.dtype).to(clock.device) if isinstance(h, Tensor) else h
        step = self.method.step(f, time, y, length, carry)
        self.stats.nfe += step.nfe
        return step

    def _seen(self, start: Tensor | float, after: float) -> tuple[Dynamics, Tensor]:
        """The dynamics between two points of the grid, and the first of them as they get it."""
        clock, now = self.clock, _number(start)
        f = strictly_inside(self.f, now, after) if self.settings.perturb else self.f
        return f, start.to(clock.device) if isinstance(start, Tensor) else clock.tensor(now)

    def _follows(self, after: float) -> bool:
        """Whether the end of a step moves with the output time that it coincides with."""
        return not self.clock.moving or self.grid_is_outputs or after == self.clock.times[-1]

    def _begin(self) -> Any:
        """The carry for the next step, if the slope there is known."""
        return None if self.slope_at_end is None else self.method.begin(self.slope_at_end)

    def _intervals(self) -> Iterator[tuple[Tensor | float, Tensor | float]]:
        """Starts and ends of the steps: tensors where gradients with respect to the times are wanted."""
        if self.grid is None:
            yield from map(self._endless, count())
        else:
            yield from pairwise(list(self.grid) if self.clock.moving else self.grid.tolist())

    def _endless(self, number: int) -> tuple[Tensor | float, Tensor | float]:
        """Start and end of a step of a solve that only an event ends."""
        assert self.settings.step_size is not None
        length = math.copysign(self.settings.step_size, self.clock.direction)
        first: Tensor | float = self.clock.t[0] if self.clock.moving else self.clock.times[0]
        return first + number * length, first + (number + 1) * length

    def _warn(self, unconverged: list[float]) -> None:
        """Warn of steps, given by their starts, whose equations were not solved: once, not in every interval."""
        told, self.stats.unconverged = self.stats.unconverged > 0, self.stats.unconverged + len(unconverged)
        if unconverged and not told:
            warnings.warn(
                f"the iteration of {self.method.name} did not converge in {len(unconverged)} steps from "
                f"t = {self.clock.times[0]} on, first at t = {unconverged[0]}: the solution may be wrong. Take "
                "shorter steps, loosen rtol and atol, or allow more iterations with max_iters",
                NeuralODEWarning,
                stacklevel=3,
            )

    def _check(self, step: Step, y: Tensor) -> None:
        slope = step.dense[0] if step.dense else step.y1
        check_start(slope, y, self.now)

    def _interpolation(
        self, y: Tensor, step: Step, h: Tensor | float, end: Tensor | float
    ) -> Callable[[Tensor], Tensor]:
        self.slope_at_end = None
        if self.method.has_dense_output:
            return lambda theta: self.method.interpolate(y, step.dense, h, theta)
        if self.settings.interpolation == "linear":
            return lambda theta: y + _column(theta, y) * (step.y1 - y)

        def cubic(theta: Tensor) -> Tensor:
            if self.slope_at_end is None:
                time = end.to(y.device) if isinstance(end, Tensor) else self.clock.tensor(end)
                with torch.set_grad_enabled(self.with_grad):  # an event is looked for without
                    self.slope_at_end = self.f(time, step.y1)
                self.stats.nfe += 1
            return _hermite(y, step.y1, step.dense[0], self.slope_at_end, h, theta)

        return cubic

    def _crossing(
        self, watch: EventWatch, interpolate: Callable[[Tensor], Tensor], y1: Tensor, now: float, after: float
    ) -> tuple[float, int] | None:
        """The time of the event in the step, and which component it is of, if there is one."""

        def time(theta: float) -> float:
            return after if theta == 1.0 else now + theta * (after - now)

        def moment(theta: float) -> Tensor:
            return torch.tensor(time(theta), dtype=torch.float64, device=y1.device)

        found = watch.crossing(interpolate, moment, y1.detach(), abs(after - now))
        return None if found is None else (time(found[0]), found[1])


def _grid(settings: SolverSettings, clock: Clock) -> Tensor:
    """The points that the steps lead through."""
    if settings.grid is not None:
        return _checked_grid(settings.grid(clock.t), clock)
    return clock.t if settings.step_size is None else _even_grid(clock.t, settings.step_size)


def _even_grid(t: Tensor, step_size: float) -> Tensor:
    """Points `step_size` apart from `t[0]`, the last one at `t[-1]`."""
    span = (t[-1] - t[0]).item()
    steps = max(1, math.ceil(abs(span) / step_size - 1e-9))
    inner = t[0] + math.copysign(step_size, span) * torch.arange(steps, dtype=t.dtype, device=t.device)
    return torch.cat([inner, t[-1:]])


def _checked_grid(grid: Tensor, clock: Clock) -> Tensor:
    if not isinstance(grid, Tensor) or grid.dim() != 1 or len(grid) < 2:
        raise InvalidArgumentError(f"the grid must be a tensor of at least two times, got {grid!r}")
    grid = grid.to(clock.t)
    ends = grid[[0, -1]].tolist()
    if ends != [clock.times[0], clock.times[-1]]:
        raise InvalidArgumentError(
            f"the grid must start and end with t, at {clock.times[0]} and {clock.times[-1]}; it has {ends}"
        )
    if not (grid.detach().diff() * clock.direction > 0).all():
        raise InvalidArgumentError("the grid must be strictly monotonic in the direction of t")
    return grid


def _column(theta: Tensor, y: Tensor) -> Tensor:
    return theta.reshape(-1, *[1] * y.dim())


def _hermite(y0: Tensor, y1: Tensor, f0: Tensor, f1: Tensor, h: Tensor | float, theta: Tensor) -> Tensor:
    """The cubic through both ends with the slopes there; Hairer, Nørsett & Wanner I, equation II.6.7."""
    x = _column(theta, y0)
    rise = y1 - y0
    return y0 + x * rise + x * (x - 1) * ((1 - 2 * x) * rise + h * ((x - 1) * f0 + x * f1))


def _number(x: Tensor | float) -> float:
    return x.item() if isinstance(x, Tensor) else x
