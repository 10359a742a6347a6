"""Derivatives along a direction, by forward mode."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["jvp"]


def jvp(
    function: Callable[..., Tensor], primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """The value of a function at `primals` and its Jacobian-vector product with `tangents`."""
    pushed: Any = torch.func.jvp  # its stub does not know how many values it returns
    # A state may be a view, and views want tangents laid out as they are.
    primals, tangents = (tuple(x.clone() for x in given) for given in (primals, tangents))
    found: tuple[Tensor, Tensor]
    if torch.compiler.is_compiling():  # which takes no context manager for warnings
        found = pushed(function, primals, tangents)
        return found
    with warnings.catch_warnings():  # PyTorch's own, when forward mode is first used
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
        found = pushed(function, primals, tangents)
    return found
