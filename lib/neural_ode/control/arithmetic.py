"""One formula for Python floats, NumPy arrays and tensors.

The rules of the step control are written once, with operators and the few functions that `torch` and `numpy` share.
Floats have the same functions in `FLOATS`: on them the loop of a joint solve runs, where an array or a tensor for
every number would cost more than the decision itself.
"""

import math
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["FLOATS", "Array", "Number", "namespace"]

Array = NDArray[Any]

Number = TypeVar("Number", float, Array, Tensor)


def _where(condition: bool, x: float, y: float) -> float:
    return x if condition else y


# Of `(nan, x)` the built-in minimum and maximum are NaN.
FLOATS: Any = SimpleNamespace(isfinite=math.isfinite, minimum=min, maximum=max, where=_where)
"""What the rules take from `numpy` or `torch`, for Python floats."""


def namespace(x: object) -> Any:
    """Where the functions for numbers like this one are found."""
    if isinstance(x, float):
        return FLOATS
    if isinstance(x, Tensor):
        return torch
    return np if isinstance(x, np.ndarray) else FLOATS
