"""One solve for series that are observed at different times."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from neural_ode.errors import InvalidArgumentError

__all__ = ["Union", "union_of_times"]


class Union(NamedTuple):
    """All times of a batch, each once, and where those of each series are among them.

    The states of all series are solved for at all of these times, with steps in common; outputs between the ends of
    steps cost an interpolation, no evaluation of the dynamics.

    Attributes:
        times: ascending, float64, shape (n,); the first one is where the solve starts.
        place: for each series and time its number in `times`, int64, shape (series, m); where all series have the
            same times, one row expanded.
    """

    times: Tensor
    place: Tensor

    def pick(self, states: Tensor) -> Tensor:
        """The states of each series at its own times.

        Args:
            states: of all series at all times, shape (n, series, *state).

        Returns:
            Shape (series, m, *state); where all series have the same times, not contiguous.
        """
        series = states.shape[1]
        if self.place.stride(0) == 0:
            row = self.place[0]
            if len(row) and (row.diff() == 1).all():
                return states[row[0] : row[-1] + 1].transpose(0, 1)
            return states[row.to(states.device)].transpose(0, 1)
        row = self.place.to(states.device) * series + torch.arange(series, device=states.device)[:, None]
        found = states.flatten(0, 1).index_select(0, row.flatten())
        return found.view(*row.shape, *states.shape[2:])


def union_of_times(times: Tensor, start: float, *further: float) -> Union:
    """The union of the times of all series, of `start` and of `further` times.

    Args:
        times: shape (series, m); the order within a series does not matter, and times may repeat.
        start: where the solve starts.
        further: times wanted besides.

    Raises:
        InvalidArgumentError: a time lies before `start`.
    """
    if times.dim() != 2:
        raise InvalidArgumentError(f"times must have the shape (series, m), got {tuple(times.shape)}")
    values = times.detach().to("cpu", torch.float64)
    if (values < start).any() or min(further, default=start) < start:
        raise InvalidArgumentError(f"times must not lie before the start {start}, got {values.min().item()}")
    extra = torch.tensor([start, *further], dtype=torch.float64)
    if (values == values[:1]).all():
        values = values[:1]
    found, number = np.unique(torch.cat([extra, values.flatten()]).numpy(), return_inverse=True)
    place = torch.from_numpy(number[len(extra) :]).view(values.shape)
    return Union(torch.from_numpy(found), place.expand(times.shape))
