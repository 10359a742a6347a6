"""A compiled solve as data: what is solved and how, and what was recorded of its steps."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from numpy.typing import NDArray
from torch import Tensor

from neural_ode.compiled.dynamics import LiftedDynamics
from neural_ode.methods import ExplicitRungeKutta
from neural_ode.problem.norms import Norm
from neural_ode.stepping.per_sample import by_rows
from neural_ode.stepping.settings import SolverSettings

__all__ = ["LARGE", "Array", "Plan", "Recorded"]

Array = NDArray[Any]

LARGE = 2**16
"""Entries of a state, or of outputs, from which arithmetic takes most of the time: to make steps again for the
gradient, as whole solves do, then costs more than dispatch. Steps compiled one by one make none again."""

_ROOMS = 32, 512, 8192
_MOST_OUTPUTS = 2**25
"""Numbers of all outputs that there is room for; memory that stays untouched costs nothing."""


@dataclass(frozen=True)
class Plan:
    """What is solved and how.

    Attributes:
        dynamics: the dynamics.
        settings: how to solve.
        method: that of the settings.
        times: of the outputs, shape (n,), or (batch, n) where every row of the state has steps of its own.
        moving: whether the gradient of the times is wanted.
        entries: how many numbers the state has.
    """

    dynamics: LiftedDynamics
    settings: SolverSettings
    method: ExplicitRungeKutta
    times: Array
    moving: bool
    entries: int

    @property
    def by_rows(self) -> bool:
        """Whether every row has steps of its own."""
        return self.times.ndim == 2

    @cached_property
    def batch(self) -> int:
        """How many rows have steps of their own: 1 if all have the same."""
        return len(self.times) if self.by_rows else 1

    @cached_property
    def direction(self) -> float:
        """1, or -1 in reverse time."""
        return -1.0 if (self.times[..., -1] < self.times[..., 0]).any() else 1.0

    @property
    def small(self) -> bool:
        """Whether what surrounds arithmetic takes most of the time."""
        return self.entries <= 2**8

    @property
    def capacity(self) -> int:
        """How many steps are recorded before the loop comes back to Python: more of small systems, where that takes
        longer than many steps."""
        if self.reads:
            return min(512, 2**22 // self.entries)
        if self.small:
            return 512
        return 64 if self.entries <= 2**14 else 16

    @cached_property
    def room(self) -> int:
        """Outputs that a loop which reads them has memory for: one of a few numbers, each with a graph of its own;
        zero if there are too many."""
        fitting = (n for n in _ROOMS if n >= self.times.shape[-1] and n * self.entries <= _MOST_OUTPUTS)
        return next(fitting, 0)

    @property
    def reads(self) -> bool:
        """Whether the loop itself finds the outputs, which pays where a call inside of it costs little."""
        return not self.moving and self.entries <= 2**15 and self.dynamics.on_cpu and self.room > 0

    @property
    def norm(self) -> Norm:
        """The norm of the error control."""
        tolerance = self.settings.tolerance
        return by_rows(tolerance).norm if self.by_rows else tolerance.norm

    def rows(self, x: Tensor) -> Tensor:
        """States or slopes, shape (…, *state), as rows that have steps of their own, shape (m, size)."""
        return x.view(-1, self.entries // self.batch)


class Recorded(NamedTuple):
    """What the backward pass needs of some steps.

    Attributes:
        log, states: see `run_until`; without the rows that are not used.
        ends: where the steps end, shape (count,) or (count, batch).
        done: how many outputs of each row lie before them, shape (batch,).
        rates: the derivatives of the outputs in them with respect to their times, where those are wanted.
    """

    log: Tensor
    states: Tensor
    ends: Array
    done: Array
    rates: Tensor | None = None

    @property
    def number(self) -> int:
        """How many steps there are."""
        return len(self.log)
