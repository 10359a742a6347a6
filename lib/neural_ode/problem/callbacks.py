"""Functions of the user that a solve calls as it goes."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Callbacks"]

Callback = Callable[[Tensor, Tensor, Tensor], object]


@dataclass(frozen=True)
class Callbacks:
    """Functions that are called with the time, the state and the length of a step, before it is made or after.

    The time has shape () and the length, which is positive in reverse time too, also.

    Attributes:
        step: called before every step that is tried.
        accept: called after a step that passed the error control.
        reject: called after a step that did not.
    """

    step: Callback | None = None
    accept: Callback | None = None
    reject: Callback | None = None
