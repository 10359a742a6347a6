"""How notebooks show tables and the library's own source."""

import inspect
import textwrap
from collections.abc import Callable
from typing import Any

from neural_ode.errors import needs

with needs("notebooks"):
    import pandas as pd
    from IPython.display import HTML, Markdown

__all__ = ["show_source", "show_table"]


def show_table(table: pd.DataFrame, digits: int = 3) -> HTML:
    """The whole table, no text cut short, numbers with `digits` significant digits."""
    with pd.option_context("display.max_colwidth", None):
        html = table.rename_axis(index=[None] * table.index.nlevels).to_html(
            float_format=lambda x: f"{x:.{digits}g}", na_rep="–", justify="left", border=0
        )
    for tag in ("td", "th"):
        html = html.replace(f"<{tag}>", f'<{tag} style="text-align: left">')
    return HTML(html)


def show_source(function: Callable[..., Any]) -> Markdown:
    """The source of a function of the library, so that prose and tested code cannot diverge."""
    return Markdown(f"```python\n{textwrap.dedent(inspect.getsource(function)).rstrip()}\n```")
