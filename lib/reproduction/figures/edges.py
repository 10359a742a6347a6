"""Logarithmic axes that end where values stop meaning anything, with rows above for what lies beyond."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from neural_ode.errors import needs

with needs("notebooks"):
    from matplotlib.axes import Axes
    from matplotlib.ticker import NullLocator

__all__ = ["Edge", "Parted", "name_rows", "parted", "plot_to_edge"]


class Edge(NamedTuple):
    """Where an axis ends, and how high the two rows above it are.

    Attributes:
        limit: the largest value that is drawn where it belongs.
        beyond: the row of larger values.
        unfinished: the row of those that are missing, because a solve could not be finished.
    """

    limit: float
    beyond: float
    unfinished: float


class Parted(NamedTuple):
    """Values as `plot_to_edge` draws them, in their order.

    Attributes:
        inside: those up to the limit, NaN in place of others.
        above: the heights of the others in their rows, NaN in place of those inside.
    """

    inside: list[float]
    above: list[float]


def parted(values: Iterable[float | None], edge: Edge) -> Parted:
    """Part values into those that are drawn where they belong, and those that go to a row above.

    Args:
        values: positive; `None` and NaN stand for a solve that could not be finished.
        edge: of the axis.
    """
    numbers = [math.nan if value is None else float(value) for value in values]
    inside = [y if y <= edge.limit else math.nan for y in numbers]
    rows = [edge.unfinished if math.isnan(y) else edge.beyond for y in numbers]
    above = [math.nan if y <= edge.limit else row for y, row in zip(numbers, rows, strict=True)]
    return Parted(inside, above)


def plot_to_edge(
    panel: Axes, x: Iterable[float], y: Iterable[float | None], edge: Edge, *, aside: float = 1.0, **style: Any
) -> None:
    """Draw a curve up to the limit, and markers without lines in the rows above.

    Args:
        panel: where, with logarithmic axes.
        x, y: see `parted`.
        edge: of the axis.
        aside: factor of `x` in the rows, so that the markers of several curves do not hide each other.
        **style: keyword arguments of `plot`, a marker among them.
    """
    places, found = [float(value) for value in x], parted(y, edge)
    (curve,) = panel.plot(places, found.inside, **style)
    rows = {**style, "color": curve.get_color(), "ls": "", "label": None}
    panel.plot([aside * place for place in places], found.above, **rows)


def name_rows(panels: Sequence[Axes], edge: Edge, lowest: float) -> None:
    """Set the ends of a logarithmic vertical axis, with ticks at even powers of ten and at the two rows.

    Args:
        panels: those that share the axis.
        edge: of the axis.
        lowest: the lower end.
    """
    axis, top = panels[0], 3 * edge.unfinished
    powers = range(math.ceil(math.log10(lowest)), math.floor(math.log10(edge.limit)) + 1)
    even = [power for power in powers if power % 2 == 0]
    axis.set_ylim(lowest, top)
    axis.set_yticks([*(10.0**power for power in even), edge.beyond, edge.unfinished])
    axis.set_yticklabels([*(f"$10^{{{power}}}$" for power in even), f"> {edge.limit:g}", "not finished"])
    axis.yaxis.set_minor_locator(NullLocator())
    for panel in panels:
        panel.axhspan(math.sqrt(edge.limit * edge.beyond), top, color="0.94", lw=0, zorder=0)
