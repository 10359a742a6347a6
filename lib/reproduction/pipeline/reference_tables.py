"""Tables of the reference: what the constants of the library hold, which a page of code would not show."""

import inspect
from typing import Any

from neural_ode.gradients import GRADIENTS
from neural_ode.methods import METHODS

__all__ = ["TABLES", "gradients_table", "methods_table"]


def methods_table() -> str:
    """The Runge-Kutta methods of `METHODS`, in Markdown: order, stages, what they offer, and their source."""
    rows = [["`method=`", "order", "stages", "error control", "FSAL", "dense output", "source"]]
    for name, method in METHODS.items():
        tableau = getattr(method, "tableau", None)
        if tableau is not None:
            offers = [tableau.b_error, _first_same_as_last(tableau), tableau.dense]
            rows.append([f"`{name}`", str(tableau.order), str(len(tableau.c)), *map(_mark, offers), tableau.source])
    return _table(rows)


def _first_same_as_last(tableau: Any) -> bool:
    """Whether the last stage of a step is the first one of the next: the slope between them."""
    first, last = tableau.a[0], (*tableau.a[-1], *([0] * (len(tableau.b) - len(tableau.a[-1]))))
    return not any(first) and tableau.c[0] == 0 and len(tableau.b) > 1 and last == tuple(tableau.b)


def gradients_table() -> str:
    """The choices of `GRADIENTS`, in Markdown: what each is, and what it can do."""
    rows = [["`gradient=`", "what it is", "`batched=True`", "`dense=True`"]]
    for name, choice in GRADIENTS.items():
        first = (inspect.getdoc(choice) or "").split("\n\n")[0].replace("\n", " ")
        offers = [getattr(choice, f"supports_{what}", False) for what in ("rows", "dense")]
        rows.append([f"`{name}`", first.partition(": ")[2], *map(_mark, offers)])
    return _table(rows)


def _mark(there: object) -> str:
    return "yes" if there else "–"


def _table(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    lines.insert(1, "|---" * len(rows[0]) + "|")
    return "\n".join(lines) + "\n"


TABLES = {"neural_ode.methods": methods_table, "neural_ode.gradients": gradients_table}
"""By the part of the library whose page they stand on."""
