"""Densities in motion, as small GIF files."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from neural_ode.errors import InvalidArgumentError, needs
from reproduction.files import replacing

with needs("notebooks"):
    import matplotlib as mpl
    from PIL import Image

__all__ = ["save_animation"]


def save_animation(frames: Sequence[Tensor], path: Path, scale: int = 2, milliseconds: int = 120) -> Path:
    """Save densities as a GIF that plays forth and back, each frame on its own scale of brightness.

    Args:
        frames: densities, shape (height, width), the first row below; see `density_grid`.
        path: where, without a suffix.
        scale: side of a pixel.
        milliseconds: between frames.

    Returns:
        The file.

    Raises:
        InvalidArgumentError: there are no frames.
    """
    if not frames:
        raise InvalidArgumentError("frames must hold at least one density, got none")
    colors = mpl.colormaps["viridis"]
    pictures = []
    for frame in frames:
        shade = (frame / frame.max()).flip(0).numpy()
        picture = Image.fromarray(colors(shade, bytes=True)[..., :3])
        size = (scale * picture.width, scale * picture.height)
        pictures.append(picture.resize(size, Image.Resampling.NEAREST).quantize(64))
    order = [*pictures, *pictures[-2:0:-1]]
    target = path.with_name(path.name + ".gif")
    with replacing(target) as temporary:
        order[0].save(temporary, save_all=True, append_images=order[1:], duration=milliseconds, loop=0)
    return target
