"""One formula for Python floats, NumPy arrays and tensors.

The rules of the step control are written once, with operators and the few functions that `torch` and `numpy` share.
Floats have the same functions in `Floats`: on them the loop of a joint solve runs, where an array or a tensor for
every number would cost more than the decision itself.
"""

import math
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Array", "Floats", "Number", "namespace"]

Array = NDArray[Any]

Number = TypeVar("Number", float, Array, Tensor)


class Floats:
    """What the rules take from `numpy` or `torch`, for Python floats."""

    isfinite = math.isfinite
    minimum, maximum = min, max  # of `(nan, x)` both are NaN

    @staticmethod
    def where(condition: bool, x: float, y: float) -> float:
        """`x` where the condition holds, else `y`."""
        return x if condition else y


def namespace(x: object) -> Any:
    """Where the functions for numbers like this one are found."""
    if isinstance(x, float):
        return Floats
    return torch if isinstance(x, Tensor) else np
