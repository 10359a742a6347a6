"""One look for all figures, legible for colour-blind readers, and files that do not vary from run to run."""

from pathlib import Path

from neural_ode.errors import needs
from reproduction.figures.png import with_palette
from reproduction.files import replacing

with needs("notebooks"):
    import matplotlib as mpl
    import seaborn as sns
    from IPython import get_ipython
    from IPython.display import Markdown, display
    from matplotlib.figure import Figure

__all__ = ["COLORS", "MARKERS", "save_figure", "use_theme"]

LARGE = 250_000
"""Bytes from which an SVG is made smaller: results are committed."""

_PALETTE = sns.color_palette("colorblind").as_hex()

COLORS = {
    "MLP": _PALETTE[7],
    "stem only": _PALETTE[5],
    "ResNet-1": _PALETTE[4],
    "ResNet": _PALETTE[0],
    "RK-Net": _PALETTE[1],
    "ODE-Net": _PALETTE[2],
    "recursive_checkpoint": _PALETTE[3],
    "recursive_checkpoint, log": _PALETTE[6],
    "interpolating": "#404040",
    "reversible": _PALETTE[9],
    "dopri5": _PALETTE[1],
    "tsit5": _PALETTE[4],
    "dopri8": _PALETTE[3],
    "adams": _PALETTE[0],
    "VODE": "black",
}
"""A colour for each network, way to differentiate a solve, or solver: the same in every figure."""

MARKERS = {
    "MLP": "v",
    "stem only": "P",
    "ResNet-1": "D",
    "ResNet": "o",
    "RK-Net": "s",
    "ODE-Net": "^",
    "recursive_checkpoint": "X",
    "recursive_checkpoint, log": "d",
    "interpolating": "<",
    "reversible": "*",
    "dopri5": "s",
    "tsit5": "D",
    "dopri8": "X",
    "adams": "o",
    "VODE": "^",
}
"""And a marker: no figure tells them apart by colour alone."""


def use_theme() -> None:
    """Set seaborn's theme and the options that make saved files reproducible byte for byte."""
    sns.set_theme(context="notebook", style="ticks", palette="colorblind", font="DejaVu Sans")
    mpl.rcParams.update(
        {
            "axes.grid": True,
            "axes.spines.right": False,
            "axes.spines.top": False,
            "figure.constrained_layout.use": True,
            "figure.dpi": 100,
            "grid.alpha": 0.4,
            "legend.frameon": False,
            "savefig.dpi": 120,
            "svg.hashsalt": "neural-ode",
        }
    )


def save_figure(figure: Figure, path: Path) -> list[Path]:
    """Save as SVG and PNG beside each other.

    A large PNG gets a palette of 256 colours, the pictures in an SVG above 250 kB half the resolution. In a notebook,
    a line above a figure of the quick profile says where it is at full scale.

    Args:
        figure: the figure.
        path: where, without a suffix.

    Returns:
        The two files.
    """
    saved = []
    for suffix, metadata in ((".svg", {"Date": None}), (".png", {"Software": None})):
        target = path.with_name(path.name + suffix)
        with replacing(target) as temporary:
            figure.savefig(temporary, metadata=metadata)
            if suffix == ".png":
                temporary.write_bytes(with_palette(temporary.read_bytes()))
            elif temporary.stat().st_size > LARGE:
                figure.savefig(temporary, metadata=metadata, dpi=mpl.rcParams["savefig.dpi"] / 2)
        saved.append(target)
    _say_scale(path)
    return saved


def _say_scale(path: Path) -> None:
    """Say what a figure of the quick profile is, where somebody reads it: in a notebook."""
    if path.parts[-3:-2] == ("quick",) and get_ipython() is not None:
        whole = f"figures/paper/{path.parts[-2]}/{path.name}.png"
        display(Markdown(f"*Quick profile: a sketch, in a minute of computing. At full scale: `{whole}`.*"))
