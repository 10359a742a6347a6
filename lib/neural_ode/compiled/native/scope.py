"""Memory, and statements put together in loops.

Statements on single entries of the same shape share a loop, in which their results are local variables; only what
is read elsewhere is stored in arrays. Everything else (sums, products, rows found by their number, the loops of a
graph) is a block of its own.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from neural_ode.compiled.native.formulas import TYPES

__all__ = ["Buffer", "Scope", "Unsupported", "View", "loops", "merged"]

_UNROLLED = 8
"""Entries up to which a loop is written out, so that the compiler takes the entries of arrays for variables."""


class Unsupported(Exception):  # noqa: N818 (no error: PyTorch's compiler takes the graph)
    """The graph cannot be translated."""


@dataclass(eq=False)
class Buffer:
    """Memory of the program.

    Attributes:
        name: in C++.
        dtype: of its entries.
        numel: how many there are.
        mutable: whether it is written in place, as room for records is.
        version: how often that was done.
        stored: whether it is needed as an array.
        source: the expression that it is found by, for inputs and outputs; otherwise it is an array.
        level: how many graphs are around the one that it belongs to, and that one.
    """

    name: str
    dtype: torch.dtype
    numel: int
    mutable: bool = False
    version: int = 0
    stored: bool = False
    source: str = ""
    level: int = 0

    @property
    def kind(self) -> str:
        """The type of its entries in C++."""
        return TYPES[self.dtype]


class View(NamedTuple):
    """A tensor: entries of a buffer.

    Attributes:
        buffer: where they lie.
        size, stride, offset: as those of a tensor, counted in entries from the start of the buffer.
        version: of the buffer when the tensor was made: with another one its entries are overwritten.
    """

    buffer: Buffer
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    version: int

    @classmethod
    def whole(cls, buffer: Buffer, size: Sequence[int]) -> "View":
        """All of a buffer."""
        return cls(buffer, tuple(size), contiguous(size), 0, buffer.version)

    @property
    def numel(self) -> int:
        """How many entries it has."""
        return math.prod(self.size)

    @property
    def dense(self) -> bool:
        """Whether it is all of its buffer, in order."""
        pairs = zip(self.size, self.stride, contiguous(self.size), strict=True)
        return self.offset == 0 and self.numel == self.buffer.numel and all(n == 1 or a == b for n, a, b in pairs)

    def like(self) -> Tensor:
        """A tensor without memory that lies in it as this one does, up to the offset."""
        return torch.empty_strided(self.size, self.stride, dtype=self.buffer.dtype, device="meta")

    def at(self, indices: Sequence[str | int]) -> str:
        """An entry."""
        place = self.offset
        terms = []
        for index, stride in zip(indices, self.stride, strict=True):
            if isinstance(index, int):
                place += index * stride
            elif stride:
                terms.append(index if stride == 1 else f"{index} * {stride}")
        if place or not terms:
            terms.append(str(place))
        return f"{self.buffer.name}[{' + '.join(terms)}]"

    def taken(self, dims: Sequence[int]) -> "View":
        """With some of its dimensions."""
        return self._replace(size=tuple(self.size[d] for d in dims), stride=tuple(self.stride[d] for d in dims))

    def spread(self, size: Sequence[int]) -> "View":
        """Broadcast to a shape, whose dimensions of one entry are left out."""
        stride = (0,) * (len(size) - len(self.size)) + tuple(
            0 if n == 1 else s for n, s in zip(self.size, self.stride, strict=True)
        )
        kept = [i for i, n in enumerate(size) if n != 1]
        return self._replace(size=tuple(size[i] for i in kept), stride=tuple(stride[i] for i in kept))


def contiguous(size: Sequence[int]) -> tuple[int, ...]:
    """The strides of a tensor in order."""
    return tuple(math.prod(size[i + 1 :]) for i in range(len(size)))


def loops(size: Sequence[int], body: Callable[[Sequence[str | int]], Sequence[str]], index: str = "i") -> list[str]:
    """Lines that run through all indices; a few are written out.

    Args:
        size: of the indices.
        body: the lines for an index.
        index: how its variables begin.
    """
    if math.prod(size) <= _UNROLLED:
        places = itertools.product(*map(range, size))
        return [line for place in places for line in ("{", *body(place), "}")]
    names = [0 if n == 1 else f"{index}{k}" for k, n in enumerate(size)]
    heads = [f"for (int64_t {x} = 0; {x} < {n}; ++{x}) {{" for x, n in zip(names, size, strict=True) if n > 1]
    return [*heads, *body(names), "}" * len(heads)]


Formula = Callable[..., str]
"""From operands to an expression."""


@dataclass
class _Loop:
    """Statements on single entries of one shape."""

    size: tuple[int, ...]
    statements: list[tuple[Buffer, Sequence[View], Formula]] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        own = {out for out, _, _ in self.statements}
        outs = {out: View.whole(out, self.size) for out in own}
        outside = [view for _, views, _ in self.statements for view in views if view.buffer not in own]
        size, keep = merged(self.size, [*outside, *(view for out, view in outs.items() if out.stored)])

        def body(place: Sequence[str | int]) -> list[str]:
            lines = []
            for out, views, formula in self.statements:
                operands = [f"v{v.buffer.name}" if v.buffer in own else v.taken(keep).at(place) for v in views]
                lines.append(f"const {out.kind} v{out.name} = {formula(*operands)};")
                if out.stored:
                    lines.append(f"{outs[out].taken(keep).at(place)} = v{out.name};")
            return lines

        yield from loops(size, body)


def merged(size: Sequence[int], views: Sequence[View]) -> tuple[list[int], list[int]]:
    """A shape with fewer dimensions that all views can be run through in, and which of the strides it takes."""
    sizes: list[int] = []
    keep: list[int] = []
    for k in reversed(range(len(size))):
        if keep and all(v.stride[k] == sizes[0] * v.stride[keep[0]] for v in views):
            sizes[0] *= size[k]
        else:
            sizes.insert(0, size[k])
            keep.insert(0, k)
    return sizes, keep


class Scope:
    """Statements in order, in which later ones may find a place among earlier ones of the same shape."""

    def __init__(self) -> None:
        self._groups: list[_Loop | Callable[[], Iterable[str]]] = []
        self._written: dict[Buffer, int] = {}
        self._first = 0

    def close(self) -> None:
        """Let nothing that follows come before what is there."""
        self._first = len(self._groups)

    def compute(self, out: Buffer, size: Sequence[int], views: Sequence[View], formula: Formula) -> None:
        """Fill a buffer of a shape by a formula whose operands are the entries of views."""
        shape = tuple(n for n in size if n != 1)
        spread = [self._read(view).spread(size) for view in views]
        least = self._first
        for view in spread:
            at = self._written.get(view.buffer, -1)
            least = max(least, at if self._is_loop(at, shape) and view.dense else at + 1)
        # The last place that fits is the nearest to where the result is used.
        candidates = range(len(self._groups) - 1, least - 1, -1)
        place = next((i for i in candidates if self._is_loop(i, shape)), len(self._groups))
        if place == len(self._groups):
            self._groups.append(_Loop(shape))
        for view in spread:
            view.buffer.stored |= self._written.get(view.buffer, -1) != place
        group = self._groups[place]
        assert isinstance(group, _Loop)
        group.statements.append((out, spread, formula))
        self._written[out] = place

    def block(self, lines: Callable[[], Iterable[str]], reads: Sequence[View], writes: Sequence[Buffer]) -> None:
        """Add lines that read and write arrays; they are made once all statements are there."""
        for view in reads:
            self._read(view).buffer.stored = True
        for buffer in writes:
            buffer.stored = True
            self._written[buffer] = len(self._groups)
        self._groups.append(lines)

    def lines(self) -> Iterator[str]:
        """The statements, once all are there."""
        for group in self._groups:
            yield from group.lines() if isinstance(group, _Loop) else group()

    def _is_loop(self, at: int, shape: tuple[int, ...]) -> bool:
        group = self._groups[at] if at >= 0 else None
        return isinstance(group, _Loop) and group.size == shape

    def _read(self, view: View) -> View:
        if view.version != view.buffer.version:
            raise Unsupported("a tensor is read after it was written in place")
        return view
