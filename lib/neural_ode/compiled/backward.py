"""The gradient of a recorded solve as a graph: back through its steps, each made again.

Griewank & Walther (2008), *Evaluating Derivatives*, chapter 12, with a checkpoint at every step. These functions
are only run by `torch.compile`.
"""

from typing import Any

import torch
from torch import Tensor

from neural_ode.compiled.compiler import while_loop
from neural_ode.compiled.dynamics import LiftedDynamics, with_parameters
from neural_ode.methods import ExplicitRungeKutta
from neural_ode.problem.state import column

__all__ = ["march_back"]

_vjp: Any = torch.func.vjp  # its stub does not know how many values it returns


def _pull_step(
    dynamics: LiftedDynamics,
    method: ExplicitRungeKutta,
    moving: bool,
    log: Tensor,
    y: Tensor,
    grad_y1: Tensor,
    grad_slopes: Tensor,
    params: tuple[Tensor, ...],
) -> tuple[Tensor, ...]:
    """One step backwards: gradients of `y`, of the time if it is `moving`, and of `params`."""
    now, h = log[0], column(log[1].to(y.dtype), y)

    def advance(y: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        time, params = (rest[0], rest[1:]) if moving else (now, rest)
        step = method.step(with_parameters(dynamics, params), time, y, h, None)
        return step.y1, torch.stack(step.dense)

    _, pull = _vjp(advance, y, *((now,) * moving), *params)
    gradients: tuple[Tensor, ...] = pull((grad_y1, grad_slopes))
    return gradients


def march_back(
    dynamics: LiftedDynamics,
    method: ExplicitRungeKutta,
    moving: bool,
    count: Tensor,
    log: Tensor,
    states: Tensor,
    grad_states: Tensor,
    grad_slopes: Tensor,
    gradients: tuple[Tensor, ...],
    params: tuple[Tensor, ...],
) -> tuple[Tensor, ...]:
    """Back through recorded steps.

    A row of a batch that a step did not advance has the length zero there, so that its gradient passes unchanged.

    Args:
        dynamics, method: what made the steps.
        moving: whether the gradient of the times is wanted.
        count: how many steps there are, shape ().
        log, states: what `run_until` recorded.
        grad_states, grad_slopes: gradients of what was read off the recorded states and slopes.
        gradients: of the state behind the last step, then, so far, of the time and the parameters.
        params: the parameters.

    Returns:
        The gradients at the first step.
    """

    def goes_on(left: Tensor, *gradients: Tensor) -> Tensor:
        return left > 0

    def pull(left: Tensor, grad_y: Tensor, *summed: Tensor) -> tuple[Tensor, ...]:
        row = (left - 1).reshape(1)
        entry, y, grad_state, grad_slope = (
            x.index_select(0, row)[0] for x in (log, states, grad_states, grad_slopes)
        )
        own, *found = _pull_step(dynamics, method, moving, entry, y, grad_y, grad_slope, params)
        return (left - 1, own + grad_state, *(x + y for x, y in zip(summed, found, strict=True)))

    _, *found = while_loop(goes_on, pull, (count, *(x.clone() for x in gradients)))
    return tuple(found)
