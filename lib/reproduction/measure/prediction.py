"""Errors of predictions of spirals: what Table 2 reports, in each way it can be read."""

from collections.abc import Mapping

import torch
from torch import Tensor

from reproduction.data.spirals import Spirals
from reproduction.models.latent_ode import LatentODE
from reproduction.models.rnn import NextObservationRNN

__all__ = ["latent_ode_errors", "latent_ode_predictions", "rmse", "rnn_errors"]


def rmse(predicted: Tensor, truth: Tensor) -> float:
    """Root of the mean square over series, points and coordinates."""
    return float((predicted - truth).double().square().mean().sqrt())


@torch.no_grad()
def latent_ode_predictions(model: LatentODE, spirals: Spirals) -> Tensor:
    """At all points of the window and beyond, from the mean of `q(z_t0 | x)`; shape (series, points, 2).

    Computed where the model is, and returned where the series are.
    """
    home = spirals.truth.device
    there = spirals.to(next((p.device for p in model.parameters()), home))
    mean, _ = model.recognition(there.times, there.values)
    return model.predict(mean, there.grid).to(home)


def latent_ode_errors(model: LatentODE, spirals: Spirals) -> Mapping[str, float]:
    """RMSE `inside` the window and `beyond` it against the truth, and beyond it against `noisy` points."""
    predicted, split = latent_ode_predictions(model, spirals), spirals.window
    return {
        "inside": rmse(predicted[:, :split], spirals.truth[:, :split]),
        "beyond": rmse(predicted[:, split:], spirals.truth[:, split:]),
        "noisy": rmse(predicted[:, split:], spirals.noisy[:, split:]),
    }


@torch.no_grad()
def rnn_errors(model: NextObservationRNN, spirals: Spirals) -> Mapping[str, float]:
    """RMSE of a recurrent network in the senses that *predictive* can have.

    Returns:
        `beyond` and `noisy`: it goes on from the window on its own output, against the truth and noisy points.
        `point by point`: the same with a step for each point, for a network with times.
        `one step`: beyond the window it sees further observations, as many as in the window and at the same places,
        and predicts each from those before it; against the truth. `one step, noisy`: against the observations.
    """
    values, times, split = spirals.values, spirals.times, spirals.window
    wanted, truth = spirals.grid[split:], spirals.truth[:, split:]
    predicted = model.extrapolate(values, times, wanted)
    later = (spirals.observed + split)[..., None]
    further = spirals.noisy.take_along_dim(later, 1)
    later_times = spirals.grid[spirals.observed + split]
    mean, _ = model(torch.cat([values, further], dim=1), torch.cat([times, later_times], dim=1))
    ahead = mean[:, values.shape[1] - 1 :]
    errors = {
        "beyond": rmse(predicted, truth),
        "noisy": rmse(predicted, spirals.noisy[:, split:]),
        "one step": rmse(ahead, spirals.truth.take_along_dim(later, 1)),
        "one step, noisy": rmse(ahead, further),
    }
    if model.with_times:
        errors["point by point"] = rmse(model.extrapolate(values, times, wanted, point_by_point=True), truth)
    return errors
