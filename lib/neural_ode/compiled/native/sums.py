"""Sums and products, in an order that vectors of the processor can follow."""

import math
from collections.abc import Callable, Sequence

from neural_ode.compiled.native.formulas import cast
from neural_ode.compiled.native.scope import Buffer, View, loops, merged

__all__ = ["product", "reduction"]

Place = Sequence[str | int]

_LANES = 16
"""Partial results of a long sum, which do not wait for each other."""

_BLOCK = 64
"""Entries that are added up one after the other: a long sum is one of the sums of such blocks, for digits are lost
where a large sum meets a small entry."""

_TILE = 512
"""Neighbours whose sums lie on the stack together."""

_WIDE = 8
"""Neighbours from which they are worked on together."""

_FEW_ROWS = 4
"""Rows from which it pays to bring the other matrix in order."""


def reduction(
    x: View, out: View, kept: Sequence[int], over: Sequence[int], first: str, step: Callable[[str, str], str]
) -> list[str]:
    """Lines that reduce a tensor.

    Args:
        x: the tensor.
        out: where the results go, without the dimensions that vanish.
        kept, over: dimensions that stay, and that vanish.
        first: a result before the first entry.
        step: a result and an entry to the result after it.
    """
    kind = out.buffer.kind
    size, keep = merged([x.size[d] for d in over], [x.taken(over)])
    inner = View(x.buffer, tuple(size), tuple(x.stride[over[k]] for k in keep), 0, x.version)
    rest = x.taken(kept)

    def entry(place: Place, part: Place) -> str:
        index = [*place, *part]
        both = View(x.buffer, rest.size + inner.size, rest.stride + inner.stride, x.offset, x.version)
        return cast(both.at(index), x.buffer.dtype, out.buffer.dtype)

    if rest.size and rest.stride[-1] == 1 and rest.size[-1] >= _WIDE:
        *outer, width = out.size

        def beside(place: Place) -> list[str]:
            def columns(line: Callable[[str], str]) -> list[str]:
                return [f"for (int64_t j = 0; j < n; ++j) {line('(c + j)')}"]

            def add(part: Place) -> list[str]:
                return columns(lambda j: f"s[j] = {step('s[j]', entry([*place, j], part))};")

            def whole(j: str) -> str:
                return out.at([*place, j])

            start = columns(lambda j: f"{whole(j)} = {first};")
            begin = [f"{kind} s[{min(width, _TILE)}];", *columns(lambda j: f"s[j] = {first};")]
            end = columns(lambda j: f"{whole(j)} = {step(whole(j), 's[j]')};")
            lines = [*start, *_in_blocks(inner.size, begin, add, end)]
            if width <= _TILE:
                return [f"constexpr int64_t c = 0, n = {width};", *lines]
            head = f"for (int64_t c = 0; c < {width}; c += {_TILE}) {{"
            return [head, f"const int64_t n = {width} - c < {_TILE} ? {width} - c : {_TILE};", *lines, "}"]

        if inner.numel > 2 * _BLOCK:
            return ["{", *loops(outer, beside, "o"), "}"]

        def add(place: Place, part: Place) -> list[str]:
            return [f"{out.at(place)} = {step(out.at(place), entry(place, part))};"]

        start = loops(out.size, lambda place: [f"{out.at(place)} = {first};"])
        return [*start, *loops(inner.size, lambda part: loops(out.size, lambda place: add(place, part)), "k")]

    def alone(place: Place) -> list[str]:
        def add(part: Place) -> list[str]:
            return [f"s = {step('s', entry(place, part))};"]

        blocks = _in_blocks(inner.size, [f"{kind} s = {first};"], add, [f"t = {step('t', 's')};"])
        return [f"{kind} t = {first};", *blocks, f"{out.at(place)} = t;"]

    def in_lanes(place: Place) -> list[str]:
        *outer, length = inner.size
        whole = length // _LANES

        def add(part: Place) -> list[str]:
            index = f"{part[-1]} * {_LANES} + l"
            body = f"s[l] = {step('s[l]', entry(place, [*part[:-1], index]))};"
            return [f"for (int l = 0; l < {_LANES}; ++l) {body}"]

        def tail(part: Place) -> list[str]:
            index = f"{part[-1]} + {whole * _LANES}"
            return [f"t[0] = {step('t[0]', entry(place, [*part[:-1], index]))};"]

        lanes = f"for (int l = 0; l < {_LANES}; ++l)"
        begin = [f"{kind} s[{_LANES}];", f"{lanes} s[l] = {first};"]
        return [
            f"{kind} t[{_LANES}];",
            f"{lanes} t[l] = {first};",
            *_in_blocks([*outer, whole], begin, add, [f"{lanes} t[l] = {step('t[l]', 's[l]')};"]),
            *(loops([*outer, length % _LANES], tail, "k") if length % _LANES else []),
            *_halves("t", step),
            f"{out.at(place)} = t[0];",
        ]

    long = bool(inner.size) and inner.stride[-1] == 1 and inner.size[-1] >= 2 * _LANES
    return loops(out.size, in_lanes if long else alone)


