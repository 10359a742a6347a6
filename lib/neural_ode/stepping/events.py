"""Events: where a function of time and state crosses zero, and how that moves.

The crossing is found on the continuous extension of a step. Its gradient follows from the implicit function
theorem (Chen, Amos & Nickel 2021, *Learning Neural Event Functions*).
"""

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from neural_ode.errors import InvalidArgumentError, NeuralODEWarning, NonFiniteError
from neural_ode.problem.event import SIGNS, Event
from neural_ode.problem.state import Dynamics, real_dtype

__all__ = ["EventWatch", "follow_event"]

_INSIDE = (0.25, 0.5, 0.75)
"""Where in a step an event function is looked at besides its end: it may have crossed there and come back."""


class EventWatch:
    """Watches the signs of an event function from the start of a solve."""

    def __init__(self, event: Event, t: Tensor, y: Tensor):
        self.event = event
        self._has_plateaus = False
        with torch.no_grad():
            self._values = self._at(t, y.clone())  # y0, which is the caller's
        self._change: list[float] | None = None  # of each number over the last step, for a step of length one
        if any(map(math.isnan, self._values)):
            raise NonFiniteError(f"the event function is NaN at the start, t = {float(t.detach())}")
        # The sign that each number crosses from, `None` until it has had one.
        self._before: list[int | None] = [None] * len(self._values)
        if not event.skip_start:
            self._arm(self._values)

    def _at(self, t: Tensor, y: Tensor) -> list[float]:
        before = None if y.is_inference() else y._version
        values = self.event(t, y)
        if before is not None and y._version != before:
            raise InvalidArgumentError(
                "the event function changed the state in place: let it work on a copy, y.clone()"
            )
        if not isinstance(values, Tensor):
            raise InvalidArgumentError(f"the event function must return a tensor, got {type(values).__name__}")
        if values.is_floating_point():
            found: list[float] = values.reshape(-1).cpu().tolist()
            return found
        if values.is_complex():
            raise InvalidArgumentError(
                f"the event function must return real numbers whose sign changes, got {values.dtype}"
            )
        found = [float(x) for x in values.reshape(-1).cpu().tolist()]
        if values.dtype == torch.bool:
            return [2.0 * x - 1.0 for x in found]
        self._has_plateaus = True
        return found

    def _arm(self, values: list[float]) -> None:
        for i, value in enumerate(values):
            sign = _sign(value)
            if self._has_plateaus:  # integers, for which zero is a value like others
                if self._before[i] is None or self.event.direction is not None:
                    self._before[i] = int(sign)
            elif self._before[i] is None and sign in SIGNS[self.event.direction]:
                self._before[i] = int(sign)

    def at_start(self) -> int | None:
        """The component that is zero already, if there is one and that counts."""
        if self.event.skip_start or self.event.direction is not None or self._has_plateaus:
            return None
        if 0.0 not in self._values:
            return None
        return self._values.index(0.0)

    def _crossed(self, values: list[float]) -> int | None:
        """The first component that has crossed."""
        for i, (before, value) in enumerate(zip(self._before, values, strict=True)):
            if before is not None and _sign(value) != before and not self._turns_away(before, value):
                return i
        return None

    def _turns_away(self, before: int, value: float) -> bool:
        """Whether an integer changes in the direction that does not count."""
        if not self._has_plateaus or self.event.direction is None:
            return False
        return (value > before) != (self.event.direction == "rising")

    def _is_calm(self, values: list[float], length: float) -> bool:
        """Whether no number comes near zero within a step: all are far from it for what they change.

        Args:
            values: at the end of the step.
            length: of the step.
        """
        earlier = self._change
        self._change = [abs(b - a) / length for a, b in zip(self._values, values, strict=True)]
        if earlier is None:
            return False
        return all(
            before is not None and 0 < _FAR * length * max(now, last) < min(abs(a), abs(b))
            for before, now, last, a, b in zip(
                self._before, self._change, earlier, self._values, values, strict=True
            )
        )

    def crossing(
        self, state: Callable[[Tensor], Tensor], time: Callable[[float], Tensor], y1: Tensor, length: float
    ) -> tuple[float, int] | None:
        """Look for the first crossing in a step.

        Besides the end of the step, unless the numbers are far from zero for what they change, three times inside
        are looked at, and those where a parabola through neighbouring values has an extremum across zero, or close
        to it. What comes and goes in between is not seen.

        Args:
            state: maps fractions of the step, shape (m,), to the states there, shape (m, *state).
            time: maps a fraction to the time, shape ().
            y1: the state at the end.
            length: of the step.

        Returns:
            The fraction, to rounding, and the component that crosses; `None` if none does.
        """

        def at(fraction: float) -> list[float]:
            if fraction == 1.0:
                return self._at(time(1.0), y1)
            theta = torch.tensor([fraction], dtype=real_dtype(y1), device=y1.device)
            return self._at(time(fraction), state(theta)[0])

        with torch.no_grad():
            last = at(1.0)
            if self._is_calm(last, length) and self._crossed(last) is None:
                self._values = last
                return None
            inside = state(torch.tensor(_INSIDE, dtype=real_dtype(y1), device=y1.device))
            points = [(0.0, self._values)]
            points += [(x, self._at(time(x), y)) for x, y in zip(_INSIDE, inside, strict=True)]
            points.append((1.0, last))
            for number in range(1, len(points)):
                fraction, values = points[number]
                if self._crossed(values) is None:
                    for turn in _turns(points[max(number - 2, 0) : number + 2], points[number - 1][0], fraction):
                        between = at(turn)
                        if self._crossed(between) is not None:
                            return self._bisect(at, points[number - 1][0], turn, between)
                    self._arm(values)
                else:
                    return self._bisect(at, points[number - 1][0], fraction, values)
            self._values = last
        return None

    def _bisect(
        self, at: Callable[[float], list[float]], low: float, high: float, values: list[float]
    ) -> tuple[float, int]:
        """The first crossing between a fraction without and one with it."""
        while low < (middle := 0.5 * (low + high)) < high and high - low > _RESOLUTION:
            found = at(middle)
            if self._crossed(found) is None:
                low = middle
            else:
                high, values = middle, found
        component = self._crossed(values)
        assert component is not None
        return high, component


