"""Two-dimensional sets of points: the data of Figure 5, and the usual others.

Made here with NumPy's generator rather than scikit-learn's `make_circles` and `make_moons`, so that the project
does not depend on it for a few formulas. All are scaled to lie within about [-4, 4]².
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from neural_ode.errors import InvalidArgumentError, UnknownNameError, needs

__all__ = ["POINT_SETS", "picture_of_letters", "points", "points_of_picture"]

Array = NDArray[Any]


def points(name: str, n: int, seed: int | Sequence[int]) -> Tensor:
    """Independent points of a distribution.

    Args:
        name: in `POINT_SETS`.
        n: how many.
        seed: a number or several; the same seed gives the same points.

    Returns:
        Shape (n, 2), float32.

    Raises:
        UnknownNameError: there is no such set.
        InvalidArgumentError: `n` is negative.
    """
    if name not in POINT_SETS:
        raise UnknownNameError("set of points", name, POINT_SETS)
    _check_number(n)
    return torch.from_numpy(POINT_SETS[name](n, np.random.default_rng(seed))).float()


def points_of_picture(picture: ArrayLike, n: int, seed: int | Sequence[int]) -> Tensor:
    """Independent points whose density is the darkness of a picture, spread evenly within each pixel.

    Args:
        picture: darkness, or brightness, zero or more, shape (height, width), the first row on top.
        n: how many.
        seed: a number or several; the same seed gives the same points.

    Returns:
        Shape (n, 2), float32; the longer side of the picture goes from -4 to 4.

    Raises:
        InvalidArgumentError: the picture is not two-dimensional, has negative entries or is empty; `n` is negative.
    """
    dark = np.asarray(picture, dtype=np.float64)
    if dark.ndim != 2 or not (dark >= 0).all() or not dark.sum() > 0:
        raise InvalidArgumentError(
            f"picture must be two-dimensional, without negative entries and not empty, got shape {dark.shape}"
        )
    _check_number(n)
    random = np.random.default_rng(seed)
    pixel = random.choice(dark.size, size=n, p=dark.ravel() / dark.sum())
    row, column = np.divmod(pixel, dark.shape[1])
    place = np.stack([column, dark.shape[0] - 1 - row], 1) + random.random((n, 2))
    centred = (place - np.array(dark.shape[::-1]) / 2) * 8 / max(dark.shape)
    return torch.from_numpy(centred).float()


def picture_of_letters(letters: str) -> Array:
    """Brightness of a few letters, white on black, shape (120, 120), uint8."""
    with needs("notebooks"):
        from PIL import Image, ImageDraw, ImageFont

    canvas = Image.new("L", (120, 120))
    ImageDraw.Draw(canvas).text((60, 60), letters, fill=255, font=ImageFont.load_default(60), anchor="mm")
    return np.asarray(canvas)


def _check_number(n: int) -> None:
    if n < 0:
        raise InvalidArgumentError(f"n must be zero or more, got {n}")


def _polar(radius: Array | float, angle: Array) -> Array:
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)


def _two_circles(n: int, random: Generator) -> Array:
    """Radii 3 and 1.5, noise 0.24: scikit-learn's `make_circles(noise=0.08, factor=0.5)`, times 3."""
    radius = np.where(random.random(n) < 0.5, 3.0, 1.5)
    return _polar(radius, 2 * math.pi * random.random(n)) + 0.24 * random.standard_normal((n, 2))


def _two_moons(n: int, random: Generator) -> Array:
    """scikit-learn's `make_moons(noise=0.1)`, times 2 and centred."""
    angle, upper = math.pi * random.random(n), random.random(n) < 0.5
    arc = _polar(1.0, angle)
    moons: Array = np.where(upper[:, None], arc, np.array([1.0, 0.5]) - arc)
    moons += 0.1 * random.standard_normal((n, 2)) - np.array([0.5, 0.25])
    return 2 * moons


def _eight_gaussians(n: int, random: Generator) -> Array:
    centre = _polar(3.0, math.pi / 4 * random.integers(8, size=n))
    return centre + 0.3 * random.standard_normal((n, 2))


def _pinwheel(n: int, random: Generator) -> Array:
    """Five arms, turned by an angle that falls with the distance (Johnson et al. 2016)."""
    along = 1 + 0.3 * random.standard_normal(n)
    across = 0.1 * random.standard_normal(n)
    turn = 2 * math.pi / 5 * random.integers(5, size=n) + 0.25 * np.exp(along)
    sine, cosine = np.sin(turn), np.cos(turn)
    return 2 * np.stack([along * cosine - across * sine, along * sine + across * cosine], 1)


def _swiss_roll(n: int, random: Generator) -> Array:
    angle = 1.5 * math.pi * (1 + 2 * random.random(n))
    return (_polar(angle, angle) + random.standard_normal((n, 2)) * 0.5) / 3.8


def _two_spirals(n: int, random: Generator) -> Array:
    angle = 3 * math.pi * np.sqrt(random.random(n))
    arm = np.where(random.random(n) < 0.5, 1.0, -1.0)
    return arm[:, None] * _polar(angle / math.pi, angle) + 0.1 * random.standard_normal((n, 2))


def _checkerboard(n: int, random: Generator) -> Array:
    """The dark fields of a board of 4 × 4 on [-4, 4]²."""
    column, row = random.integers(4, size=n), 2 * random.integers(2, size=n)
    corner = np.stack([column, row + column % 2], 1)
    return 2 * (corner + random.random((n, 2))) - 4


def _rings(n: int, random: Generator) -> Array:
    radius = 0.9 * (1 + random.integers(4, size=n))
    return _polar(radius, 2 * math.pi * random.random(n)) + 0.08 * random.standard_normal((n, 2))


POINT_SETS: dict[str, Callable[[int, Generator], Array]] = {
    "two circles": _two_circles,
    "two moons": _two_moons,
    "eight gaussians": _eight_gaussians,
    "pinwheel": _pinwheel,
    "swiss roll": _swiss_roll,
    "two spirals": _two_spirals,
    "checkerboard": _checkerboard,
    "rings": _rings,
}
