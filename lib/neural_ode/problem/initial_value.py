"""What is to be solved and differentiated."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from neural_ode.errors import InvalidArgumentError, finite_number
from neural_ode.problem.event import Event
from neural_ode.problem.state import Dynamics, State

__all__ = ["InitialValueProblem", "output_times"]


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
        dense: whether every step is to be kept.
    """

    f: Dynamics
    y0: Tensor
    t: Tensor
    params: tuple[Tensor, ...]
    restore: Callable[[Tensor], State]
    event: Event | None = None
    compile: bool = False
    batched: bool = False
    dense: bool = False


def output_times(t: Tensor | Iterable[float], with_event: bool, batch: Tensor | None) -> Tensor:
    """The output times as float64 on the CPU: steps are counted in float64 whatever the state is.

    Args:
        t: what the user gave.
        with_event: whether the last may be infinite.
        batch: states of which each may have times of its own.

    Returns:
        Tensor of shape (n,), or (batch, n) where it was given so; in the graph of `t`.

    Raises:
        InvalidArgumentError: they cannot be used as such.
    """
    if isinstance(t, str | bytes) or not isinstance(t, Iterable):
        raise InvalidArgumentError(f"t must be a tensor or a sequence of times, got {type(t).__name__}")
    if not isinstance(t, Tensor):
        t = torch.tensor([finite_number("t", x) if not with_event else float(x) for x in t], dtype=torch.float64)
    if not t.is_floating_point():
        raise InvalidArgumentError(f"t must be of a floating-point dtype, got {t.dtype}: use t.double()")
    if batch is not None and t.dim() == 2:
        if len(t) != len(batch):
            raise InvalidArgumentError(f"t has {len(t)} rows of times for a batch of {len(batch)}")
    elif t.dim() != 1:
        raise InvalidArgumentError(f"t must have one dimension, got shape {tuple(t.shape)}")
    if t.shape[-1] == 0:
        raise InvalidArgumentError("t must hold at least one time, got none")
    times = t.to("cpu", torch.float64)
    _check_order(times.detach(), t, with_event)
    return times


def _check_order(values: Tensor, given: Tensor, with_event: bool) -> None:
    differences = values.diff()
    if differences.numel():
        least, most = (x.item() for x in differences.aminmax())
        if 0 < least <= most < math.inf or -math.inf < least <= most < 0:
            return
    finite = torch.isfinite(values)
    if with_event:
        finite[-1] |= torch.isinf(values[-1])
    if not finite.all():
        raise InvalidArgumentError(f"t must be finite, got {given.tolist()}")
    if not ((differences > 0).all() or (differences < 0).all()):
        raise InvalidArgumentError(f"t must be strictly increasing or strictly decreasing, got {given.tolist()}")
