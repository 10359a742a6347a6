"""How the spirals of notebooks 08 and 09 are drawn, and the graph of the model (Figure 6)."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from neural_ode.errors import needs
from reproduction.data.spirals import RECIPES, Recipe, Spirals

with needs("notebooks"):
    import matplotlib.pyplot as plt
    import seaborn as sns
    from matplotlib.axes import Axes
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure

__all__ = [
    "DIRECTIONS",
    "LOOKS",
    "PARTS",
    "covered_curve",
    "draw_latent_ode",
    "draw_prediction",
    "draw_way",
    "looks_by_number",
    "share_frame",
    "true_curve",
]

_PALETTE = sns.color_palette("colorblind").as_hex()

LOOKS = {
    "latent ODE": {"color": _PALETTE[2], "marker": "^"},
    "RNN": {"color": _PALETTE[0], "marker": "o"},
    "RNN with times": {"color": _PALETTE[1], "marker": "s"},
    "paper, latent ODE": {"color": "0.25", "marker": "X"},
    "paper, RNN": {"color": "0.55", "marker": "P"},
}
"""Color and marker of each model."""

DIRECTIONS = {"clockwise": _PALETTE[3], "counter-clockwise": _PALETTE[0]}
"""A color for each direction."""

PARTS = {"truth": "0.75", "observations": "0.1", "inside": _PALETTE[0], "beyond": _PALETTE[3]}
"""Colors of what the paper's Figure 8 shows: prediction blue inside the window, red beyond it."""


