"""A compiled solve as data: what is solved and how, and what was recorded of its steps."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
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
        if self.small:
            return 512
        return 64 if self.entries <= 2**14 else 16

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

    States and slopes are seen as rows, see `Plan.rows`, `batch` of them for every step: an output is
    `states[source] + Σ_j weights[j] slopes[stages[j]]`.

    Attributes:
        number: how many steps there are.
        log, states: see `run_until`; without the rows that are not used.
        sources, stages: which rows each output comes from, shapes (m,) and (m, stages).
        targets: which rows of the solution they are, shape (m,).
        weights: of the slopes, shape (m, stages).
        rates: the derivatives of the outputs with respect to their times, where those are wanted.
    """

    number: int
    log: Tensor
    states: Tensor
    sources: Tensor
    stages: Tensor
    targets: Tensor
    weights: Tensor
    rates: Tensor | None

    def spread(self, part: Tensor, grad_slopes: Tensor, joint: bool) -> None:
        """Add to the gradients of the slopes what outputs have read off them.

        Args:
            part: gradients of the m outputs, shape (m, size).
            grad_slopes: those of the slopes as rows; changed in place.
            joint: whether a step is a single row.
        """
        if not joint or part.numel() < LARGE:
            weighted = (self.weights[:, :, None] * part[:, None]).flatten(0, 1)
            grad_slopes.index_add_(0, self.stages.reshape(-1), weighted)
            return
        # The outputs of a step are consecutive: one product for each step, not a row for each output and stage.
        number = self.stages.shape[1]
        rows, begins = np.unique(self.stages[:, 0].cpu().numpy(), return_index=True)
        for row, begin, end in zip(rows, begins, [*begins[1:], len(part)], strict=True):
            grad_slopes[row : row + number].addmm_(self.weights[begin:end].T, part[begin:end])
