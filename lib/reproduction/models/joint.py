"""A latent ODE whose observations come at the events of a Poisson process, which tell of the latent state too.

Chen et al. (2018), section 5: the likelihood of the event times combines with that of the data into a model of
both the observations and the times at which they were made.
"""

import math
from typing import Any

from torch import Tensor, nn

from reproduction.models.gaussian import kl_to_standard_normal, normal_log_density, sample_normal
from reproduction.models.latent_ode import LatentDynamics
from reproduction.models.poisson import PoissonODE, RateNetwork
from reproduction.models.recognition import BackwardRNN

__all__ = ["JointModel"]


class JointModel(nn.Module):
    """Recognition network, latent dynamics, decoder and rate.

    Args:
        data: dimension of an observation.
        latent: dimension of `z`.
        noise: the standard deviation σ of an observation given its latent state.
        use_times: count the likelihood of the event times; without it the model is that of the observations alone,
            and its rate learns nothing.
        **how: keyword arguments of `neural_ode.solve`.
    """

    def __init__(self, data: int, latent: int, noise: float, use_times: bool = True, **how: Any):
        super().__init__()
        self.recognition = BackwardRNN(data, 25, latent)
        self.process = PoissonODE(LatentDynamics(latent), RateNetwork(latent), **how)
        self.decoder = nn.Sequential(nn.Linear(latent, 20), nn.ReLU(), nn.Linear(20, data))
        self.noise, self.use_times = noise, use_times

    def elbo(self, values: Tensor, times: Tensor, lengths: Tensor, mask: Tensor, end: float) -> Tensor:
        """The evidence lower bound of each series, in nats, with one sample of `z_t0`; shape (series,).

        Args:
            values: the observations, shape (series, most, data).
            times: when they were made, ascending, shape (series, most).
            lengths, mask: which of them count, the first ones of each row; shapes (series,), (series, most).
            end: when the observation ends.
        """
        mean, log_variance = self.recognition(times, values, lengths)
        solved = self.process.solve(sample_normal(mean, log_variance), times, mask, end)
        densities = normal_log_density(values, self.decoder(solved.at_events), 2 * math.log(self.noise)).sum(2)
        bound = (densities * mask).sum(1) - kl_to_standard_normal(mean, log_variance)
        return bound + solved.log_likelihood if self.use_times else bound
