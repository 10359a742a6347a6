"""How the spirals of notebooks 08 and 09 are drawn."""

import seaborn as sns
from matplotlib.axes import Axes
from torch import Tensor

from neural_ode.data.spirals import Spirals

__all__ = ["DIRECTIONS", "LOOKS", "PARTS", "draw_prediction"]

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


def draw_prediction(axes: Axes, spirals: Spirals, row: int, predicted: Tensor, samples: Tensor | None = None) -> None:
    """Draw a series with its prediction, inside the window and beyond it.

    Args:
        axes: to draw on.
        spirals: the series.
        row: which of them.
        predicted: at its points, shape (points, 2). If there are fewer points, at the last ones.
        samples: further predictions, shape (samples, points, 2), drawn thin.
    """
    truth, split = spirals.truth[row], spirals.window
    start = len(truth) - len(predicted)
    axes.plot(*truth.T, color=PARTS["truth"], lw=5, solid_capstyle="round", label="truth")
    for k, (part, curve) in enumerate(_parts(samples, split - start)) if samples is not None else ():
        axes.plot(*curve.T, color=PARTS[part], lw=0.7, alpha=0.5, label="posterior samples" if k == 0 else None)
    for part, curve in _parts(predicted[None], split - start):
        style = "-" if part == "inside" else "--"
        axes.plot(*curve.T, style, color=PARTS[part], lw=2, label=f"prediction {part} the window")
    axes.plot(*spirals.values[row].T, "o", color=PARTS["observations"], ms=3, label="observations")
    axes.set_aspect("equal", adjustable="datalim")


def _parts(curves: Tensor, split: int) -> list[tuple[str, Tensor]]:
    """Each curve in the window, if it has a part there, and beyond."""
    found = []
    for curve in curves:
        if split > 0:
            found.append(("inside", curve[:split]))
        found.append(("beyond", curve[max(split - 1, 0) :]))
    return found
