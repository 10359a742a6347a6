"""Where a solve ends: the zero of a function of time and state."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from neural_ode.errors import InvalidArgumentError

__all__ = ["SIGNS", "Event", "EventFunction"]

EventFunction = Callable[[Tensor, Any], Tensor]

SIGNS = {None: (-1, 1), "rising": (-1,), "falling": (1,)}
"""The signs that a number has to have before it crosses."""


@dataclass(frozen=True)
class Event:
    """An event function with what counts as its crossing; pass it as `event` or `event_fn`.

    Attributes:
        function: of time (float64, shape ()) and state; returns one or more numbers, the first of which to cross
            zero is the event. Numbers may be real, integer or boolean. Time and state at an event of real numbers
            have gradients.
        direction: `"rising"` for crossings from below zero, `"falling"` for those from above; `None`: wherever a
            number no longer has the sign that it had at the start. A real number that starts at zero is an event
            at once, unless there is a direction.
        skip_start: leave the sign at the start out: a number is watched from where it is first seen off zero. For
            a solve that goes on from an event, where the sign is a matter of rounding.
        moves: whether the time of the event moves with what the solve depends on, or counts as a constant.

    Example:
        >>> import torch
        >>> from neural_ode import Event, solve
        >>> ball = lambda t, y: torch.stack([y[1], torch.full_like(y[1], -9.81)])
        >>> ground = Event(lambda t, y: y[0], direction="falling")
        >>> up = torch.tensor([0.0, 9.81], dtype=torch.float64)
        >>> round(solve(ball, up, [0.0, 10.0], event=ground).t[-1].item(), 6)
        2.0
    """

    function: EventFunction
    direction: Literal["rising", "falling"] | None = None
    skip_start: bool = False
    moves: bool = True

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise InvalidArgumentError(
                f"the event function must be callable as event(t, y), got {type(self.function).__name__}"
            )
        if self.direction not in SIGNS:
            raise InvalidArgumentError(f"direction must be 'rising', 'falling' or None, got {self.direction!r}")

    @staticmethod
    def of(event: EventFunction) -> "Event":
        """The event; a function becomes one in any direction."""
        return event if isinstance(event, Event) else Event(event)

    def on(self, restore: Callable[[Tensor], Any]) -> "Event":
        """The event as one of packed states."""
        function = self.function
        return replace(self, function=lambda t, y: function(t, restore(y)))

    def __call__(self, t: Tensor, y: Any) -> Tensor:
        return self.function(t, y)
