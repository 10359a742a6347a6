"""The latent ODE: a generative model of time series whose latent state follows an ODE.

Chen et al. (2018), section 5, equations 11 to 13, and appendix E:

    z_t0 ~ N(0, I),    z_t1 … z_tN = ODESolve(z_t0, f, θ_f, t0 … tN),    x_ti ~ N(decoder(z_ti), σ²)
"""

import math
from typing import Any

from torch import Tensor, nn

from neural_ode import solve
from neural_ode.errors import InvalidArgumentError
from neural_ode.nn import Union, union_of_times
from neural_ode.solution import Statistics
from reproduction.models.gaussian import kl_to_standard_normal, normal_log_density, sample_normal
from reproduction.models.recognition import BackwardRNN

__all__ = ["LatentDynamics", "LatentODE", "spiral_latent_ode"]


class LatentDynamics(nn.Module):
    """`dz/dt = f(z)`, a network with ELU that does not depend on time.

    Args:
        latent: dimension of `z`.
        units: of a hidden layer.
        layers: hidden layers: one in the paper, two in an example that was contributed to its authors' code.

    Raises:
        InvalidArgumentError: there is no layer.
    """

    def __init__(self, latent: int, units: int = 20, layers: int = 1):
        super().__init__()
        if layers < 1:
            raise InvalidArgumentError(f"layers must be 1 or more, got {layers}")
        parts: list[nn.Module] = [nn.Linear(latent, units), nn.ELU()]
        for _ in range(layers - 1):
            parts += [nn.Linear(units, units), nn.ELU()]
        self.net = nn.Sequential(*parts, nn.Linear(units, latent))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """Shapes: `t` (), `z` and the result (series, latent)."""
        slope: Tensor = self.net(z)
        return slope


class LatentODE(nn.Module):
    """Recognition network, latent dynamics and decoder.

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

    def __init__(self, recognition: nn.Module, dynamics: nn.Module, decoder: nn.Module, noise: float, **how: Any):
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

    def predict(self, z0: Tensor, grid: Tensor) -> Tensor:
        """Means of observations at times in common, the first of them `t0`; shape (series, n, data)."""
        means: Tensor = self.decoder(self.trajectory(z0, grid).transpose(0, 1))
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
        mean, log_variance = self.recognition(times, values)
        union = union_of_times(times, 0.0) if union is None else union
        states = union.pick(self.trajectory(sample_normal(mean, log_variance), union.times))
        likelihood = normal_log_density(values, self.decoder(states), 2 * math.log(self.noise)).sum((1, 2))
        return likelihood - kl_weight * kl_to_standard_normal(mean, log_variance)


def spiral_latent_ode(noise: float, *, layers: int = 1, with_times: bool = True, **how: Any) -> LatentODE:
    """The model of section 5.1: 25 recurrent units, 4 latent dimensions, 20 units in dynamics and decoder."""
    decoder = nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 2))
    return LatentODE(BackwardRNN(2, 25, 4, with_times), LatentDynamics(4, 20, layers), decoder, noise, **how)
