"""How notebooks show tables and the library's own source."""

import inspect
import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from neural_ode.errors import needs
from reproduction.notation import typeset

with needs("notebooks"):
    import pandas as pd
    from IPython.display import HTML, Markdown

__all__ = ["column_text", "show_source", "show_table"]

NOTHING = "–"


def show_table(table: pd.DataFrame, digits: int = 3) -> HTML:
    """The whole table, no text cut short, numbers to the right. Rows that are only counted have no names.

    Args:
        table: numbers, text, settings (a dict of them by name) and `None`.
        digits: see `column_text`.
    """
    texts = pd.DataFrame(
        {k: column_text(list(table.iloc[:, k]), digits) for k in range(table.shape[1])}, index=_index(table.index)
    )
    texts.columns = table.columns
    named = not isinstance(table.index, pd.RangeIndex)
    with pd.option_context("display.max_colwidth", None):
        html = texts.rename_axis(index=[None] * table.index.nlevels).to_html(border=0, index=named)
    sides = ["right" if _numbers(list(table.iloc[:, k])) else "left" for k in range(table.shape[1])]
    head, _, body = html.partition("<tbody>")
    if table.columns.nlevels == 1:
        head = _aligned(head, "th", ["left"] * named * table.index.nlevels + sides)
    else:
        head = _aligned(head, "th", ["left"])
    body = _aligned(_aligned(body, "th", ["left"]), "td", sides)
    return HTML(f"{head}<tbody>{body}")


def show_source(function: Callable[..., Any]) -> Markdown:
    """The source of a function of the library, so that prose and tested code cannot diverge."""
    return Markdown(f"```python\n{textwrap.dedent(inspect.getsource(function)).rstrip()}\n```")


def column_text(values: Sequence[Any], digits: int = 3) -> list[str]:
    """A column as text: numbers with equal decimals where their sizes allow it, `None` and NaN as a dash.

    Args:
        values: of the column.
        digits: significant digits of each number. With equal decimals a larger one may have two more, or a smaller
            one two in all; where that is not enough, each has decimals of its own.
    """
    if not _numbers(values):
        return [NOTHING if _missing(value) else _words(value) for value in values]
    numbers = [None if _missing(value) else float(value) for value in values]
    decimals = _decimals([x for x in numbers if x is not None], digits)
    return [NOTHING if x is None else _number(x, decimals, digits) for x in numbers]


def _words(value: Any) -> str:
    if not isinstance(value, Mapping):
        return str(value)
    parts = [f"{name.replace('_', ' ')} {typeset(x) if _is_number(x) else x}" for name, x in value.items()]
    return ", ".join(parts) or "nothing changed"


def _number(x: float, decimals: int | None, digits: int) -> str:
    if decimals is None or math.isinf(x):
        return typeset(x, digits)
    return f"{x:.{decimals}f}".replace("-", "−")


def _decimals(numbers: Sequence[float], digits: int) -> int | None:
    """How many decimals suit all of the numbers; `None` if none do."""
    finite = [abs(x) for x in numbers if math.isfinite(x) and x]
    if all(x == round(x) for x in finite):
        return 0 if max(finite, default=0) < 10**7 else None
    largest, smallest = (math.floor(math.log10(x)) for x in (max(finite), min(finite)))
    for decimals, most in (
        (digits - 1 - smallest, digits + 1),
        (max(digits - 1 - largest, 1 - smallest), digits + 2),
    ):
        if largest + 1 + max(0, decimals) <= most and largest >= -3:
            return _needed(finite, max(0, decimals))
    return None


def _needed(numbers: Sequence[float], decimals: int) -> int:
    """The decimals without those that are 0 in all of the numbers."""
    while decimals and all(round(x, decimals) == round(x, decimals - 1) for x in numbers):
        decimals -= 1
    return decimals


def _numbers(values: Sequence[Any]) -> bool:
    """Whether a column holds numbers, and nothing else but gaps."""
    there = [value for value in values if not _missing(value)]
    return bool(there) and all(map(_is_number, there))


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, Real) and math.isnan(value))


def _index(index: pd.Index) -> pd.Index:
    """The names of the rows, numbers among them typeset one by one."""

    def text(name: Any) -> Any:
        if isinstance(name, tuple):
            return tuple(map(text, name))
        return typeset(float(name)) if isinstance(name, Real) and not isinstance(name, Integral) else name

    return index.map(text)


def _aligned(html: str, tag: str, sides: Sequence[str]) -> str:
    """The cells of a kind with their alignment, which comes round after as many as there are sides."""
    count = iter(range(html.count(f"<{tag}")))
    return re.sub(
        rf"<{tag}(?=[ >])", lambda _: f'<{tag} style="text-align: {sides[next(count) % len(sides)]}"', html
    )
