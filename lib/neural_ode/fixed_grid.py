"""The loop without error control: one step from each point of a grid to the next."""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from neural_ode.adaptive import check_start
from neural_ode.clock import Clock, Outputs, strictly_inside
from neural_ode.errors import InvalidArgumentError, MaxStepsError, NonFiniteError, SolverError
from neural_ode.events import EventFunction, EventWatch
from neural_ode.methods import Method, Step
from neural_ode.scheme import Scheme, Trajectory
from neural_ode.solution import Segment, Statistics
from neural_ode.state import Dynamics

__all__ = ["fixed_grid"]


def fixed_grid(
    f: Dynamics,
    y: Tensor,
    t: Tensor,
    scheme: Scheme,
    stats: Statistics,
    record: Callable[[Segment], None] | None = None,
    event: EventFunction | None = None,
) -> Trajectory:
    """Solve on the grid of the scheme; arguments as for `integrate`."""
    clock = Clock(t, y)
    outputs = Outputs(clock, y)
    solve = _FixedGrid(f, scheme, stats, clock, outputs, record)
    try:
        return solve.run(y, event)
    except SolverError as error:
        raise error.at(solve.now, outputs.finish(t.new_tensor(solve.now), solve.y)) from None


class _FixedGrid:
    """One solve: where it is, and what it has found."""

    def __init__(
        self,
        f: Dynamics,
        scheme: Scheme,
        stats: Statistics,
        clock: Clock,
        outputs: Outputs,
        record: Callable[[Segment], None] | None,
    ):
        assert isinstance(scheme.method, Method)
        self.f, self.scheme, self.stats, self.clock, self.outputs = f, scheme, stats, clock, outputs
        self.record = record
        self.method = scheme.method.bind(scheme.tolerance)
        self.now = clock.times[0]
        # Of the last step, where an output has needed it: the next step can start from it.
        self.slope_at_end: Tensor | None = None
        self.with_grad = torch.is_grad_enabled()
        # Whether moving an output time moves a grid point with it.
        self.grid_is_outputs = scheme.step_size is None and scheme.grid is None

    def run(self, y: Tensor, event: EventFunction | None) -> Trajectory:
        clock, outputs, scheme, stats, method = self.clock, self.outputs, self.scheme, self.stats, self.method
        self.y = y
        watch = None
        if event is not None:
            watch = EventWatch(event, clock.tensor(self.now), y)
            zero = watch.at_start()
            if zero is not None:
                return Trajectory(*outputs.finish(clock.t[0].detach(), y), event=zero)
        carry: Any = None
        for number, (start, end) in enumerate(self._intervals()):
            if number == scheme.max_steps:
                raise MaxStepsError(
                    f"{number} steps were not enough to reach t = {clock.times[-1]}"
                    + ("" if event is None else " or an event")
                    + f": reached t = {self.now}; allow more with max_steps or take longer steps"
                )
            now, after = _number(start), _number(end)
            h: Tensor | float = end - start if clock.moving else after - now
            if scheme.callbacks.step is not None:
                times = torch.tensor([now, abs(after - now)], dtype=torch.float64, device=y.device)
                scheme.callbacks.step(times[0], y, times[1])
            f = strictly_inside(self.f, now, after) if scheme.perturb else self.f
            time = start.to(clock.dtype).to(y.device) if isinstance(start, Tensor) else clock.tensor(now)
            if scheme.perturb and isinstance(carry, Tensor):
                carry = None  # the slope at the end of the last step: just inside of this one it may be another
            step = method.step(f, time, y, self._in_state_dtype(h), carry)
            if number == 0:
                self._check(step, y)
            stats.nfe += step.nfe
            if step.error is not None and torch.isinf(step.error.detach()).any():
                raise NonFiniteError(
                    f"{method.name} cannot make the step from t = {now} to {after}: its equations have no solution "
                    "that Newton's iteration finds, or f is infinite; take shorter steps, or none of fixed length"
                )
            stats.accepted += 1
            stats.step_sizes.append(after - now)
            if self.record is not None:
                self.record(Segment(now, after - now, y, step.dense))
            carry = step.carry
            self.slope_at_end = None
            interpolate = self._interpolation(y, step, h, end)
            if watch is not None and watch.crossed(clock.tensor(after), step.y1):
                return self._end_at_event(watch, interpolate, start, now, h)
            last = after == clock.times[-1]
            follows = not clock.moving or self.grid_is_outputs or last
            outputs.collect(after, start, h, step.y1, follows, interpolate)
            if carry is None and not outputs.complete:
                carry = self._begin()
            self.now, self.y = after, step.y1
            y = step.y1
            del step, interpolate
        if not torch.isfinite(y.detach()).all():
            raise NonFiniteError(
                f"the state is NaN or infinite at t = {self.now}: take shorter steps, or a method for stiff "
                "problems, such as kvaerno5"
            )
        return Trajectory(clock.t, outputs.stacked())

    def _begin(self) -> Any:
        """The carry for the next step, if the slope there is known."""
        return None if self.slope_at_end is None else self.method.begin(self.slope_at_end)

    def _in_state_dtype(self, h: Tensor | float) -> Tensor | float:
        return h.to(self.clock.dtype).to(self.clock.device) if isinstance(h, Tensor) else h

    def _intervals(self) -> Iterator[tuple[Tensor | float, Tensor | float]]:
        """Starts and ends of the steps: tensors where gradients with respect to the times are wanted."""
        clock, scheme = self.clock, self.scheme
        if math.isinf(clock.times[-1]):
            assert scheme.step_size is not None
            length = math.copysign(scheme.step_size, clock.direction)
            first: Tensor | float = clock.t[0] if clock.moving else clock.times[0]
            number = 0
            while True:
                yield first + number * length, first + (number + 1) * length
                number += 1
        if scheme.grid is not None:
            grid = _checked_grid(scheme.grid(clock.t), clock)
        elif scheme.step_size is not None:
            grid = _even_grid(clock.t, scheme.step_size)
        else:
            grid = clock.t
        points = list(grid) if clock.moving else grid.tolist()
        yield from pairwise(points)

    def _check(self, step: Step, y: Tensor) -> None:
        slope = step.dense[0] if step.dense else step.y1
        check_start(slope, y, self.now)

    def _interpolation(
        self, y: Tensor, step: Step, h: Tensor | float, end: Tensor | float
    ) -> Callable[[Tensor], Tensor]:
        if self.method.has_dense_output:
            return lambda theta: self.method.interpolate(y, step.dense, h, theta)
        if self.scheme.interpolation == "linear":
            return lambda theta: y + _column(theta, y) * (step.y1 - y)

        def cubic(theta: Tensor) -> Tensor:
            if self.slope_at_end is None:
                time = end.to(self.clock.dtype).to(y.device) if isinstance(end, Tensor) else self.clock.tensor(end)
                with torch.set_grad_enabled(self.with_grad):  # an event is looked for without
                    self.slope_at_end = self.f(time, step.y1)
                self.stats.nfe += 1
            return _hermite(y, step.y1, step.dense[0], self.slope_at_end, h, theta)

        return cubic

    def _end_at_event(
        self,
        watch: EventWatch,
        interpolate: Callable[[Tensor], Tensor],
        start: Tensor | float,
        now: float,
        h: Tensor | float,
    ) -> Trajectory:
        clock, length = self.clock, _number(h)
        fraction, component = watch.locate(
            interpolate, lambda theta: clock.tensor(now + theta * length), self.y.abs()
        )
        time = now + fraction * length
        self.outputs.collect(time, start, h, self.y, False, interpolate)
        at = clock.t.new_tensor([time])
        return Trajectory(*self.outputs.finish(at, interpolate(clock.fractions(at, start, h))[0]), event=component)


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
