"""The loop that makes steps: with error control, or on a fixed grid."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from neural_ode.errors import InvalidArgumentError, MaxStepsError, NonFiniteError, StepSizeUnderflowError
from neural_ode.methods import ExplicitRungeKutta
from neural_ode.solution import Segment, Statistics
from neural_ode.state import Dynamics, Norm
from neural_ode.step_size import IntegralController, error_ratio, initial_step

__all__ = ["Scheme", "Trajectory", "integrate"]


@dataclass(frozen=True)
class Scheme:
    """Everything that decides how an initial value problem is solved, but not the problem.

    Attributes:
        method: makes the steps.
        rtol, atol: a step may have an error of `atol + rtol · |y|`, measured in `norm`.
        controller: chooses the next step from the error of the last.
        norm: the norm of the error control.
        first_step: length of the first step; `None` lets the solver choose.
        max_steps: how many steps, rejected ones included, before the solve is given up.
        step_size: a constant step instead of error control. `None`: error control where the method has an error
            estimate, one step between output times where it has none.
        interpolation: how a fixed-grid method without a continuous extension finds outputs between grid points.
    """

    method: ExplicitRungeKutta
    rtol: float
    atol: float
    controller: IntegralController
    norm: Norm
    first_step: float | None = None
    max_steps: int = 2**31 - 1
    step_size: float | None = None
    interpolation: Literal["linear", "cubic"] = "linear"


class Trajectory(NamedTuple):
    """States at the output times, shape (n, *state), and the step the controller would take next (0 if none)."""

    y: Tensor
    next_step: float


def integrate(
    f: Dynamics,
    y0: Tensor,
    t: Tensor,
    scheme: Scheme,
    stats: Statistics,
    record: Callable[[Segment], None] | None = None,
) -> Trajectory:
    """Solve `dy/dt = f(t, y)`, `y(t[0]) = y0`, at the times `t`.

    Differentiable with respect to `y0`, whatever `f` depends on, and `t` where it requires a gradient. The step
    lengths of an adaptive solve count as constants: moving `t[0]` shifts the whole grid, moving another time
    moves a point on the continuous extension, whose slope there is `f`.

    Args:
        f: the dynamics; gets its time in the real dtype of the state.
        y0: the initial state, any shape.
        t: at least two strictly monotonic times, float64, shape (n,).
        scheme: how to solve.
        stats: counters to add to.
        record: called with every accepted step.

    Raises:
        NonFiniteError, StepSizeUnderflowError, MaxStepsError: the solve cannot be finished.
    """
    if scheme.method.adaptive and scheme.step_size is None:
        return _adaptive(f, y0, t, scheme, stats, record)
    return Trajectory(_fixed(f, y0, t, scheme, stats, record), 0.0)


class _Clock:
    """Times as Python numbers for the loop and as tensors for the dynamics, differentiable where `t` is."""

    def __init__(self, t: Tensor, y: Tensor):
        self.t = t
        self.times: list[float] = t.tolist()
        self.moving = t.requires_grad and torch.is_grad_enabled()
        self.direction = math.copysign(1.0, self.times[-1] - self.times[0])
        self.dtype = y.abs().dtype
        self.device = y.device

    def tensor(self, time: float) -> Tensor:
        """The time as the dynamics get it: shape (), real dtype of the state."""
        if self.moving:
            return (self.t[0] + (time - self.times[0])).to(self.dtype).to(self.device)
        return torch.tensor(time, dtype=self.dtype, device=self.device)

    def due(self, first: int, time: float) -> int:
        """Index after the last output time that is not later than `time`, starting from `first`."""
        while first < len(self.times) and (self.times[first] - time) * self.direction <= 0:
            first += 1
        return first

    def fractions(self, first: int, stop: int, start: float, h: float) -> Tensor:
        """Where the output times `first` to `stop` lie in the step from `start`, 0 to 1, shape (stop - first,)."""
        if self.moving:
            shifted = self.t[first:stop] - (self.t[0] + (start - self.times[0]))
            return (shifted / h).to(self.dtype).to(self.device)
        theta = [(time - start) / h for time in self.times[first:stop]]
        return torch.tensor(theta, dtype=self.dtype, device=self.device)


def _adaptive(
    f: Dynamics,
    y: Tensor,
    t: Tensor,
    scheme: Scheme,
    stats: Statistics,
    record: Callable[[Segment], None] | None,
) -> Trajectory:
    method, controller, norm = scheme.method, scheme.controller, scheme.norm
    clock = _Clock(t, y)
    now, end = clock.times[0], clock.times[-1]
    slope = f(clock.tensor(now), y)
    _check_dynamics(slope, y, now)
    carry: Tensor | None = slope
    stats.nfe += 1
    if scheme.first_step is None:
        h = initial_step(f, now, y, slope, end - now, method.order, scheme.rtol, scheme.atol, norm)
        stats.nfe += 1
    else:
        h = clock.direction * min(scheme.first_step, abs(end - now))

    outputs = [y[None]]
    done = 1
    steps = 0
    err = 0.0
    planned = h
    while done < len(clock.times):
        if steps == scheme.max_steps:
            raise MaxStepsError(
                f"{scheme.max_steps} steps were not enough to go from t = {clock.times[0]} to {end}: reached "
                f"t = {now}; allow more with max_steps, loosen rtol and atol, or use a method for stiff problems"
            )
        steps += 1
        planned = h
        # A last step that would leave a sliver is stretched over it; one that would overshoot is cut.
        reaches_end = (now + 1.01 * h - end) * clock.direction >= 0
        if reaches_end:
            h = end - now
        after = end if reaches_end else now + h
        if not abs(after - now) > 0:  # also when it is NaN
            _give_up(now, h, err)
        step = method.step(f, clock.tensor(now), y, h, carry)
        stats.nfe += step.nfe
        assert step.error is not None
        err = error_ratio(step.error, y, step.y1, scheme.rtol, scheme.atol, norm)
        factor = controller.factor(err, method.order)
        if not err <= 1:  # also when it is NaN
            stats.rejected += 1
            h *= factor
            del step  # or its slopes would live, in memory, through the next step
            continue
        stats.accepted += 1
        stats.step_sizes.append(h)
        if record is not None:
            record(Segment(now, h, y, step.stages))
        stop = clock.due(done, after)
        # Without a gradient in the times, an output at the end of the step is y1 itself.
        inside = stop - int(stop > done and not clock.moving and clock.times[stop - 1] == after)
        if inside > done:
            theta = clock.fractions(done, inside, now, h)
            outputs.append(method.interpolate(y, step.stages, h, theta))
        if stop > inside:
            outputs.append(step.y1[None])
        done = stop
        now, y, carry = after, step.y1, step.carry
        if carry is None and done < len(clock.times):
            carry = f(clock.tensor(now), y)
            stats.nfe += 1
        h *= factor
        del step
    return Trajectory(torch.cat(outputs), clock.direction * max(abs(h), abs(planned)))


def _fixed(
    f: Dynamics,
    y: Tensor,
    t: Tensor,
    scheme: Scheme,
    stats: Statistics,
    record: Callable[[Segment], None] | None,
) -> Tensor:
    method = scheme.method
    clock = _Clock(t, y)
    grid = t if scheme.step_size is None else _even_grid(t, scheme.step_size)
    points: list[float] = grid.tolist()
    carry: Tensor | None = None
    outputs = [y[None]]
    done = 1
    for i in range(len(points) - 1):
        now, after = points[i], points[i + 1]
        h: Tensor | float = grid[i + 1] - grid[i] if clock.moving else after - now
        time = grid[i].to(clock.dtype).to(y.device) if clock.moving else clock.tensor(now)
        step = method.step(f, time, y, h, carry)
        if i == 0:
            _check_dynamics(step.stages[0], y, now)
        stats.nfe += step.nfe
        stats.accepted += 1
        stats.step_sizes.append(after - now)
        if record is not None:
            record(Segment(now, after - now, y, step.stages))
        carry = step.carry
        stop = clock.due(done, after)
        # At the end of the step the output is y1, if y1 moves with the output's time or that does not matter.
        follows = not clock.moving or scheme.step_size is None or i == len(points) - 2
        inside = stop - int(stop > done and clock.times[stop - 1] == after and follows)
        if inside > done:
            theta = (
                ((t[done:inside] - grid[i]) / h).to(clock.dtype).to(y.device)
                if clock.moving
                else clock.fractions(done, inside, now, after - now)
            )
            if method.has_dense_output:
                outputs.append(method.interpolate(y, step.stages, h, theta))
            elif scheme.interpolation == "linear":
                outputs.append(_linear(y, step.y1, theta))
            else:
                if carry is None:  # the first slope of the next step, too
                    carry = f(clock.tensor(after), step.y1)
                    stats.nfe += 1
                outputs.append(_hermite(y, step.y1, step.stages[0], carry, h, theta))
        if stop > inside:
            outputs.append(step.y1[None])
        done = stop
        y = step.y1
        del step
    return torch.cat(outputs)


def _even_grid(t: Tensor, step_size: float) -> Tensor:
    """Points `step_size` apart from `t[0]`, the last one at `t[-1]`."""
    span = (t[-1] - t[0]).item()
    steps = max(1, math.ceil(abs(span) / step_size - 1e-9))
    inner = t[0] + math.copysign(step_size, span) * torch.arange(steps, dtype=t.dtype, device=t.device)
    return torch.cat([inner, t[-1:]])


def _column(theta: Tensor, y: Tensor) -> Tensor:
    return theta.reshape(-1, *[1] * y.dim())


def _linear(y0: Tensor, y1: Tensor, theta: Tensor) -> Tensor:
    return y0 + _column(theta, y0) * (y1 - y0)


def _hermite(y0: Tensor, y1: Tensor, f0: Tensor, f1: Tensor, h: Tensor | float, theta: Tensor) -> Tensor:
    """The cubic through both ends with the slopes there; Hairer, Nørsett & Wanner I, equation II.6.7."""
    x = _column(theta, y0)
    rise = y1 - y0
    return y0 + x * rise + x * (x - 1) * ((1 - 2 * x) * rise + h * ((x - 1) * f0 + x * f1))


def _check_dynamics(slope: Tensor, y: Tensor, time: float) -> None:
    """The first evaluation of the dynamics shows whether they fit the state."""
    if not isinstance(slope, Tensor):
        raise InvalidArgumentError(f"f(t, y) must return a tensor like y, got {type(slope).__name__}")
    if slope.shape != y.shape or slope.dtype != y.dtype or slope.device != y.device:
        raise InvalidArgumentError(
            f"f(t, y) must have the shape, dtype and device of y, which are {tuple(y.shape)}, {y.dtype} and "
            f"{y.device}; it has {tuple(slope.shape)}, {slope.dtype} and {slope.device}"
        )
    if not torch.isfinite(slope.detach()).all():
        raise NonFiniteError(f"f(t, y) is not finite at the start, t = {time}: check y0 and the parameters of f")


def _give_up(now: float, h: float, err: float) -> None:
    if not math.isfinite(err):
        raise NonFiniteError(
            f"f(t, y) is NaN or infinite just after t = {now}, however small the step: does the solution "
            "blow up there, or leave the domain of f?"
        )
    raise StepSizeUnderflowError(
        f"at t = {now} the error control asks for a step of {h:.1e}, too small to change t: loosen rtol and "
        "atol, use float64, or a method for stiff problems"
    )
