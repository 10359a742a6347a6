"""Whether the latent paths of a series' consecutive windows join: what extrapolation hangs on.

A latent ODE is trained on windows. It predicts what follows a window by flowing on from the window's path, so it is
right if the state that it arrives at is the one that stands for the next window. Nothing in the evidence lower
bound asks for that: a window may as well have a place of its own, however far from where the path before it ends.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from reproduction.data.spirals import Spirals
from reproduction.measure.prediction import rmse
from reproduction.models.latent_ode import LatentODE

__all__ = ["Joining", "joining", "next_window"]


class Joining(NamedTuple):
    """Of one model on some series.

    Attributes:
        distance: between the state that flows to the end of a window and the mean of the recognition network for
            the next one, root mean square over series.
        spread: of the means of first states round their mean, root mean square: the size of the latent space in
            use.
        beyond: RMSE of what is predicted beyond the window from the window.
        encoded: RMSE of the same points predicted from the next window's mean.
    """

    distance: float
    spread: float
    beyond: float
    encoded: float

    @property
    def gap(self) -> float:
        """The distance over the spread."""
        return self.distance / self.spread


def next_window(data: Spirals) -> tuple[Tensor, Tensor]:
    """Times and observations of the windows that follow, observed at the same places of the window.

    Returns:
        Times since the beginning of that window, shape (series, m), and observations, shape (series, m, 2).
    """
    later = (data.observed + data.window)[..., None]
    return data.times, data.noisy.take_along_dim(later, 1)


@torch.no_grad()
def joining(model: LatentODE, data: Spirals) -> Joining:
    """Measure how the paths of windows join with those of the next ones.

    Args:
        model: on the CPU.
        data: series whose points beyond the window are as many as in it.
    """
    window = data.window
    start, following = model.recognition(data.times, data.values)[0], model.recognition(*next_window(data))[0]
    path = model.trajectory(start, data.grid)
    arrived = path[window]
    truth = data.truth[:, window:]
    return Joining(
        distance=_root_mean_square(arrived - following),
        spread=_root_mean_square(start - start.mean(0)),
        beyond=rmse(model.decoder(path[window:].transpose(0, 1)), truth),
        encoded=rmse(model.predict(following, data.grid[:window]), truth),
    )


def _root_mean_square(x: Tensor) -> float:
    return math.sqrt(float(x.double().square().sum(-1).mean()))
