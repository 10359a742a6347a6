"""Densities in motion, as small GIF files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from neural_ode.errors import InvalidArgumentError, needs
from reproduction.files import replacing

with needs("notebooks"):
    import matplotlib as mpl
    from PIL import Image

__all__ = ["save_animation"]

SHADES = 20
"""Steps of brightness: a few, whose edges compress well, so that a file stays small."""


def save_animation(frames: Sequence[Tensor], path: Path, scale: int = 3, milliseconds: int = 120) -> Path:
    """Save densities as a GIF that plays forth and back, each frame on its own scale of brightness.

    Args:
        frames: densities, shape (height, width), the first row below; see `density_grid`.
        path: where, without a suffix.
        scale: by which each side is enlarged, smoothly.
        milliseconds: between frames.

    Returns:
        The file.

    Raises:
        InvalidArgumentError: there are no frames.
    """
    if not frames:
        raise InvalidArgumentError("frames must hold at least one density, got none")
    palette = mpl.colormaps["viridis"](np.linspace(0, 1, SHADES), bytes=True)[:, :3].tobytes()
    pictures = []
    for frame in frames:
        brightness = Image.fromarray((frame / frame.max()).flip(0).float().numpy())
        size = (scale * brightness.width, scale * brightness.height)
        smooth = np.asarray(brightness.resize(size, Image.Resampling.BICUBIC)).clip(0, 1)
        picture = Image.fromarray(np.rint(smooth * (SHADES - 1)).astype(np.uint8)).convert("P")
        picture.putpalette(palette)
        pictures.append(picture)
    order = [*pictures, *pictures[-2:0:-1]]
    target = path.with_name(path.name + ".gif")
    with replacing(target) as temporary:
        order[0].save(temporary, save_all=True, append_images=order[1:], duration=milliseconds, loop=0)
    return target
