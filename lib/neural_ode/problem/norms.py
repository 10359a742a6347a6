"""Norms of the error control."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = ["Norm", "max_rms_norm", "rms_norm"]

Norm: TypeAlias = Callable[[Tensor], Tensor]
"""Maps a tensor of scaled errors to a tensor of shape ()."""


def rms_norm(x: Tensor) -> Tensor:
    """Root mean square `(Σ |x_i|² / n)^½`; Hairer, Nørsett & Wanner I, equation II.4.11."""
    return torch.div(torch.linalg.vector_norm(x), max(x.numel(), 1) ** 0.5)


def max_rms_norm(parts: list[Tensor]) -> Tensor:
    """The largest root mean square among several tensors: no part hides behind a bigger one."""
    return torch.stack([rms_norm(part) for part in parts]).amax()
