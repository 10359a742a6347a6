"""The rule that makes steps longer and shorter, written once for all loops.

A loop proposes a step, makes it, judges its error, and is told the length to go on with. What a loop keeps are the
clock, the outputs and the counters.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple

from neural_ode.control.arithmetic import Number

__all__ = ["Proposal", "StepPolicy", "stretch_for"]


def stretch_for(max_step: float) -> float:
    """How much longer the last step may become, not to leave a sliver; with a longest step, not at all."""
    return 1.01 if max_step == math.inf else 1.0


class Proposal(NamedTuple, Generic[Number]):
    """A step to try.

    Attributes:
        planned: the length that the error control wants, within the limits; negative in reverse time.
        reaches: whether it was cut or stretched to end at the stop.
        h: its length then.
        after: the time at its end.
        moves: whether it changes the time; not if it is too short, or NaN.
    """

    planned: Number
    reaches: Any
    h: Number
    after: Number
    moves: Any


@dataclass(frozen=True)
class StepPolicy(Generic[Number]):
    """How long steps are, and which of them pass.

    One step for the whole state, in Python floats or tensors of shape (); or a step for each row, in arrays or
    tensors of shape (batch,).

    Attributes:
        xp: the functions for such numbers, see `neural_ode.control.arithmetic`.
        factor: by how much the step changes, as `IntegralController.factor`.
        direction: 1, or -1 in reverse time.
        shortest: a step planned or cut to this length or less passes with any finite error.
        longest: the most a step is planned to be.
        stretch: a step that leaves less than this much of itself before a stop is stretched over it.
    """

    xp: Any
    factor: Callable[[Number, int, Sequence[Number]], Number]
    direction: Any
    shortest: Any
    longest: Any
    stretch: Any

    def propose(self, now: Number, h: Number, stop: Number) -> Proposal[Number]:
        """The step to try from `now` with the planned length `h`; no step goes past `stop`."""
        xp, direction = self.xp, self.direction
        planned = direction * xp.minimum(xp.maximum(abs(h), self.shortest), self.longest)
        reaches = (now + self.stretch * planned - stop) * direction >= 0
        after = xp.where(reaches, stop, now + planned)
        return Proposal(planned, reaches, xp.where(reaches, stop - now, planned), after, abs(after - now) > 0)

    def judge(self, step: Proposal[Number], err: Number) -> tuple[Number, Any, Any]:
        """Whether a step passes.

        Args:
            step: the step.
            err: its error ratio, not negative; NaN or infinite where the step cannot be used.

        Returns:
            The error ratio that counts, whether the step passes, and whether the solve is lost: the step is one of
            the shortest and cannot be used.
        """
        xp = self.xp
        finite = xp.isfinite(err)
        # A step of the least length that was stretched is one of them, or it would be tried for ever.
        least = xp.minimum(abs(step.h), abs(step.planned)) <= self.shortest
        err = xp.where(least & finite & (err > 1), 1.0, err)
        return err, err <= 1, xp.where(finite, False, least)

    def go_on(
        self, step: Proposal[Number], passed: Any, err: Number, order: int, earlier: Sequence[Number]
    ) -> tuple[Number, tuple[Number, ...]]:
        """The length to plan after a step.

        Args:
            step: the step.
            passed: whether it passed, or else is to be repeated.
            err: the error ratio to choose the length by.
            order: the error is proportional to this power of the length.
            earlier: error ratios of the two steps before, the last one first; infinite if it was rejected.

        Returns:
            The length, and `earlier` for the step after this one.
        """
        xp = self.xp
        h = step.h * self.factor(err, order, earlier)
        # A step cut short says little about the next.
        kept = self.direction * xp.maximum(abs(h), abs(step.planned))
        return xp.where(passed & step.reaches, kept, h), (xp.where(passed, err, math.inf), *earlier)[:2]
