"""The outputs of a compiled solve: in which of the recorded steps they lie, and what they are there."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from neural_ode.compiled.plan import Array, Plan, Recorded

__all__ = ["Steps", "located", "outputs_in"]

_jvp: Any = torch.func.jvp  # its stub does not know how many values it returns

Steps = tuple[Array, Array, Array]
"""Where steps start, how long they are and where they end, shape (count,) or (count, batch)."""


def located(plan: Plan, done: Array, ends: Array) -> tuple[tuple[Array, Array, Array], Array]:
    """Which outputs lie in steps that were just made.

    Args:
        plan: the solve.
        done: how many outputs of each row lie before them, shape (batch,).
        ends: where the steps end, shape (count,) or (count, batch).

    Returns:
        For each output the step, the row of the batch that it lies in (0 if all have the same steps), and which
        output of that row it is; and how many outputs of each row have been passed then.
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
    return (steps, rows, columns), passed[-1]


def outputs_in(
    plan: Plan, places: tuple[Array, Array, Array], steps: Steps, recorded: tuple[Tensor, Tensor, Tensor]
) -> tuple[Recorded, Tensor]:
    """How the states at times inside recorded steps come about, and what they are.

    Args:
        plan: the solve.
        places: where they lie, see `located`.
        steps: the steps.
        recorded: log, states and slopes of these, see `run_until`.
    """
    (step, row, column), (log, states, slopes) = places, recorded
    batch, number = plan.batch, plan.method.tableau.stages
    place = step * batch + row
    times = plan.times.reshape(batch, -1)[row, column]
    starts, lengths, ends = (x.reshape(-1)[place] for x in steps)
    # An output at the end of a step is the state there, unless its time is moved.
    exact = (ends == times) & (not plan.moving)
    theta = torch.from_numpy(np.where(exact, 0.0, (times - starts) / lengths))
    h = torch.from_numpy(np.where(exact, 0.0, lengths))[:, None]

    def weights_at(theta: Tensor) -> Tensor:
        return h * plan.method.dense_weights(theta)

    def index(x: Array) -> Tensor:
        return torch.from_numpy(x).to(states.device)

    def combined(weights: Tensor) -> Tensor:
        # One kernel that gathers rows and adds them up.
        return embedding_bag(stages, plan.rows(slopes), per_sample_weights=weights.to(states), mode="sum")

    stages = index((place + (number - 1) * batch * step)[:, None] + batch * np.arange(number))
    sources = index(place + batch * exact)
    weights = weights_at(theta).to(states)
    values = plan.rows(states)[sources] + combined(weights)
    rates = None
    if plan.moving:
        _, derivative = _jvp(weights_at, (theta,), (1 / h[:, 0],))
        rates = combined(derivative)
    targets = index(column * batch + row)
    return Recorded(len(log), log, states, sources, stages, targets, weights, rates), values
