"""What is to be solved and differentiated."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from neural_ode.problem.event import Event
from neural_ode.problem.state import Dynamics, State

__all__ = ["InitialValueProblem"]


@dataclass(frozen=True)
class InitialValueProblem:
    """An initial value problem on one tensor, with what its gradients are wanted for.

    Attributes:
        f: the dynamics.
        y0: the initial state.
        t: the output times, float64, shape (n,).
        params: the tensors besides `y0` and `t` that get gradients, for choices that have to know them.
        restore: turns packed states, shape (*leading, *y0.shape), into the user's structure.
        event: ends the solve where it crosses zero, or `None`.
        compile: whether the solve is to be compiled.
        batched: whether every row of `y0` has steps of its own.
    """

    f: Dynamics
    y0: Tensor
    t: Tensor
    params: tuple[Tensor, ...]
    restore: Callable[[Tensor], State]
    event: Event | None = None
    compile: bool = False
    batched: bool = False
