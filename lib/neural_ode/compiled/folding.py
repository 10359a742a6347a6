"""Many small steps that are no solve, as one compiled graph."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from neural_ode.compiled.compiler import CannotCompile, call, while_loop

__all__ = ["fold"]

FoldStep: TypeAlias = Callable[..., tuple[Tensor, ...]]


def fold(
    step: FoldStep,
    state: tuple[Tensor, ...],
    rows: Sequence[Tensor],
    fixed: tuple[Any, ...] = (),
    key: tuple[Hashable, ...] = (),
) -> tuple[Tensor, ...]:
    """The state after `state = step(*fixed, state, *row)` for one row after the other, compiled as one graph.

    Its size does not depend on the number of rows. Where it cannot be compiled, the loop runs in Python.

    Args:
        step: a function on tensors that gives the next state in the shapes of the state. Is not differentiated.
        state: where to start.
        rows: tensors of shape (steps, *row).
        fixed: arguments that are the same in every step.
        key: what the graph depends on besides `step`, and dtype, device and shape of the first of `rows`.
    """
    try:
        made: tuple[Tensor, ...] = call(_fold, (step, *key), rows[0], step, fixed, state, *rows)
    except CannotCompile:
        for row in zip(*rows, strict=True):
            state = step(*fixed, state, *row)
        return state
    return made


def _fold(step: FoldStep, fixed: tuple[Any, ...], state: tuple[Tensor, ...], *rows: Tensor) -> tuple[Tensor, ...]:
    """Only run by `torch.compile`."""

    def goes_on(done: Tensor, *state: Tensor) -> Tensor:
        return done < len(rows[0])

    def following(done: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        row = done.reshape(1)
        given = (x.index_select(0, row)[0] for x in rows)
        return (done + 1, *step(*fixed, state, *given))

    made: tuple[Tensor, ...] = while_loop(goes_on, following, (torch.zeros((), dtype=torch.int64), *state))
    return made[1:]
