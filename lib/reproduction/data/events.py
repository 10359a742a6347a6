"""Event times of Poisson processes whose rates are known."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from neural_ode.errors import InvalidArgumentError, UnknownNameError

__all__ = ["RATES", "Events", "Rate", "draw_events", "padded"]


@dataclass(frozen=True)
class Rate:
    """A rate of events over times from 0 to `end`.

    Attributes:
        formula: in words.
        rate: maps times, float64 of any shape, to events per unit of time.
        most: a bound of the rate.
        end: when the observation ends.
    """

    formula: str
    rate: Callable[[Tensor], Tensor]
    most: float
    end: float = 10.0


def _two_bursts(t: Tensor) -> Tensor:
    return 0.5 + 5 * (-((t - 2.5) ** 2)).exp() + 3 * (-((t - 7) ** 2) / 2).exp()


RATES = {
    "constant": Rate("2", lambda t: torch.full_like(t, 2.0), 2.0),
    "decaying": Rate("5 exp(-t / 3)", lambda t: 5 * (-t / 3).exp(), 5.0),
    "periodic": Rate("2 + 1.8 sin(2π t / 5)", lambda t: 2 + 1.8 * (2 * math.pi * t / 5).sin(), 3.8),
    "two bursts": Rate("1/2 + 5 exp(-(t - 2.5)²) + 3 exp(-(t - 7)² / 2)", _two_bursts, 6.0),
}
"""Shapes of rates, events per unit of time."""


class Events(NamedTuple):
    """Event times of several sequences, in rows that end with padding.

    Attributes:
        times: ascending, float64, shape (sequences, most); behind the last event of a row, its time again, or 0 in
            a row without events.
        lengths: how many events each row has, int64, shape (sequences,).
        end: when the observation ends.
    """

    times: Tensor
    lengths: Tensor
    end: float

    @property
    def mask(self) -> Tensor:
        """Which entries of `times` are events, bool."""
        return torch.arange(self.times.shape[1], device=self.lengths.device) < self.lengths[:, None]

    def to(self, device: str | torch.device) -> "Events":
        """The same sequences on a device."""
        return Events(self.times.to(device), self.lengths.to(device), self.end)

    def rows(self, chosen: Tensor) -> "Events":
        """Some of the sequences."""
        return Events(self.times[chosen], self.lengths[chosen], self.end)


def padded(rows: list[Tensor], end: float) -> Events:
    """Rows of ascending times as one tensor."""
    lengths = torch.tensor([len(row) for row in rows])
    times = torch.zeros(len(rows), max(int(lengths.max()), 1), dtype=torch.float64)
    for own, row in zip(times, rows, strict=True):
        if len(row):
            own[: len(row)], own[len(row) :] = row, row[-1]
    return Events(times, lengths, end)


def thinned(rate: Callable[[Tensor], Tensor], most: float, end: float, random: torch.Generator) -> Tensor:
    """Event times of one sequence, by thinning (Lewis & Shedler 1979): candidates at rate `most`, each kept with
    probability `rate(t) / most`.

    Raises:
        InvalidArgumentError: the rate is not between 0 and `most`.
    """
    count = int(torch.poisson(torch.tensor(most * end, dtype=torch.float64), generator=random))
    candidates = (end * torch.rand(count, generator=random, dtype=torch.float64)).sort().values
    rates = rate(candidates)
    if (rates < 0).any() or (rates > most).any():
        raise InvalidArgumentError(f"the rate must be between 0 and {most}, got {rates.min()} to {rates.max()}")
    return candidates[torch.rand(count, generator=random, dtype=torch.float64) * most < rates]


def draw_events(rate: str, sequences: int, seed: int) -> Events:
    """Draw sequences of events, independent given the rate.

    Args:
        rate: a name in `RATES`.
        sequences: how many.
        seed: another one gives independent data.

    Raises:
        UnknownNameError: there is no such rate.
        InvalidArgumentError: there are to be no sequences.
    """
    if rate not in RATES:
        raise UnknownNameError("rate", rate, RATES)
    if sequences < 1:
        raise InvalidArgumentError(f"sequences must be positive, got {sequences}")
    kind, random = RATES[rate], torch.Generator().manual_seed(seed)
    return padded([thinned(kind.rate, kind.most, kind.end, random) for _ in range(sequences)], kind.end)
