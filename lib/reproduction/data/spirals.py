"""Spirals in the plane, observed at some of the points of a window, with noise.

Chen et al. (2018), section 5.1: 1000 spirals, half of them clockwise, each starting at a different point, at 100
equally spaced times, with Gaussian noise; 30, 50 or 100 of the points are observed, drawn without replacement. The
paper states neither formula nor noise; a recipe is one way to fill them in.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from neural_ode.errors import InvalidArgumentError, UnknownNameError

__all__ = ["RECIPES", "WINDOWS", "Recipe", "Spirals", "draw_spirals"]

_LAST = 6 * math.pi


@dataclass(frozen=True)
class Recipe:
    """Two curves, and which parts of them the series are.

    A curve is followed over angles from 0 to `last`, in `points` equal steps, and ends there. A series is a
    window of it; training windows start at `first_start` to `last_start`, so that training sees the points up to
    `last_start + window`.

    Attributes:
        description: where the recipe comes from.
        counter_clockwise, clockwise: map angles (radians) of shape (n,) to points of shape (n, 2).
        last: the largest angle, radians; time is measured in the same unit.
        points: how many points a curve has.
        window: how many points a series can be observed at.
        beyond: how many further points are to be predicted.
        first_start, last_start: the range of the first points of windows.
    """

    description: str
    counter_clockwise: Callable[[Tensor], Tensor]
    clockwise: Callable[[Tensor], Tensor]
    last: float = _LAST
    points: int = 500
    window: int = 100
    beyond: int = 100
    first_start: int = 100
    last_start: int = 300

    @property
    def times(self) -> Tensor:
        """Times of a window and of the points beyond it, from 0; float64, shape (window + beyond,)."""
        angles = torch.linspace(0, self.last, self.points, dtype=torch.float64)
        return angles[: self.window + self.beyond]

    @property
    def last_inside(self) -> int:
        """The last start of a window whose points beyond lie where training windows reach."""
        return self.last_start - self.beyond

    @property
    def goes_on(self) -> bool:
        """Whether the points beyond every training window are on the curves."""
        return self.last_start + self.window + self.beyond <= self.points


def _polar(radius: Tensor, angle: Tensor, centre: float) -> Tensor:
    return torch.stack([radius * angle.cos() + centre, radius * angle.sin()], dim=-1)


def _archimedes(angle: Tensor) -> Tensor:
    return _polar(0.3 * angle, angle, 5.0)


def _hyperbolic(angle: Tensor) -> Tensor:
    falling = _LAST + 1 - angle
    return _polar(0.3 * 50 / falling, falling, -5.0)


def _centred(angle: Tensor) -> Tensor:
    return _polar(0.3 * angle, angle, 0.0)


def _inward(angle: Tensor) -> Tensor:
    return _polar(0.3 * (_LAST - angle), angle, 0.0)


def _mirrored(curve: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The mirror image, which turns the other way."""
    return lambda angle: curve(angle) * torch.tensor([-1.0, 1.0], dtype=angle.dtype)


CONTRIBUTED = (
    "of an example that was contributed to the authors' code (torchdiffeq, pull request 5): "
    "r = 0.3 θ around (5, 0) and, clockwise, r = 15 / (6π + 1 - θ) around (-5, 0)"
)

RECIPES = {
    "example": Recipe(f"the curves {CONTRIBUTED}", _archimedes, _hyperbolic),
    "example, its windows": Recipe(f"curves and windows {CONTRIBUTED}", _archimedes, _hyperbolic, last_start=399),
    "mirrored": Recipe(
        "r = 0.3 θ around (5, 0) and, clockwise, its mirror image", _archimedes, _mirrored(_archimedes)
    ),
    "centred": Recipe("r = 0.3 θ around (0, 0) and, clockwise, its mirror image", _centred, _mirrored(_centred)),
    "inward": Recipe("r = 0.3 (6π - θ) around (0, 0) and its mirror image", _inward, _mirrored(_inward)),
}
"""Ways to make the data that the paper describes in a sentence."""


