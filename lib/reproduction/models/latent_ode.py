"""The latent ODE: a generative model of time series whose latent state follows an ODE.

Chen et al. (2018), section 5, equations 11 to 13, and appendix E:

    z_t0 ~ N(0, I),    z_t1 … z_tN = ODESolve(z_t0, f, θ_f, t0 … tN),    x_ti ~ N(decoder(z_ti), σ²)
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from neural_ode import solve
from neural_ode.errors import InvalidArgumentError
from neural_ode.nn import Union, union_of_times
from neural_ode.solution import Statistics
from reproduction.models.gaussian import kl_to_standard_normal, normal_log_density, sample_normal
from reproduction.models.recognition import BackwardRNN

__all__ = ["LatentDynamics", "LatentODE", "Terms", "spiral_latent_ode"]


class LatentDynamics(nn.Module):
    """`dz/dt = f(z)`, a network with ELU that does not depend on time.

    Args:
        latent: dimension of `z`.
        units: of a hidden layer.
        layers: hidden layers: one in the paper, two in an example that was contributed to its authors' code.
        bounded: let it be `s · tanh(network)` with a learned speed `s` for each dimension: ours, not the paper's.

    Raises:
        InvalidArgumentError: there is no layer.
    """

    def __init__(self, latent: int, units: int = 20, layers: int = 1, bounded: bool = False):
        super().__init__()
        if layers < 1:
            raise InvalidArgumentError(f"layers must be 1 or more, got {layers}")
        parts: list[nn.Module] = [nn.Linear(latent, units), nn.ELU()]
        for _ in range(layers - 1):
            parts += [nn.Linear(units, units), nn.ELU()]
        self.net = nn.Sequential(*parts, nn.Linear(units, latent))
        self.speed = nn.Parameter(torch.ones(1, latent)) if bounded else None

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """Shapes: `t` (), `z` and the result (series, latent)."""
        slope: Tensor = self.net(z)
        return slope if self.speed is None else self.speed * slope.tanh()


class WithLength(nn.Module):
    """The dynamics of `(z, ∫ ‖f(z)‖² dt)`.

    Args:
        f: the dynamics of `z`.
    """

    def __init__(self, f: nn.Module):
        super().__init__()
        self.f = f

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Shapes: `t` (), of the state and the result (series, latent) and (series,)."""
        slope: Tensor = self.f(t, state[0])
        return slope, slope.square().sum(-1)


class Terms(NamedTuple):
    """Of the evidence lower bound of each series.

    Attributes:
        likelihood: `log p(x_t1 … x_tm | z)` for the sample, nats, shape (series,).
        divergence: `KL(q(z_t0 | x) ‖ p(z_t0))`, nats, shape (series,).
        length: `∫ ‖f(z(t))‖² dt` from `t0` to the last of all times, shape (series,), if it was asked for.
        gap: squared distance between the state at an observation and the mean that the recognition network gives
            to a series which begins there, shape (series,), if it was asked for.
    """

    likelihood: Tensor
    divergence: Tensor
    length: Tensor | None = None
    gap: Tensor | None = None


