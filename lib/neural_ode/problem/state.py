"""The state of a solve: one tensor, or a tuple of tensors packed into one.

The solvers see a single tensor. A tuple is flattened and concatenated; `TupleState` keeps the shapes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from neural_ode.problem.norms import max_rms_norm

__all__ = ["Dynamics", "State", "TupleState", "column", "real_dtype"]

State: TypeAlias = Tensor | tuple[Tensor, ...]
"""What the user integrates."""

Dynamics: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""`f(t, y)` on one tensor: `t` has shape (), the result has the shape of `y`."""


_REAL = {torch.complex32: torch.float16, torch.complex64: torch.float32, torch.complex128: torch.float64}


def real_dtype(y: Tensor) -> torch.dtype:
    """The dtype of times, tolerances and sizes that go with a state."""
    return _REAL.get(y.dtype, y.dtype)


def column(x: Tensor, y: Tensor) -> Tensor:
    """A number for each row of `y`, shaped to be multiplied with it; a single one as it is."""
    return x if x.dim() == 0 else x.reshape(-1, *[1] * (y.dim() - 1))


@dataclass(frozen=True)
class TupleState:
    """Packs tuples of tensors of the given shapes into vectors, and back.

    Attributes:
        shapes: of the parts, without the leading dimensions.
        leading: how many leading dimensions the parts share and keep when they are packed.
        sizes: how many numbers the shapes have.
    """

    shapes: tuple[torch.Size, ...]
    leading: int = 0
    sizes: list[int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", [shape.numel() for shape in self.shapes])

    def pack(self, parts: Sequence[Tensor]) -> Tensor:
        """Tensors of `shapes` to one whose last dimension is packed, in a dtype that can represent all of them."""
        flat = [x.reshape(*x.shape[: self.leading], n) for x, n in zip(parts, self.sizes, strict=True)]
        return torch.cat(flat, dim=-1)

    def unpack(self, packed: Tensor) -> tuple[Tensor, ...]:
        """A tensor whose last dimension is packed, to tensors of shape (*leading, *shape)."""
        leading = packed.shape[:-1]
        parts = torch.split(packed, self.sizes, dim=-1)
        return tuple([part.reshape(leading + shape) for part, shape in zip(parts, self.shapes, strict=True)])

    def norm(self, x: Tensor) -> Tensor:
        """The largest root mean square among the parts of a packed vector."""
        return max_rms_norm(list(torch.split(x, self.sizes)))