WINDOWS: dict[str, Callable[[Recipe], tuple[int, int]]] = {
    "anywhere": lambda kind: (kind.first_start, kind.last_start),
    "inside": lambda kind: (kind.first_start, kind.last_inside),
    "outside": lambda kind: (kind.last_start, kind.last_start),
}
"""Where windows begin: the first and the last point, by the kind of windows."""


class Spirals(NamedTuple):
    """Series of one recipe, all with the same number of observations.

    Attributes:
        grid: times of the window and beyond it, float64, shape (points,).
        window: how many of them are the window.
        observed: which points are observed, ascending, int64, shape (series, observations).
        noisy: what would be observed at each point, shape (series, points, 2); NaN after the end of a curve.
        truth: the same without noise.
        clockwise: bool, shape (series,).
        start: which point of its curve a series starts at, shape (series,).
    """

    grid: Tensor
    window: int
    observed: Tensor
    noisy: Tensor
    truth: Tensor
    clockwise: Tensor
    start: Tensor

    @property
    def times(self) -> Tensor:
        """Times of the observations, float64, shape (series, observations)."""
        return self.grid[self.observed]

    @property
    def values(self) -> Tensor:
        """The observations, shape (series, observations, 2)."""
        return self.noisy.take_along_dim(self.observed[..., None], 1)

    def to(self, device: str | torch.device) -> "Spirals":
        """The same series on a device."""
        rest = (x.to(device) for x in (self.observed, self.noisy, self.truth, self.clockwise, self.start))
        return Spirals(self.grid.to(device), self.window, *rest)

    def rows(self, chosen: Tensor | slice) -> "Spirals":
        """Some of the series."""
        rest = (x[chosen] for x in (self.observed, self.noisy, self.truth, self.clockwise, self.start))
        return Spirals(self.grid, self.window, *rest)


def draw_spirals(
    recipe: str,
    series: int,
    observations: int,
    noise: float,
    seed: int,
    *,
    windows: str = "anywhere",
    dtype: torch.dtype = torch.float32,
) -> Spirals:
    """Draw series, every second one clockwise. Series, points and noise are functions of the seed alone.

    Args:
        recipe: a name in `RECIPES`.
        series: how many.
        observations: how many points of the window are observed.
        noise: standard deviation of the noise in each coordinate.
        seed: another one gives independent data.
        windows: `anywhere` where training windows begin; `inside`, so that the points beyond lie where training
            windows reach; or `outside`, so that none of them does: all of these windows begin at the same point.
        dtype: of the points.

    Raises:
        UnknownNameError: there is no such recipe, or no such kind of windows.
        InvalidArgumentError: a number cannot be used.
    """
    if recipe not in RECIPES:
        raise UnknownNameError("recipe", recipe, RECIPES)
    kind = RECIPES[recipe]
    if not 0 < observations <= kind.window:
        raise InvalidArgumentError(f"observations must be 1 to {kind.window} of the window, got {observations}")
    if series < 1:
        raise InvalidArgumentError(f"series must be positive, got {series}")
    if not noise >= 0:
        raise InvalidArgumentError(f"noise must not be negative, got {noise}")
    random = torch.Generator().manual_seed(seed)
    if windows not in WINDOWS:
        raise UnknownNameError("kind of windows", windows, WINDOWS)
    first, last = WINDOWS[windows](kind)
    start = torch.randint(first, last + 1, (series,), generator=random)
    clockwise = torch.arange(series) % 2 == 1
    length = kind.window + kind.beyond
    angles = torch.linspace(0, kind.last, kind.points, dtype=torch.float64)
    curves = torch.stack([kind.counter_clockwise(angles), kind.clockwise(angles)])
    curves = torch.nn.functional.pad(curves, (0, 0, 0, length), value=math.nan)
    truth = curves[clockwise.long()[:, None], start[:, None] + torch.arange(length)]
    order = torch.rand(series, kind.window, generator=random).argsort(dim=1)
    observed = order[:, :observations].sort(dim=1).values
    noisy = truth + noise * torch.randn(truth.shape, generator=random, dtype=torch.float64)
    return Spirals(kind.times, kind.window, observed, noisy.to(dtype), truth.to(dtype), clockwise, start)