class LatentODE(nn.Module):
    """Recognition network, latent dynamics and decoder.

    Stacked models (`reproduction.models.stacked`) have a dimension before that of the series, everywhere.

    Args:
        recognition: maps times and observations to mean and log-variance of `z_t0`, as `BackwardRNN`.
        dynamics: `f(t, z)`.
        decoder: maps latent states, shape (…, latent), to means of observations, shape (…, data).
        noise: the standard deviation σ of an observation given its latent state.
        **how: keyword arguments of `neural_ode.solve`.

    Attributes:
        stats: what the last solve cost and, once it has run, its backward pass.
        how: may be changed between calls.

    Raises:
        InvalidArgumentError: `noise` is not positive.
    """

    def __init__(self, recognition: BackwardRNN, dynamics: nn.Module, decoder: nn.Module, noise: float, **how: Any):
        super().__init__()
        if not noise > 0:
            raise InvalidArgumentError(f"noise must be positive, got {noise}")
        self.recognition, self.dynamics, self.decoder = recognition, dynamics, decoder
        self.noise = noise
        self.how = how
        self.stats = Statistics()

    def trajectory(self, z0: Tensor, times: Tensor) -> Tensor:
        """Latent states from `z0` at the first of `times`, shape (n,); shape (n, series, latent)."""
        solution = solve(self.dynamics, z0, times, **self.how)
        self.stats = solution.stats
        assert isinstance(solution.y, Tensor)
        return solution.y

    def measured_trajectory(self, z0: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """As `trajectory`, with `∫ ‖f(z(t))‖² dt` up to each time, shape (n, series), from the same solve."""
        solution = solve(WithLength(self.dynamics), (z0, torch.zeros_like(z0[..., 0])), times, **self.how)
        self.stats = solution.stats
        states, lengths = solution.y
        return states, lengths

    def predict(self, z0: Tensor, grid: Tensor) -> Tensor:
        """Means of observations at times in common, the first of them `t0`; shape (series, n, data)."""
        means: Tensor = self.decoder(self.trajectory(z0, grid).movedim(0, -2))
        return means

    def elbo(self, values: Tensor, times: Tensor, union: Union | None = None, kl_weight: float = 1.0) -> Tensor:
        """The evidence lower bound of each series, in nats, with one sample of `z_t0`; shape (series,).

        `E_q[Σ log p(x_ti | z_ti)] - KL(q(z_t0 | x) ‖ p(z_t0))`, the KL divergence in closed form.

        Args:
            values: the observations, shape (series, m, data).
            times: theirs, since `t0 = 0`, shape (series, m).
            union: `union_of_times(times, 0.0)`, if it is known already.
            kl_weight: factor of the KL divergence: less than 1 gives no bound, but an easier start.
        """
        found = self.terms(values, times, union)
        return found.likelihood - kl_weight * found.divergence

    def terms(
        self,
        values: Tensor,
        times: Tensor,
        union: Union | None = None,
        *,
        with_length: bool = False,
        gap_at: Tensor | None = None,
    ) -> Terms:
        """The parts of the evidence lower bound, with one sample of `z_t0`.

        Args:
            values, times, union: see `elbo`.
            with_length: find the length of the paths too.
            gap_at: find the gap too, at these observations: their numbers, int64, shape (series,).
        """
        part = None
        if gap_at is None:
            mean, log_variance = self.recognition(times, values)
        else:
            mean, log_variance, part = self.recognition.also_from(times, values, gap_at)
        union = union_of_times(times.flatten(0, -2), 0.0) if union is None else union
        start, length, gap = sample_normal(mean, log_variance), None, None
        if with_length:
            solved, lengths = self.measured_trajectory(start, union.times)
            length = lengths[-1]
        else:
            solved = self.trajectory(start, union.times)
        picked = union.pick(solved.flatten(1, -2))
        states = picked.view(*times.shape, -1)
        likelihood = normal_log_density(values, self.decoder(states), 2 * math.log(self.noise)).sum((-2, -1))
        if part is not None and gap_at is not None:
            gap = (states.take_along_dim(gap_at[..., None, None], -2).squeeze(-2) - part).square().sum(-1)
        return Terms(likelihood, kl_to_standard_normal(mean, log_variance), length, gap)


def spiral_latent_ode(
    noise: float, *, layers: int = 1, bounded: bool = False, with_times: bool = True, **how: Any
) -> LatentODE:
    """The model of section 5.1: 25 recurrent units, 4 latent dimensions, 20 units in dynamics and decoder."""
    decoder = nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 2))
    return LatentODE(
        BackwardRNN(2, 25, 4, with_times), LatentDynamics(4, 20, layers, bounded), decoder, noise, **how
    )
