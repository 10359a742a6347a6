"""The recognition network: a recurrent network that reads a series backwards in time.

Chen et al. (2018), section 5 and Figure 6: it ends at `t0`, with the parameters of `q(z_t0 | x_t1 … x_tN)`.
"""

import torch
from torch import Tensor, nn

from neural_ode.errors import InvalidArgumentError
from reproduction.models.elman import joined_weights, last_state, states_of_series

__all__ = ["BackwardRNN"]


class BackwardRNN(nn.Module):
    """An Elman network, tanh, from the last observation to the first; its last state gives a normal distribution.

    Args:
        data: dimension of an observation.
        hidden: units.
        latent: dimension of `z_t0`.
        with_times: let each input hold the time back to the observation before it, for the first one to `t0`. With
            the observations alone, series that differ in their times only look the same.
    """

    def __init__(self, data: int, hidden: int, latent: int, with_times: bool = True):
        super().__init__()
        self.with_times = with_times
        self.rnn = nn.RNN(data + with_times, hidden, batch_first=True)
        self.out = nn.Linear(hidden, 2 * latent)

    def forward(self, times: Tensor, values: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance of `z_t0`, both of shape (series, latent).

        Stacked models (`reproduction.models.stacked`) have a dimension before that of the series, everywhere.

        Args:
            times: since `t0`, ascending, shape (series, m).
            values: the observations, shape (series, m, data).
            lengths: how many of the m are observations, the first ones, where series differ in that; at least 1,
                int64, shape (series,).

        Raises:
            InvalidArgumentError: a length is below 1 or above m.
        """
        inputs = self._inputs(times, values)
        if lengths is None:
            state = last_state(self.rnn, inputs.flip(-2))
        else:
            if lengths.min() < 1 or lengths.max() > inputs.shape[1]:
                raise InvalidArgumentError(f"lengths must be 1 to {inputs.shape[1]}, got {lengths.tolist()}")
            place = torch.arange(inputs.shape[1], device=lengths.device)
            backwards = (lengths[:, None] - 1 - place).clamp(min=0).to(inputs.device)
            turned = inputs.take_along_dim(backwards[..., None], 1)
            # PyTorch wants lengths on the CPU.
            packed = nn.utils.rnn.pack_padded_sequence(
                turned, lengths.cpu(), batch_first=True, enforce_sorted=False
            )
            state = self.rnn(packed)[1][0]
        mean, log_variance = self.out(state).chunk(2, dim=-1)
        return mean, log_variance

    def also_from(self, times: Tensor, values: Tensor, first: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `forward`, and what the network would say of a part of each series.

        It reads backwards, so on its way to the beginning of a series it comes by each observation; only the last
        step of a series that begins there is another one.

        Args:
            times, values: see `forward`.
            first: the number of the observation that the part begins with, which is its `t0`; int64, shape
                (series,).

        Returns:
            Mean and logarithm of the variance of `z_t0`, and the mean of `z` at the first observation of the
            part; all of shape (series, latent).
        """
        inputs = self._inputs(times, values)
        states = states_of_series(self.rnn, inputs.flip(-2))  # (m, …, hidden, series)
        before = torch.cat([torch.zeros_like(states[:1]), states[:-1]])
        place = (times.shape[-1] - 1 - first)[None, ..., None, :]
        state = before.take_along_dim(place, 0)[0].mT
        seen = inputs.take_along_dim(first[..., None, None], -2).squeeze(-2)
        if self.with_times:
            seen = torch.cat([seen[..., :-1], torch.zeros_like(seen[..., -1:])], dim=-1)
        column = torch.cat([state, seen, torch.ones_like(state[..., :1])], dim=-1)
        mean, log_variance = self.out(states[-1].mT).chunk(2, dim=-1)
        part: Tensor = self.out(torch.tanh(column @ joined_weights(self.rnn).mT)).chunk(2, dim=-1)[0]
        return mean, log_variance, part

    def _inputs(self, times: Tensor, values: Tensor) -> Tensor:
        if not self.with_times:
            return values
        gaps = torch.diff(times, dim=-1, prepend=torch.zeros_like(times[..., :1]))
        return torch.cat([values, gaps[..., None].to(values)], dim=-1)
