"""Times of a solve: Python numbers for the loops, tensors for the dynamics."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from neural_ode.problem.state import Dynamics, real_dtype

__all__ = ["Clock", "Outputs", "strictly_inside"]


class Clock:
    """Times as float64 numbers, and as tensors that are differentiable where `t` is.

    Attributes:
        t: the output times, float64, shape (n,).
        times: the same as numbers.
        moving: whether gradients with respect to the times are wanted.
        direction: 1, or -1 in reverse time.
    """

    def __init__(self, t: Tensor, y: Tensor):
        self.t = t
        self.times: list[float] = t.tolist()
        self.moving = t.requires_grad and torch.is_grad_enabled()
        self.direction = math.copysign(1.0, self.times[-1] - self.times[0])
        self.dtype = real_dtype(y)
        self.device = y.device

    def tensor(self, time: float) -> Tensor:
        """The time as a tensor: shape (), float64 as times are counted; the dynamics see it in their own dtype."""
        if self.moving:
            return (self.t[0] + (time - self.times[0])).to(self.device)
        # Filled, not copied: a copy to a GPU waits for all that it has to do.
        return torch.full((), time, dtype=torch.float64, device=self.device)

    def due(self, first: int, time: float) -> int:
        """Index after the last output time that is not later than `time`, starting from `first`."""
        while first < len(self.times) and (self.times[first] - time) * self.direction <= 0:
            first += 1
        return first

    def fractions(self, times: Tensor | Sequence[float], start: Tensor | float, h: Tensor | float) -> Tensor:
        """Where times lie in the step from `start`: 0 to 1, in the real dtype of the state."""
        if isinstance(times, Tensor):
            return ((times - start) / h).to(self.dtype).to(self.device)
        return torch.tensor([(time - start) / h for time in times], dtype=self.dtype, device=self.device)


class Outputs:
    """Gathers the states at the output times while the steps pass over them."""

    def __init__(self, clock: Clock, y0: Tensor):
        self.clock = clock
        self.states = [y0[None]]
        self.done = 1

    def resume(self, done: int) -> None:
        """Go on as if the first `done` output times had been passed, with the states from there only."""
        self.states = []
        self.done = done

    @property
    def complete(self) -> bool:
        """Whether the last output time has been passed."""
        return self.done == len(self.clock.times)

    def collect(
        self,
        after: float,
        start: Tensor | float,
        h: Tensor | float,
        y1: Tensor,
        y1_follows: bool,
        interpolate: Callable[[Tensor], Tensor],
    ) -> None:
        """Take what is due in the step from `start` to `after`.

        Args:
            after: end of the step.
            start: where it starts; a tensor where gradients with respect to the times are wanted.
            h: its length, a tensor in the same case or a number.
            y1: the state at its end.
            y1_follows: whether `y1` is the state at an output time that coincides with the end, also when that
                time is moved.
            interpolate: maps fractions of the step, shape (m,), to states.
        """
        clock = self.clock
        stop = clock.due(self.done, after)
        inside = stop - int(stop > self.done and y1_follows and clock.times[stop - 1] == after)
        if inside > self.done:
            due = clock.t[self.done : inside] if clock.moving else clock.times[self.done : inside]
            self.states.append(interpolate(clock.fractions(due, start, h)))
        if stop > inside:
            self.states.append(y1[None])
        self.done = stop

    def add(self, state: Tensor) -> None:
        """Take a state that is due at no output time."""
        self.states.append(state[None])
        self.done += 1

    def stacked(self) -> Tensor:
        """The states so far, shape (n, *state)."""
        return torch.cat(self.states)

    def finish(self, time: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Times and states so far, with one more of each at the end."""
        times = torch.cat([self.clock.t[: self.done], time.reshape(1).to(self.clock.t)])
        return times, torch.cat([*self.states, state[None]])

    def partial(self, time: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """What a solve that cannot be finished has found, up to where it is."""
        return (self.clock.t, self.stacked()) if self.complete else self.finish(time, state)


def strictly_inside(f: Dynamics, start: float, end: float) -> Dynamics:
    """`f`, evaluated at the next representable time inside instead of at the ends of a step.

    For dynamics with a jump at one end: the step sees the branch that holds inside. Representable in the dtype of
    the state, in which the dynamics get their time.
    """
    low, high = min(start, end), max(start, end)

    def inside(t: Tensor, y: Tensor) -> Tensor:
        t = t.to(real_dtype(y))
        with torch.no_grad():
            least = torch.nextafter(t.new_tensor(low), t.new_tensor(math.inf))
            most = torch.nextafter(t.new_tensor(high), t.new_tensor(-math.inf))
            shift = torch.minimum(torch.maximum(t, least), most) - t
        return f(t + shift, y)

    return inside
