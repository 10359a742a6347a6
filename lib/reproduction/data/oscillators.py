"""Oscillators that are observed when something happens, which is more often when their state is high."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from neural_ode.errors import InvalidArgumentError
from reproduction.data.events import Events, padded, thinned

__all__ = ["Oscillators", "draw_oscillators", "oscillator_rate"]

END = 10.0
_MOST = 3.8


def oscillator_rate(phase: Tensor, t: Tensor) -> Tensor:
    """Events per unit of time at phase `phase + t`: `2 + 1.8 sin`; shapes broadcast."""
    return 2 + 1.8 * (phase + t).sin()


class Oscillators(NamedTuple):
    """Series of the points `(cos(φ + t), sin(φ + t))` with noise, at the events of a rate of each series.

    Attributes:
        events: when the points were observed.
        values: the observations, zero where there is none, shape (series, most, 2).
        phase: φ, float64, shape (series,).
    """

    events: Events
    values: Tensor
    phase: Tensor

    def to(self, device: str | torch.device) -> "Oscillators":
        """The same series on a device."""
        return Oscillators(self.events.to(device), self.values.to(device), self.phase.to(device))

    def rows(self, chosen: Tensor) -> "Oscillators":
        """Some of the series."""
        return Oscillators(self.events.rows(chosen), self.values[chosen], self.phase[chosen])


def draw_oscillators(series: int, noise: float, seed: int) -> Oscillators:
    """Draw series with phases between 0 and 2π, each with one event or more, as functions of the seed.

    Args:
        series: how many.
        noise: standard deviation in each coordinate.
        seed: another one gives independent data.

    Raises:
        InvalidArgumentError: a number cannot be used.
    """
    if series < 1 or not noise >= 0:
        raise InvalidArgumentError(f"series must be positive and noise not negative, got {series} and {noise}")
    random = torch.Generator().manual_seed(seed)
    phase = 2 * math.pi * torch.rand(series, generator=random, dtype=torch.float64)
    rows = []
    for own in phase:
        row = torch.empty(0)
        while not len(row):
            row = thinned(lambda t, own=own: oscillator_rate(own, t), _MOST, END, random)  # type: ignore[misc]
        rows.append(row)
    events = padded(rows, END)
    angle = phase[:, None] + events.times
    points = torch.stack([angle.cos(), angle.sin()], dim=-1)
    points = points + noise * torch.randn(points.shape, generator=random, dtype=torch.float64)
    return Oscillators(events, (points * events.mask[..., None]).float(), phase)
