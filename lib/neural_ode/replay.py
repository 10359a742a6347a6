"""Accepted steps made again, as functions of tensors.

A loop decides by numbers how long steps are, and makes them with tensors. Once the numbers are known (`Made`), a
step is a function of the state it starts from, the output times and the parameters, which can be computed again and
differentiated by itself.
"""

from typing import Any, NamedTuple, Protocol

from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = ["Again", "Replay", "frame_of", "tensors_of"]


class Again(NamedTuple):
    """What a step gives when it is made again.

    Attributes:
        y: the state after it.
        carry: what the next step starts from besides; `None` if from the state alone.
        where: index of the outputs that lie in the step, among all outputs.
        outputs: the states there, shape (m, *state); `None` where there are none.
    """

    y: Tensor
    carry: Any
    where: Any
    outputs: Tensor | None


class Replay(Protocol):
    """A loop that makes its steps again."""

    def again(self, made: Any, y: Tensor, carry: Any, then: Any, collect: bool = True) -> Again:
        """Make an accepted step again.

        Args:
            made: the step.
            y: the state that it starts from.
            carry: what it starts from besides; `None` if from the state alone.
            then: the step after it, `None` after the last.
            collect: whether to find the outputs in it.
        """


def frame_of(carry: Any) -> Any:
    """A carry with `None` in place of its tensors."""
    return pytree.tree_map(lambda x: None if isinstance(x, Tensor) else x, carry)


def tensors_of(carry: Any) -> list[Tensor]:
    """The tensors of a carry, always in the same order."""
    return [x for x in pytree.tree_leaves(carry) if isinstance(x, Tensor)]
