"""The outputs of a compiled solve: in which of the recorded steps they lie, and how they come about there."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from neural_ode.compiled.plan import LARGE, Array, Plan

__all__ = ["Places", "Readings", "located", "outputs_in", "readings"]

_jvp: Any = torch.func.jvp  # its stub does not know how many values it returns


class Places(NamedTuple):
    """Where outputs lie.

    Attributes:
        steps: in which of some steps.
        rows: in which row of the batch; 0 if all have the same steps.
        columns: which output of that row they are.
    """

    steps: Array
    rows: Array
    columns: Array


def located(plan: Plan, done: Array, ends: Array) -> tuple[Places, Array]:
    """Which outputs lie in steps that were just made.

    Args:
        plan: the solve.
        done: how many outputs of each row lie before them, shape (batch,).
        ends: where the steps end, shape (count,) or (count, batch).

    Returns:
        The outputs; and how many of each row have been passed then.
    """
    times = plan.direction * np.atleast_2d(plan.times)
    keys = plan.direction * ends.reshape(len(ends), plan.batch)
    if plan.times.strides[0] == 0 or not plan.by_rows:  # all rows have the same times
        passed = np.searchsorted(times[0], keys, side="right")
    else:
        found = [np.searchsorted(own, key, side="right") for own, key in zip(times, keys.T, strict=True)]
        passed = np.stack(found, axis=1)
    passed = np.concatenate([done[None], passed])
    inside = np.diff(passed, axis=0).ravel()
    some = inside.nonzero()[0]
    many = inside[some]
    place = np.repeat(some, many)
    # Those of a step are consecutive.
    columns = np.repeat(passed[:-1].ravel()[some] - np.cumsum(many) + many, many) + np.arange(len(place))
    steps, rows = np.divmod(place, plan.batch)
    return Places(steps, rows, columns), passed[-1]


class Readings(NamedTuple):
    """How outputs come about.

    States and slopes are seen as rows, see `Plan.rows`, `batch` of them for every step: an output is
    `states[sources] + Σ_j weights[:, j] slopes[stages[:, j]]`.

    Attributes:
        sources, stages: which rows each output comes from, shapes (m,) and (m, stages).
        targets: which rows of the solution they are, shape (m,).
        theta: where in their steps they lie, float64, shape (m,).
        lengths: of these steps, zero where an output is the state at the end of one, float64, shape (m, 1).
        weights: of the slopes, shape (m, stages).
    """

    sources: Tensor
    stages: Tensor
    targets: Tensor
    theta: Tensor
    lengths: Tensor
    weights: Tensor

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


def readings(plan: Plan, places: Places, log: Array, ends: Array, like: Tensor) -> Readings:
    """How the states at times inside recorded steps come about.

    Args:
        plan: the solve.
        places: where they lie.
        log: of the steps, see `run_until`.
        ends: where these end.
        like: a state.
    """
    (step, row, column), batch, number = places, plan.batch, plan.method.tableau.stages
    place = step * batch + row
    times = plan.times.reshape(batch, -1)[row, column]
    starts, lengths, ends = (x.reshape(-1)[place] for x in (log[:, 0], log[:, 1], ends))
    # An output at the end of a step is the state there, unless its time is moved.
    exact = (ends == times) & (not plan.moving)

    def index(x: Array) -> Tensor:
        return torch.from_numpy(x).to(like.device)

    theta = torch.from_numpy(np.where(exact, 0.0, (times - starts) / lengths))
    h = torch.from_numpy(np.where(exact, 0.0, lengths))[:, None]
    return Readings(
        sources=index(place + batch * exact),
        stages=index((place + (number - 1) * batch * step)[:, None] + batch * np.arange(number)),
        targets=index(column * batch + row),
        theta=theta,
        lengths=h,
        weights=(h * plan.method.dense_weights(theta)).to(like),
    )


def outputs_in(plan: Plan, read: Readings, states: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor | None]:
    """What the states there are, as rows, and, where they are wanted, their derivatives with respect to the times.

    Args:
        plan: the solve.
        read: how they come about.
        states, slopes: recorded by `run_until`.
    """

    def combined(weights: Tensor) -> Tensor:
        # One kernel that gathers rows and adds them up.
        return embedding_bag(read.stages, plan.rows(slopes), per_sample_weights=weights.to(states), mode="sum")

    values = plan.rows(states)[read.sources] + combined(read.weights)
    if not plan.moving:
        return values, None

    def weights_at(theta: Tensor) -> Tensor:
        return read.lengths * plan.method.dense_weights(theta)

    _, derivative = _jvp(weights_at, (read.theta,), (1 / read.lengths[:, 0],))
    return values, combined(derivative)
