"""One gradient of a problem, and the tight solve that stands for the exact one."""

from typing import Any

import torch
from torch import Tensor

from neural_ode import solve
from neural_ode.solution import State, Statistics
from reproduction.experiments.adjoint.trials import Trial

__all__ = ["MAX_STEPS", "REFERENCE", "last_state", "loss_gradient", "reference_gradient"]

MAX_STEPS = 1000
"""After so many steps a solve is given up."""

REFERENCE = 1e-13
"""Tolerance of the solves, by `dopri8`, that stand for the exact result."""


def loss_gradient(trial: Trial, **how: Any) -> tuple[Tensor, Statistics]:
    """Gradient of the loss with respect to `y0` and the parameters, in one vector, and the statistics.

    Args:
        trial: the problem.
        **how: keyword arguments of `neural_ode.solve`.

    Raises:
        SolverError: a solve, forwards or backwards, could not be finished.
    """
    parts = tuple(part.clone().requires_grad_() for part in trial.parts())
    y0 = parts if isinstance(trial.y0, tuple) else parts[0]
    solution = solve(trial.f, y0, [trial.start, trial.end], **how)
    found = torch.autograd.grad(trial.loss(last_state(solution.y)), [*parts, *trial.f.parameters()])
    return torch.cat([g.reshape(-1) for g in found]), solution.stats


def last_state(y: State) -> State:
    """The state at the last of the times, without their dimension."""
    return tuple(part[-1] for part in y) if isinstance(y, tuple) else y[-1]


def reference_gradient(trial: Trial) -> Tensor:
    """What `loss_gradient` finds with the tightest solve, by backpropagation through its steps.

    Raises:
        SolverError: it could not be finished.
    """
    return loss_gradient(trial, method="dopri8", rtol=REFERENCE, atol=REFERENCE, gradient="direct")[0]
