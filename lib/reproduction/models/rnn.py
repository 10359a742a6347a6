"""The baselines of the latent ODE: recurrent networks that predict the next observation.

Chen et al. (2018), section 5.1: 25 hidden units, trained on the negative Gaussian log-likelihood; a second one gets
the time to the next observation too.
"""

import torch
from torch import Tensor, nn

from neural_ode.errors import InvalidArgumentError
from reproduction.models.elman import all_states
from reproduction.models.gaussian import normal_log_density

__all__ = ["NextObservationRNN"]


class NextObservationRNN(nn.Module):
    """An Elman network, tanh: reads observations and gives a normal distribution of the next one.

    Args:
        data: dimension of an observation.
        hidden: units.
        with_times: let each input hold the time to the next observation, the one that is predicted.
    """

    def __init__(self, data: int, hidden: int, with_times: bool):
        super().__init__()
        self.with_times = with_times
        self.rnn = nn.RNN(data + with_times, hidden, batch_first=True)
        self.out = nn.Linear(hidden, 2 * data)

    def _inputs(self, values: Tensor, gaps: Tensor) -> Tensor:
        return torch.cat([values, gaps[..., None].to(values)], dim=-1) if self.with_times else values

    def _step(self, values: Tensor, gaps: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        hidden, state = self.rnn(self._inputs(values, gaps), state)
        mean, log_variance = self.out(hidden).chunk(2, dim=-1)
        return mean, log_variance, state

    def forward(self, values: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """One step ahead: what is expected of each observation but the first, from those before it.

        Args:
            values: the observations, shape (series, m, data).
            times: theirs, ascending, shape (series, m). Stacked networks (`reproduction.models.stacked`) have a
                dimension before that of the series.

        Returns:
            Mean and logarithm of the variance, both of shape (series, m - 1, data).

        Raises:
            InvalidArgumentError: there are fewer than two observations.
        """
        if values.shape[-2] < 2:
            raise InvalidArgumentError(f"to predict the next observation takes two, got {values.shape[-2]}")
        states = all_states(self.rnn, self._inputs(values[..., :-1, :], times.diff(dim=-1)))
        mean, log_variance = self.out(states).chunk(2, dim=-1)
        return mean, log_variance

    def log_likelihood(self, values: Tensor, times: Tensor) -> Tensor:
        """Of all observations but the first, given those before them, in nats; shape (series,)."""
        mean, log_variance = self(values, times)
        return normal_log_density(values[..., 1:, :], mean, log_variance).sum((-2, -1))

    def extrapolate(self, values: Tensor, times: Tensor, wanted: Tensor, point_by_point: bool = False) -> Tensor:
        """Go on from the last observation, each mean being the next input.

        A step lasts as long as the mean time between the observations, and what lies between two steps is
        interpolated: for a network without a clock that is all there is, for one with times it is what it has been
        trained on.

        Args:
            values: the observations, shape (series, m, data).
            times: theirs, ascending, shape (series, m).
            wanted: later times, ascending, shape (n,).
            point_by_point: step from each wanted time to the next instead; for a network with times.

        Returns:
            Shape (series, n, data).

        Raises:
            InvalidArgumentError: a wanted time is not later than the observations, or the network has no times to
                step point by point with.
        """
        last = times[:, -1:]
        if not (wanted[0] > last).all():
            raise InvalidArgumentError(f"wanted times must be later than observations, got {wanted[0].item()}")
        if point_by_point:
            if not self.with_times:
                raise InvalidArgumentError("point_by_point=True needs a network with times")
            marks = torch.cat([last, wanted.expand(len(values), -1).to(last)], dim=1)
            return self._run(values, times, marks.diff(dim=1))
        gap = (last - times[:, :1]) / max(times.shape[1] - 1, 1)
        steps = (wanted - last) / gap
        means = self._run(values, times, gap.expand(-1, int(steps.max().ceil())))
        nodes = torch.cat([values[:, -1:], means], dim=1)
        left = steps.floor().long().clamp(max=means.shape[1] - 1)
        share = (steps - left).to(values)[..., None]
        below, above = (nodes.take_along_dim((left + k)[..., None], 1) for k in (0, 1))
        return below + share * (above - below)

    def _run(self, values: Tensor, times: Tensor, gaps: Tensor) -> Tensor:
        """One mean for each column of `gaps`, the times from the last observation on; (series, columns, data)."""
        first = torch.cat([times.diff(dim=1), gaps[:, :1]], dim=1)
        mean, _, state = self._step(values, first, None)
        means = [mean[:, -1:]]
        for column in gaps[:, 1:].unbind(1):
            mean, _, state = self._step(means[-1], column[:, None], state)
            means.append(mean)
        return torch.cat(means, dim=1)
