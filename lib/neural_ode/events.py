"""Events: where a function of time and state crosses zero, and how that moves.

The crossing is found on the continuous extension of a step. Its gradient follows from the implicit function
theorem (Chen, Amos & Nickel 2021, *Learning Neural Event Functions*).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from neural_ode.errors import InvalidArgumentError
from neural_ode.state import Dynamics

__all__ = ["EventFunction", "EventWatch", "FixedTimeEvent", "follow_event"]

EventFunction = Callable[[Tensor, Any], Tensor]


class FixedTimeEvent:
    """An event function whose time counts as a constant: the state at the event does not move along with it."""

    def __init__(self, event: EventFunction):
        if not callable(event):
            raise InvalidArgumentError(
                f"the event function must be callable as event(t, y), got {type(event).__name__}"
            )
        self.event = event

    def __call__(self, t: Tensor, y: Any) -> Tensor:
        return self.event(t, y)


class EventWatch:
    """Watches the signs of an event function from the start of a solve.

    An event function returns one or several numbers; the first of them to change its sign is the event.
    """

    def __init__(self, event: EventFunction, t: Tensor, y: Tensor):
        self.event = event
        self.signs = self._values(t, y).sign()

    def _values(self, t: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            values = self.event(t, y)
            if not isinstance(values, Tensor):
                raise InvalidArgumentError(f"the event function must return a tensor, got {type(values).__name__}")
            if not values.is_floating_point():
                raise InvalidArgumentError(
                    f"the event function must return real numbers whose sign changes, got {values.dtype}"
                )
            return values.detach().reshape(-1)

    def at_start(self) -> int | None:
        """The component that is zero already, if there is one."""
        zero = (self.signs == 0).nonzero()
        return int(zero[0]) if len(zero) else None

    def crossed(self, t: Tensor, y: Tensor) -> bool:
        """Whether a component has another sign than at the start."""
        return bool((self._values(t, y).sign() != self.signs).any())

    def locate(
        self, state: Callable[[Tensor], Tensor], time: Callable[[float], Tensor], like: Tensor
    ) -> tuple[float, int]:
        """Bisect a step for its first sign change.

        Args:
            state: maps a fraction of the step, shape (1,), to the state there, shape (1, *state).
            time: maps a fraction to the time, shape ().
            like: a tensor with the dtype and device of the fractions.

        Returns:
            The fraction, as exact as the dtype of the state, and the component that changes its sign.
        """
        low, high = 0.0, 1.0
        with torch.no_grad():
            while True:
                middle = 0.5 * (low + high)
                if not low < middle < high or high - low < torch.finfo(like.dtype).eps:
                    break
                if self.crossed(time(middle), state(like.new_tensor([middle]))[0]):
                    high = middle
                else:
                    low = middle
            after = self._values(time(high), state(like.new_tensor([high]))[0])
            changed = (after.sign() != self.signs).nonzero()
        return high, int(changed[0]) if len(changed) else 0


def follow_event(f: Dynamics, event: EventFunction, component: int, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Let the time and the state of an event move with what the solve depends on.

    With `c(t, y(t)) = 0`, a change `δy` of the state at the fixed time `t` moves the event by
    `δt = -(∂c/∂y · δy) / (∂c/∂t + ∂c/∂y · f)` and the state at the event by `δy + f δt`. Parameters of the event
    function take part in the same way.

    Args:
        f: the dynamics.
        event: the event function.
        component: which of its numbers crosses zero.
        t: the time of the event, shape ().
        y: the state there, differentiable at fixed time.

    Returns:
        The time, shape (), and the state, both with the values of `t` and `y`.
    """
    if not torch.is_grad_enabled():
        return t, y
    with torch.enable_grad():
        time = t.detach().to(y.abs().dtype).requires_grad_()
        state = y.detach().requires_grad_()
        value = event(time, state).reshape(-1)[component]
        if not value.requires_grad:  # it depends on neither
            return t, y
        c_t, c_y = torch.autograd.grad(value, (time, state), allow_unused=True)
        slope = f(time.detach(), state.detach())
        rate = torch.zeros_like(time) if c_t is None else c_t
        if c_y is not None:
            rate = rate + torch.sum(c_y.conj() * slope.detach()).real
        moved = event(time.detach(), y).reshape(-1)[component]
    if not moved.requires_grad or float(rate.detach()) == 0:
        return t, y
    shift = -(moved - moved.detach()) / rate.detach()
    return t + shift.to(t.device, t.dtype), y + slope.detach() * shift
