"""What PyTorch's operations are as statements."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from neural_ode.compiled.native.formulas import (
    ARITHMETIC,
    COMPARISONS,
    FLOATING,
    SLOW,
    TYPES,
    cast,
    literal,
    power,
)
from neural_ode.compiled.native.scope import Buffer, Scope, Unsupported, View, loops, merged
from neural_ode.compiled.native.sums import product, reduction

__all__ = ["Operations", "in_order", "whole"]

_MOST = 2**17
"""Entries of a value up to which a graph is translated. What is only handed in, out, or written row by row may be
larger."""

_MOST_SLOW = 2**10
"""Entries of what a function of the C library gives from which PyTorch's compiler is faster."""

_MOST_PRODUCTS = 2**18
"""Multiplications of a matrix product from which PyTorch's compiler makes faster programs around its kernel."""


class Operations:
    """Operations by the names that they have in PyTorch, such as `_aten_cat` for `aten::cat`.

    Their arguments are tensors as `View`s; each adds statements and returns what it gives.
    """

    def __init__(self) -> None:
        self._buffers: list[Buffer] = []
        self._scope = Scope()
        self._in_place: list[set[Buffer]] = [set()]
        self._makers: dict[Buffer, Node] = {}

    def _buffer(self, dtype: torch.dtype, numel: int) -> Buffer:
        if dtype not in TYPES:
            raise Unsupported(f"a tensor is of dtype {dtype}")
        if numel == 0:
            raise Unsupported("a tensor is empty")
        self._buffers.append(Buffer(f"b{len(self._buffers)}", dtype, numel, level=len(self._in_place)))
        return self._buffers[-1]

    def _new(self, size: Sequence[int], dtype: torch.dtype) -> View:
        if math.prod(size) > _MOST:
            raise Unsupported("a tensor is large")
        return View.whole(self._buffer(dtype, math.prod(size)), size)

    def _note(self, buffer: Buffer) -> None:
        """Remember what is written in place though it came from outside: it has to be handed out, too."""
        if buffer.level < len(self._in_place):
            self._in_place[-1].add(buffer)

    def _view(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What only looks at entries of a tensor: found on one without memory."""
        x: View = args[0]
        like = x.like()
        try:
            found = target(like, *args[1:], **kwargs)
        except (RuntimeError, ValueError):  # its entries are not in the order of the new shape
            x = self._copied(x)
            like = x.like()
            found = target(like, *args[1:], **kwargs)

        def seen(y: Tensor) -> View:
            apart = y.untyped_storage()._cdata != like.untyped_storage()._cdata
            if apart or y.dtype != like.dtype or y.is_neg() or y.is_conj():
                raise Unsupported(str(target))
            return x._replace(size=tuple(y.shape), stride=y.stride(), offset=x.offset + int(y.storage_offset()))

        return seen(found) if isinstance(found, Tensor) else [seen(y) for y in found]

    def _entries(self, node: Node, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> View:
        """An operation on single entries."""
        dtype, operands = node.meta["val"].dtype, _operands(node.target, args, kwargs)
        if not dtype.is_floating_point and name in FLOATING:
            raise Unsupported(f"{name} of whole numbers")
        if name in SLOW and math.prod(_shape(node)) > _MOST_SLOW:
            raise Unsupported(f"{name} of many numbers")
        formula = (ARITHMETIC if name in ARITHMETIC else COMPARISONS)[name]
        common = dtype if name in ARITHMETIC else _common(operands)
        types = [torch.bool if name == "aten::where" and i == 0 else common for i in range(len(operands))]
        if name == "aten::pow" and not isinstance(operands[1], View):
            formula = partial(power, exponent=operands.pop(), dtype=common)
            types.pop()

        def written(*names: str) -> str:
            left = iter(names)
            texts = [
                cast(next(left), x.buffer.dtype, to) if isinstance(x, View) else x if x is None else literal(x, to)
                for x, to in zip(operands, types, strict=True)
            ]
            return formula(TYPES[common], *texts)

        return self._computed(_shape(node), dtype, [x for x in operands if isinstance(x, View)], written)

    def _computed(
        self, size: Sequence[int], dtype: torch.dtype, views: Sequence[View], formula: Callable[..., str]
    ) -> View:
        out = self._new(size, dtype)
        self._scope.compute(out.buffer, size, views, formula)
        return out

    def _copied(self, x: View, dtype: torch.dtype | None = None) -> View:
        """The same in memory of its own."""
        out = View.whole(self._buffer(dtype or x.buffer.dtype, x.numel), x.size)
        self._scope.compute(out.buffer, x.size, [x], lambda a: cast(a, x.buffer.dtype, out.buffer.dtype))
        return out

    def _own(self, node: Node, x: View) -> View:
        """The first argument of a node to write into: itself, where nothing else will look at it."""
        made = node.args[0]
        if isinstance(made, Node) and len(made.users) == 1 and self._makers.get(x.buffer) is made and x.dense:
            self._makers[x.buffer] = node
            return x
        out = self._copied(x)
        self._makers[out.buffer] = node
        return out

    def _assign(self, target: View, source: View) -> None:
        """Write a tensor into a view."""
        if target.size != source.size:
            source = self._view(torch.ops.aten.expand.default, (source, target.size), {})
        if source.buffer is target.buffer:
            source = self._copied(source)
        size, keep = merged(target.size, [target, source])
        into, given = target.taken(keep), source.taken(keep)

        def entry(place: Sequence[str | int]) -> list[str]:
            value = cast(given.at(place), source.buffer.dtype, target.buffer.dtype)
            return [f"{into.at(place)} = {value};"]

        self._scope.block(lambda: loops(size, entry), [source], [target.buffer])

    def _aten_clone(self, node: Node, x: View, **_: Any) -> View:
        return self._copied(x) if x.buffer.mutable else x

    _aten_lift_fresh_copy = _aten_clone

    def _aten_full(self, node: Node, size: Any, value: Any, **_: Any) -> View:
        dtype = node.meta["val"].dtype
        return self._computed(_shape(node), dtype, [], lambda: literal(value, dtype))

    def _aten_full_like(self, node: Node, x: View, value: Any, **_: Any) -> View:
        return self._aten_full(node, x.size, value)

    def _aten_scalar_tensor(self, node: Node, value: Any, **_: Any) -> View:
        return self._aten_full(node, (), value)

    def _aten_empty(self, node: Node, size: Any, **_: Any) -> View:
        shape = _shape(node)
        buffer = self._buffer(node.meta["val"].dtype, math.prod(shape))
        buffer.mutable = buffer.stored = True
        return View.whole(buffer, shape)

    def _aten_new_empty_strided(self, node: Node, *_: Any, **__: Any) -> View:
        if not in_order(node):
            raise Unsupported("memory is not in order")
        return self._aten_empty(node, ())

    _aten_empty_strided = _aten_new_empty_strided

    def _prims_iota(self, node: Node, length: int, *, start: int, step: int, dtype: torch.dtype, **_: Any) -> View:
        out = self._new((length,), dtype)

        def entry(place: Sequence[str | int]) -> list[str]:
            return [f"{out.at(place)} = {start} + {place[0]} * {step};"]

        self._scope.block(lambda: loops([length], entry), [], [out.buffer])
        return out

    def _aten_copy(self, node: Node, x: View, source: View, *_: Any) -> View:
        out = self._new(x.size, x.buffer.dtype)
        self._assign(out, source)
        return out

    def _aten_copy_(self, node: Node, x: View, source: View, *_: Any) -> View:
        if source.buffer is x.buffer and source.dense and x.dense:  # it was written there
            self._in_place[-1].discard(x.buffer)
            return source
        self._assign(x, source)
        x.buffer.version += 1
        return x._replace(version=x.buffer.version)

    def _aten_cat(self, node: Node, tensors: Sequence[View], dim: int = 0) -> View:
        out = self._new(_shape(node), node.meta["val"].dtype)
        begin = 0
        for x in tensors:
            end = begin + x.size[dim]
            self._assign(self._view(torch.ops.aten.slice.Tensor, (out, dim, begin, end), {}), x)
            begin = end
        return out

    def _aten_select_scatter(self, node: Node, x: View, source: View, dim: int, index: int) -> View:
        out = self._own(node, x)
        self._assign(self._view(torch.ops.aten.select.int, (out, dim, index), {}), source)
        return out

    def _aten_slice_scatter(self, node: Node, x: View, source: View, *where: Any) -> View:
        out = self._own(node, x)
        self._assign(self._view(torch.ops.aten.slice.Tensor, (out, *where), {}), source)
        return out

    def _aten_as_strided(self, node: Node, x: View, *where: Any) -> View:
        _check_memory(node, x)
        made: View = self._view(torch.ops.aten.as_strided.default, (x._replace(offset=0), *where), {})
        return made

    def _aten_as_strided_scatter(self, node: Node, x: View, source: View, *where: Any) -> View:
        _check_memory(node, x)
        if not x.dense:
            raise Unsupported("memory is written that is not all of a tensor")
        out = self._own(node, x)
        self._assign(self._view(torch.ops.aten.as_strided.default, (out, *where), {}), source)
        return out

    def _aten_index(self, node: Node, x: View, indices: Sequence[View | None]) -> View:
        given = [(dim, index) for dim, index in enumerate(indices) if index is not None]
        if len(given) != 1 or given[0][1].buffer.dtype not in (torch.int64, torch.int32):
            raise Unsupported("several indices, or a mask")
        dim, index = given[0]
        out = self._new(_shape(node), x.buffer.dtype)
        inner = len(index.size)

        def entry(place: Sequence[str | int]) -> list[str]:
            found = _row(index.at(place[dim : dim + inner]), x.size[dim])
            return [found, f"{out.at(place)} = {x.at([*place[:dim], 'r', *place[dim + inner :]])};"]

        self._scope.block(lambda: loops(out.size, entry), [x, index], [out.buffer])
        return out

    def _aten_index_select(self, node: Node, x: View, dim: int, index: View) -> View:
        return self._aten_index(node, x, [*[None] * (dim % len(x.size)), index])

    def _aten_index_put(
        self, node: Node, x: View, indices: Sequence[View | None], values: View, accumulate: bool = False
    ) -> View:
        index = indices[0]
        if len(indices) != 1 or index is None or index.buffer.dtype not in (torch.int64, torch.int32):
            raise Unsupported("rows are written that are not found by their number")
        if x.buffer.mutable and x.dense:
            out = x
            self._note(x.buffer)
        else:
            out = self._copied(x)
        size = (*index.size, *x.size[1:])
        if values.buffer is x.buffer:
            values = self._copied(values)
        source = values if values.size == size else self._view(torch.ops.aten.expand.default, (values, size), {})
        inner = len(index.size)

        def entry(place: Sequence[str | int]) -> list[str]:
            found = _row(index.at(place[:inner]), x.size[0])
            sign = "+=" if accumulate else "="
            return [found, f"{out.at(['r', *place[inner:]])} {sign} {source.at(place)};"]

        self._scope.block(lambda: loops(size, entry), [x, index, source], [out.buffer])
        if out is x:
            x.buffer.version += 1
        return out._replace(version=out.buffer.version)

    # Sums and products.

    def _reduced(self, node: Node, x: View, dims: Any, first: str, step: Callable[[str, str], str]) -> View:
        dtype = node.meta["val"].dtype
        dims = [dims] if isinstance(dims, int) else list(dims or range(len(x.size)))
        over = sorted(d % len(x.size) for d in dims) if x.size else []
        out = self._new(_shape(node), dtype)
        kept = [d for d in range(len(x.size)) if d not in over]
        lines = reduction(x, View.whole(out.buffer, [x.size[d] for d in kept]), kept, over, first, step)
        self._scope.block(lambda: lines, [x], [out.buffer])
        return out

    def _aten_sum(self, node: Node, x: View, dims: Any = None, *_: Any, **__: Any) -> View:
        return self._reduced(node, x, dims, "0", lambda s, a: f"{s} + {a}")

    def _aten_mean(self, node: Node, x: View, dims: Any = None, *_: Any, **__: Any) -> View:
        total = self._aten_sum(node, x, dims)
        number = literal(x.numel / total.numel, total.buffer.dtype)
        return self._computed(total.size, total.buffer.dtype, [total], lambda a: f"{a} / {number}")

    def _aten_prod(self, node: Node, x: View, dims: Any = None, *_: Any, **__: Any) -> View:
        return self._reduced(node, x, dims, "1", lambda s, a: f"{s} * {a}")

    def _asked(self, node: Node, x: View, dims: Any, first: str, word: str) -> View:
        """Whether any, or all, are true; of no dimensions, which for sums are all, every entry for itself."""
        if dims is not None and not isinstance(dims, int) and not dims:
            return self._copied(x, torch.bool)
        return self._reduced(node, x, dims, first, lambda s, a: f"{s} {word} {a}")

    def _aten_any(self, node: Node, x: View, dims: Any = None, *_: Any) -> View:
        return self._asked(node, x, dims, "false", "||")

    def _aten_all(self, node: Node, x: View, dims: Any = None, *_: Any) -> View:
        return self._asked(node, x, dims, "true", "&&")

    def _outermost(self, node: Node, x: View, dims: Any, end: str, function: str) -> View:
        """The largest, or smallest, from the `end` of what the type of C++ can hold."""
        kind = x.buffer.kind
        floating = x.buffer.dtype.is_floating_point
        first = literal(math.inf if end == "max" else -math.inf, x.buffer.dtype) if floating else ""
        first = first or f"std::numeric_limits<{kind}>::{end}()"
        return self._reduced(node, x, dims, first, lambda s, a: f"{function}<{kind}>({s}, {a})")

    def _aten_amax(self, node: Node, x: View, dims: Any = None, *_: Any) -> View:
        return self._outermost(node, x, dims, "lowest", "largest")

    def _aten_amin(self, node: Node, x: View, dims: Any = None, *_: Any) -> View:
        return self._outermost(node, x, dims, "max", "smallest")

    def _aten_mm(self, node: Node, a: View, b: View) -> View:
        if a.numel * b.size[1] > _MOST_PRODUCTS:
            raise Unsupported("a matrix product is large")
        out = self._new(_shape(node), a.buffer.dtype)

        def scratch(size: Sequence[int]) -> View:
            room = View.whole(self._buffer(out.buffer.dtype, math.prod(size)), size)
            room.buffer.stored = True
            return room

        lines = product(a, b, out, scratch)
        self._scope.block(lambda: lines, [a, b], [out.buffer])
        return out

    def _aten_addmm(self, node: Node, bias: View, a: View, b: View, *, beta: Any = 1, alpha: Any = 1) -> View:
        if beta != 1 or alpha != 1:
            raise Unsupported("addmm with factors")
        out = self._aten_mm(node, a, b)
        return self._computed(out.size, out.buffer.dtype, [out, bias], lambda x, y: f"{x} + {y}")


_OF_MEMORY = {"dtype", "layout", "device", "pin_memory", "memory_format", "non_blocking"}
"""Arguments that the result shows."""


def _operands(target: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
    """The tensors and numbers that an operation is applied to; `None` for those that may be left out."""
    names = [argument.name for argument in target._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    operands = []
    for argument in target._schema.arguments:
        kind = str(argument.type)
        if kind in ("Tensor", "number"):
            operands += [given[argument.name]] if argument.name in given else []
        elif kind in ("Optional[Tensor]", "Optional[number]"):
            operands.append(given.get(argument.name))
        elif given.get(argument.name) is not None and argument.name not in _OF_MEMORY:
            raise Unsupported(f"{target} with {argument.name}")
    return operands


def _common(operands: Sequence[Any]) -> torch.dtype:
    """The dtype in which operands are compared."""

    def example(x: Any) -> Any:
        return torch.empty((0,) if x.size else (), dtype=x.buffer.dtype) if isinstance(x, View) else x

    first, *rest = map(example, operands)
    if not rest:
        dtype: torch.dtype = first.dtype
        return dtype
    return torch.result_type(first, rest[0])


def _check_memory(node: Node, x: View) -> None:
    """Whether a tensor lies in memory as it does for PyTorch.

    Raises:
        Unsupported: it does not, so that places in memory mean something else.
    """
    made = node.args[0]
    val = made.meta.get("val") if isinstance(made, Node) else None
    if not isinstance(val, Tensor) or val.stride() != x.stride or val.storage_offset() != x.offset:
        raise Unsupported("memory is looked at that lies elsewhere")


def in_order(node: Node) -> bool:
    """Whether the entries of what it gives lie one after the other."""
    val = node.meta.get("val")
    return not isinstance(val, Tensor) or val.is_contiguous()


def _row(index: str, size: int) -> str:
    return f"const int64_t r = row({index}, {size}, failed);"


def whole(sizes: Iterable[Any]) -> tuple[int, ...]:
    """Sizes, all of them numbers.

    Raises:
        Unsupported: one is a symbol.
    """
    found = tuple(sizes)
    if not all(isinstance(n, int) for n in found):
        raise Unsupported("a size is no number")
    return found


def _shape(node: Node) -> tuple[int, ...]:
    val = node.meta.get("val")
    if not isinstance(val, Tensor):
        raise Unsupported(f"{node.target} gives no tensor")
    return whole(val.shape)