def looks_by_number(observations: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Color and marker for each number of observations."""
    cycle = itertools.cycle([(0, "o"), (1, "s"), (2, "^"), (4, "D")])
    looks = zip(sorted(set(observations)), cycle, strict=False)
    return {n: {"color": _PALETTE[color], "marker": marker} for n, (color, marker) in looks}


def true_curve(recipe: str, spirals: Spirals, row: int, points: int = 200) -> Tensor:
    """The curve of a series, window and what follows it, as finely as a picture needs.

    Args:
        recipe: a name in `RECIPES`.
        spirals: series of that recipe.
        row: which of them.
        points: how many, from the first to the last of the series.

    Returns:
        Float64, shape (points, 2).
    """
    kind, start = RECIPES[recipe], int(spirals.start[row])
    return _part(kind, bool(spirals.clockwise[row]), start, start + kind.window + kind.beyond - 1, points)


def covered_curve(recipe: str, clockwise: bool, points: int = 300) -> Tensor:
    """The part of a curve that training windows cover.

    Args:
        recipe: a name in `RECIPES`.
        clockwise: which of its two curves.
        points: how many.

    Returns:
        Float64, shape (points, 2).
    """
    kind = RECIPES[recipe]
    return _part(kind, clockwise, kind.first_start, kind.last_start + kind.window - 1, points)


def _part(kind: Recipe, clockwise: bool, first: int, last: int, points: int) -> Tensor:
    """Of a curve, from one of its points to another."""
    angles = torch.linspace(first, last, points, dtype=torch.float64) * (kind.last / (kind.points - 1))
    return (kind.clockwise if clockwise else kind.counter_clockwise)(angles)


def share_frame(panels: Sequence[Axes], curves: Sequence[Tensor], margin: float = 0.08) -> None:
    """Give panels the same limits, which hold all curves, and a unit the same length in both directions.

    Args:
        panels: some or all of a row.
        curves: each of shape (n, 2).
        margin: around them, as a share of their larger extent.
    """
    points = torch.cat([curve.double() for curve in curves])
    low, high = points.amin(0), points.amax(0)
    room = margin * (high - low).max()
    (left, bottom), (right, top) = (low - room).tolist(), (high + room).tolist()
    for panel in panels:
        panel.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")


def draw_prediction(
    axes: Axes,
    truth: Tensor,
    observations: Tensor,
    inside: Tensor,
    beyond: Tensor,
    samples: Tensor | None = None,
    each: str = "",
) -> None:
    """Draw a series with its prediction; curves are drawn as they are given, as fine or as coarse.

    Args:
        axes: to draw on.
        truth: the curve without noise, shape (n, 2).
        observations: with noise, shape (observations, 2).
        inside: the prediction inside the window, shape (n, 2).
        beyond: and beyond it, shape (n, 2).
        samples: further predictions, shape (samples, n, 2), drawn thin.
        each: marker of each point of the prediction inside, where it is made point by point.
    """
    axes.plot(*truth.T, color=PARTS["truth"], lw=5, solid_capstyle="round", label="truth")
    for k, curve in enumerate(samples if samples is not None else ()):
        axes.plot(*curve.T, color=_PALETTE[4], lw=0.7, alpha=0.5, label=None if k else "posterior samples")
    axes.plot(*inside.T, marker=each, ms=4, color=PARTS["inside"], lw=2, label="prediction in the window")
    joined = torch.cat([inside[-1:], beyond])
    axes.plot(*joined.T, "--", color=PARTS["beyond"], lw=2, label="prediction beyond it")
    axes.plot(*observations.T, "o", color=PARTS["observations"], ms=3, label="observations")


def draw_way(axes: Axes, curve: Tensor, times: Tensor, **style: Any) -> LineCollection:
    """Draw a curve whose colour tells the time, with a dot where it starts.

    Args:
        axes: to draw on; its limits stay.
        curve: shape (n, 2).
        times: shape (n,).
        **style: of the line.

    Returns:
        For a colour bar.
    """
    pieces = torch.stack([curve[:-1], curve[1:]], dim=1)
    line = LineCollection(list(pieces.numpy()), array=times[:-1].numpy(), capstyle="round", **style)
    axes.add_collection(line, autolim=False)
    axes.plot(*curve[0], "o", color=line.get_cmap()(0.0), ms=5)
    return line


def draw_latent_ode() -> Figure:
    """The graph of the computation: from observations backwards to `z_t0`, and by the solver on to predictions."""
    figure, axes = plt.subplots(figsize=(10, 4.6))
    times, labels = [1.0, 2.2, 4.0, 6.6, 8.2], ["$t_0$", "$t_1$", "$t_N$", "$t_{N+1}$", "$t_M$"]
    arrow = {"arrowstyle": "-|>", "color": "0.3", "lw": 1.5, "shrinkA": 16, "shrinkB": 16}
    encoder, latent, data = DIRECTIONS["counter-clockwise"], LOOKS["latent ODE"]["color"], DIRECTIONS["clockwise"]

    def node(x: float, y: float, text: str, color: str, filled: bool = False) -> None:
        face = color if filled else "white"
        axes.plot(x, y, "o", ms=32, mec=color, mfc=face, mew=2, zorder=3)
        axes.text(x, y, text, ha="center", va="center", fontsize=10, color="white" if filled else "black", zorder=4)

    def connect(start: tuple[float, float], end: tuple[float, float], **more: object) -> None:
        axes.annotate("", end, start, arrowprops=arrow | more, zorder=1)

    for x, name in zip(times[:3], ("0", "1", "N"), strict=True):
        connect((x, 0.0), (x, 1.0))
        node(x, 0.0, f"$x_{{t_{name}}}$", data, filled=True)
        node(x, 1.0, f"$h_{{t_{name}}}$", encoder)
    for start, end in ((times[2], times[1]), (times[1], times[0])):
        connect((start, 1.0), (end, 1.0))
    connect((times[0], 1.0), (-0.4, 1.5))
    node(-0.4, 1.5, "μ, σ", encoder)
    connect((-0.4, 1.5), (times[0], 2.0), ls="--")
    connect((times[0], 2.0), (times[4] + 0.9, 2.0), lw=3, color=latent, shrinkB=0)
    for x, name in zip(times, ("0", "1", "N", "{N+1}", "M"), strict=True):
        connect((x, 2.0), (x, 3.0))
        node(x, 2.0, f"$z_{{t_{name}}}$", latent)
        node(x, 3.0, rf"$\hat x_{{t_{name}}}$", data)
    for x, name in zip(times, labels, strict=True):
        axes.text(x, -0.62, name, ha="center", va="center", fontsize=11)
    axes.axvline(5.3, color="0.6", ls=":")
    for x, text in ((2.5, "observed"), (7.4, "extrapolated")):
        axes.text(x, 3.6, text, ha="center", fontsize=11)
    sides = (0.5, "RNN encoder,\nbackwards in time"), (2.0, "ODE solve"), (3.0, "decoder")
    for y, text in sides:
        axes.text(9.5, y, text, va="center", fontsize=11)
    axes.text(-0.4, 2.15, r"$z_{t_0} \sim q(z_{t_0} | x)$", ha="center", fontsize=10)
    axes.set(xlim=(-1.3, 11.6), ylim=(-0.9, 3.9))
    axes.axis("off")
    return figure
