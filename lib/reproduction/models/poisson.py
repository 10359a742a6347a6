"""An inhomogeneous Poisson process whose rate is a function of a latent state that follows an ODE.

Chen et al. (2018), section 5, *Poisson Process likelihoods*:

    log p(t1 … tN | t_start, t_end) = Σ log λ(z(t_i)) - ∫ λ(z(t)) dt

The integral is one more component of the state, so that the trajectory and the likelihood come out of one solve.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neural_ode import solve
from neural_ode.errors import InvalidArgumentError
from neural_ode.nn import union_of_times
from neural_ode.solution import Statistics

__all__ = ["PoissonODE", "RateNetwork", "Solved", "poisson_log_likelihood"]

State = tuple[Tensor, Tensor]


class RateNetwork(nn.Module):
    """`λ(z) > 0`, one hidden layer with tanh and a softplus.

    Args:
        latent: dimension of `z`.
        units: hidden units.
        gain: by how much the first layer's initial weights exceed PyTorch's: larger ones let the rate vary more
            along a trajectory from the start.
    """

    def __init__(self, latent: int, units: int = 32, gain: float = 3.0):
        super().__init__()
        hidden = nn.Linear(latent, units)
        with torch.no_grad():
            hidden.weight.mul_(gain)
            hidden.bias.mul_(gain**2)
        self.net = nn.Sequential(hidden, nn.Tanh(), nn.Linear(units, 1))

    def forward(self, z: Tensor) -> Tensor:
        """`z` of shape (…, latent); events per unit of time, shape (…)."""
        return F.softplus(self.net(z)[..., 0])


class Solved(NamedTuple):
    """What one solve gives.

    Attributes:
        log_likelihood: of the event times of each series, in nats, shape (series,).
        at_events: the latent states at the times given, shape (series, most, latent).
        stats: what the solve cost.
    """

    log_likelihood: Tensor
    at_events: Tensor
    stats: Statistics


class PoissonODE(nn.Module):
    """Latent dynamics with the integral of a rate.

    Args:
        dynamics: `dz/dt = f(t, z)`.
        rate: maps latent states, shape (…, latent), to rates, shape (…).
        **how: keyword arguments of `neural_ode.solve`. The integral is under error control like the state, and it
            has to be: with loose tolerances (1e-3) training finds rates whose peaks the solver steps over, and the
            likelihood it reports is not that of the rate.
    """

    def __init__(self, dynamics: nn.Module, rate: nn.Module, **how: Any):
        super().__init__()
        self.dynamics, self.rate = dynamics, rate
        self.how = how

    def forward(self, t: Tensor, state: State) -> State:
        """The derivatives of `z`, shape (series, latent), and of `∫ λ`, shape (series,)."""
        z, _ = state
        return self.dynamics(t, z), self.rate(z)

    def solve(self, z0: Tensor, times: Tensor, mask: Tensor, end: float) -> Solved:
        """The log-likelihood of event times from 0 to `end`, and the trajectory at them, in one solve.

        Args:
            z0: the latent states at time 0, shape (series, latent).
            times: a row of events for each series, shape (series, most).
            mask: which of them are events and not padding, bool, shape (series, most).
            end: when the observation ends.

        Raises:
            InvalidArgumentError: there are not as many rows as series, or times after the end.
        """
        if len(z0) != len(times):
            raise InvalidArgumentError(f"{len(times)} rows of events for {len(z0)} initial states")
        if times.max() > end:
            raise InvalidArgumentError(f"events until {times.max()} must not be after the end {end}")
        union = union_of_times(times, 0.0, end)
        solution = solve(self, (z0, z0.new_zeros(len(z0))), union.times, **self.how)
        trajectory, integral = solution.y
        at_events = union.pick(trajectory)
        likelihood = poisson_log_likelihood(self.rate(at_events), integral[-1], mask)
        return Solved(likelihood, at_events, solution.stats)

    def rates(self, z0: Tensor, times: Tensor) -> Tensor:
        """The rate of each series at times in common, the first of them 0; shape (series, n)."""
        found: Tensor = self.rate(solve(self.dynamics, z0, times, **self.how).y)
        return found.T


def poisson_log_likelihood(rates: Tensor, integral: Tensor, mask: Tensor) -> Tensor:
    """`Σ log λ(t_i) - ∫ λ` of each series, in nats, shape (series,).

    Args:
        rates: at the events, positive, shape (series, most).
        integral: of the rate over the time of observation, shape (series,).
        mask: which of `rates` count, bool, shape (series, most).
    """
    logs = torch.where(mask, rates, torch.ones_like(rates)).log()
    return logs.sum(1) - integral
