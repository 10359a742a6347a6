"""Accepted steps made again, as functions of tensors.

A loop decides by numbers how long steps are, and makes them with tensors. Once the numbers are known (`Made`), a
step is a function of the state it starts from, the output times and the parameters, which can be computed again and
differentiated by itself.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol, TypeVar

from torch import Tensor
from torch.utils import _pytree as pytree

from neural_ode.methods.base import Carry
from neural_ode.problem.state import Dynamics
from neural_ode.solution import Statistics

__all__ = ["Again", "Replay", "frame_of", "take_tensors", "tensors_of"]


class Again(NamedTuple):
    """What a step gives when it is made again.

    Attributes:
        y: the state after it.
        carry: what the next step starts from besides; `None` if from the state alone.
        where: index of the outputs that lie in the step, among all outputs.
        outputs: the states there, shape (m, *state); `None` where there are none.
    """

    y: Tensor
    carry: Carry
    where: Any
    outputs: Tensor | None


Recorded = TypeVar("Recorded", contravariant=True)
"""A step in numbers, as a loop records it: `Made`, or `Sweep` where rows have steps of their own."""


class Replay(Protocol[Recorded]):
    """A loop that makes its steps again.

    Attributes:
        stats: counts what that costs.
    """

    stats: Statistics

    def again(self, made: Recorded, y: Tensor, carry: Carry, then: Recorded | None, collect: bool = True) -> Again:
        """Make an accepted step again.

        Args:
            made: the step.
            y: the state that it starts from.
            carry: what it starts from besides; `None` if from the state alone.
            then: the step after it, `None` after the last.
            collect: whether to find the outputs in it.
        """

    def beginning(self, made: Recorded) -> tuple[Dynamics, Tensor]:
        """The dynamics as an accepted step sees them, and the time where it starts."""


def frame_of(carry: Carry) -> Carry:
    """A carry with `None` in place of its tensors."""
    frame: Carry = pytree.tree_map(lambda x: None if isinstance(x, Tensor) else x, carry)
    return frame


def tensors_of(carry: Carry) -> list[Tensor]:
    """The tensors of a carry, always in the same order."""
    return [x for x in pytree.tree_leaves(carry) if isinstance(x, Tensor)]


def take_tensors(tree: Any) -> tuple[list[Tensor], Callable[[Iterable[Tensor]], Any]]:
    """The tensors in nested tuples and lists, for autograd to keep, and a function that puts them back."""
    leaves, layout = pytree.tree_flatten(tree)
    tensors = [x for x in leaves if isinstance(x, Tensor)]
    are_tensors = [isinstance(x, Tensor) for x in leaves]
    numbers = [None if is_tensor else x for x, is_tensor in zip(leaves, are_tensors, strict=True)]
    del leaves  # the function below would hold them

    def put_back(tensors: Iterable[Tensor]) -> Any:
        kept = iter(tensors)
        pairs = zip(numbers, are_tensors, strict=True)
        return pytree.tree_unflatten([next(kept) if is_tensor else x for x, is_tensor in pairs], layout)

    return tensors, put_back