def _in_blocks(
    size: Sequence[int], begin: list[str], add: Callable[[Place], list[str]], end: list[str]
) -> list[str]:
    """Lines that run through all indices, block by block.

    Args:
        size: of the indices.
        begin, end: lines before and after each block.
        add: the lines for an index.
    """
    if math.prod(size) <= 2 * _BLOCK:
        return ["{", *begin, *loops(size, add, "k"), *end, "}"]
    number, *others = size
    length = max(1, _BLOCK // math.prod(others))
    return [
        f"for (int64_t b = 0; b < {number}; b += {length}) {{",
        *begin,
        f"for (int64_t k = b; k < {number} && k < b + {length}; ++k) {{",
        *loops(others, lambda part: add(["k", *part]), "k"),
        "}",
        *end,
        "}",
    ]


Scratch = Callable[[Sequence[int]], View]
"""Takes memory for a tensor of a shape."""

_FEW_COLUMNS = 128
"""Entries of a row up to which its sums are variables of their own."""


def product(a: View, b: View, out: View, scratch: Scratch) -> list[str]:
    """Lines that multiply two matrices."""
    (rows, columns), long = out.size, a.size[1] >= 2 * _LANES
    along = long and a.stride[1] == b.stride[0] == 1
    if columns >= _WIDE and b.stride[1] == 1:
        return _by_rows(a, b, out, scratch)
    if columns >= _WIDE and rows >= _FEW_ROWS:
        return _ordered(b, scratch, lambda p: _by_rows(a, p, out, scratch))
    if rows >= _WIDE > columns and a.stride[0] == 1:
        return _by_rows(_turned(b), _turned(a), _turned(out), scratch)
    if along:
        return _of_rows(a, b, out)
    if rows >= _WIDE and long and a.stride[1] == 1:
        return _ordered(_turned(b), scratch, lambda p: _of_rows(a, _turned(p), out))
    if rows >= _WIDE:
        return _ordered(_turned(a), scratch, lambda p: _by_rows(_turned(b), p, _turned(out), scratch))
    return _by_rows(a, b, out, scratch)


def _ordered(x: View, scratch: Scratch, then: Callable[[View], list[str]]) -> list[str]:
    """Bring a matrix in order before it is used."""
    ordered = scratch(x.size)
    return [*loops(x.size, lambda i: [f"{ordered.at(i)} = {x.at(i)};"], "k"), *then(ordered)]


def _by_rows(a: View, b: View, out: View, scratch: Scratch) -> list[str]:
    """Row by row a sum of rows of the second matrix."""
    inner, columns, kind = *b.size, out.buffer.kind
    few = columns <= _FEW_COLUMNS
    sums = View.whole(Buffer("s", out.buffer.dtype, columns), [columns]) if few else scratch([columns])

    def row(i: Place) -> list[str]:
        def add(k: Place) -> list[str]:
            terms = loops([columns], lambda j: [f"{sums.at(j)} += a * {b.at([k[0], j[0]])};"], "j")
            return [f"const {kind} a = {a.at([i[0], k[0]])};", *terms]

        begin = [f"{kind} s[{columns}] = {{}};"] if few else loops([columns], lambda j: [f"{sums.at(j)} = 0;"], "j")
        store = loops([columns], lambda j: [f"{out.at([i[0], j[0]])} = {sums.at(j)};"], "j")
        return [*begin, *loops([inner], add, "k"), *store]

    return loops([out.size[0]], row)


def _of_rows(a: View, b: View, out: View) -> list[str]:
    """Every entry is a sum along both matrices."""
    whole, inner = a.size[1] // _LANES, a.size[1]

    def entry(place: Place) -> list[str]:
        def term(k: str | int) -> str:
            return f"{a.at([place[0], k])} * {b.at([k, place[1]])}"

        return [
            f"{out.buffer.kind} s[{_LANES}] = {{}};",
            f"for (int64_t k = 0; k < {whole}; ++k)",
            f"for (int l = 0; l < {_LANES}; ++l) s[l] += {term(f'k * {_LANES} + l')};",
            *(f"s[0] += {term(k)};" for k in range(whole * _LANES, inner)),
            *_halves("s", lambda s, x: f"{s} + {x}"),
            f"{out.at(place)} = s[0];",
        ]

    return loops(out.size, entry)


def _halves(name: str, step: Callable[[str, str], str]) -> list[str]:
    """Lines that bring the lanes together."""
    widths = [_LANES >> k for k in range(1, _LANES.bit_length())]
    return [f"for (int l = 0; l < {n}; ++l) {name}[l] = {step(f'{name}[l]', f'{name}[l + {n}]')};" for n in widths]


def _turned(x: View) -> View:
    """The transposed matrix."""
    return x._replace(size=x.size[::-1], stride=x.stride[::-1])