_FAR = 4.0
"""How many times what it changes in a step a number is away from zero, where it will not come there within it."""

_RESOLUTION = 2.0**-52
"""Of a fraction of a step."""


def _sign(x: float) -> float:
    """-1, 0 or 1; NaN, which is no sign, for NaN."""
    return x if math.isnan(x) else float((x > 0) - (x < 0))


def _turns(points: list[tuple[float, list[float]]], low: float, high: float) -> list[float]:
    """Where, between `low` and `high`, parabolas through three neighbouring values have an extremum near zero."""
    found = set()
    for (x0, v0), (x1, v1), (x2, v2) in zip(points, points[1:], points[2:], strict=False):
        for a, b, c in zip(v0, v1, v2, strict=True):
            slope, other = (b - a) / (x1 - x0), (c - b) / (x2 - x1)
            bend = (other - slope) / (x2 - x0)
            if not bend * b > 0 or not math.isfinite(bend):  # it does not turn away from zero
                continue
            turn = 0.5 * (x0 + x1 - slope / bend)
            if low < turn < high:
                extremum = a + slope * (turn - x0) + bend * (turn - x0) * (turn - x1)
                if extremum * b <= 0 or abs(extremum) < _CLOSE * min(abs(a), abs(b), abs(c)):
                    found.add(turn)
    return sorted(found)


_CLOSE = 0.1
"""An extremum this small, beside the values around it, is looked at."""


def follow_event(f: Dynamics, event: Event, component: int, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Let the time and the state of an event move with what the solve depends on.

    With `c(t + s, y(t + s)) = 0`, a change of the state `y` at the fixed time `t`, or of the event function, moves
    the event by `s`. Newton's method for `s`, which starts at its solution 0, gives the derivatives: one iteration
    the first, `s = -c / (∂c/∂t + ∂c/∂y · f)`, two the second. Each iteration needs `y(t + s)` to the order of
    the derivatives; a step of the midpoint rule has it to the second.

    Args:
        f: the dynamics.
        event: the event function.
        component: which of its numbers crosses zero.
        t: the time of the event, float64, shape ().
        y: the state there, differentiable at fixed time.

    Returns:
        The time, shape (), and the state, both with the values of `t` and `y` and two derivatives.
    """
    # The module has no types.
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(y).tangent is not None:  # type: ignore[no-untyped-call]
        raise InvalidArgumentError(
            "the derivatives of an event are found in reverse mode, by .backward() or torch.autograd.grad, not in "
            "forward mode"
        )
    if not torch.is_grad_enabled():
        return t, y
    start = t.detach().to(y.device)
    state = _TwoDerivatives.apply(y, 2) if y.requires_grad else y
    # Copies, for the event function may return the same memory every time.
    value = event(start, state).reshape(-1)[component].clone()
    if not (value.requires_grad or y.requires_grad):
        return t, y
    time = start.clone().requires_grad_()
    probe = state if y.requires_grad else y.detach().requires_grad_()
    probed = event(time, probe).reshape(-1)[component].clone()
    if not probed.requires_grad:
        _warn_of(component, "has no derivative: it is made of no operations that autograd follows")
    if not value.requires_grad:  # or it is a matter of time alone
        return t, y
    c_t, c_y = torch.autograd.grad(probed, (time, probe), allow_unused=True, create_graph=True)
    slope = f(start, state)
    rate = torch.zeros_like(start) if c_t is None else c_t
    if c_y is not None:
        rate = rate + torch.sum(c_y.conj() * slope).real
    if float(rate.detach()) == 0:
        _warn_of(component, "does not change along the solution at the event: its crossing has no slope")
        return t, y
    real = real_dtype(y)
    first = (value.detach() - value) / rate
    middle = state + 0.5 * first.to(real) * slope
    moved = state + first.to(real) * f(start + 0.5 * first, middle)
    again = event(start + first, moved).reshape(-1)[component].clone()
    correction = (again.detach() - again) / rate
    shift = first + correction
    return t + shift.to(t.device, t.dtype), moved + correction.to(real) * slope


def _warn_of(component: int, reason: str) -> None:
    text = f"number {component} of the event function {reason}; time and state at the event are taken at fixed time"
    warnings.warn(text, NeuralODEWarning, stacklevel=7)


class _TwoDerivatives(torch.autograd.Function):
    """The identity, which refuses to be differentiated more often than given."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, left: int) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        ctx.left = inputs[1]

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return tangent.view_as(tangent)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
        if ctx.left == 0:
            raise InvalidArgumentError(
                "an event has first and second derivatives: third ones would be wrong. Differentiate the solve "
                "without the event, or take differences of second derivatives"
            )
        return _TwoDerivatives.apply(cotangent, ctx.left - 1), None
