"""The recognition network: a recurrent network that reads a series backwards in time.

Chen et al. (2018), section 5 and Figure 6: it ends at `t0`, with the parameters of `q(z_t0 | x_t1 … x_tN)`.
"""

import torch
from torch import Tensor, nn

from neural_ode.errors import InvalidArgumentError
from reproduction.models.elman import last_state

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

        Args:
            times: since `t0`, ascending, shape (series, m).
            values: the observations, shape (series, m, data).
            lengths: how many of the m are observations, the first ones, where series differ in that; at least 1,
                int64, shape (series,).

        Raises:
            InvalidArgumentError: a length is below 1 or above m.
        """
        inputs = values
        if self.with_times:
            gaps = torch.diff(times, dim=1, prepend=torch.zeros_like(times[:, :1]))
            inputs = torch.cat([values, gaps[..., None].to(values)], dim=-1)
        if lengths is None:
            state = last_state(self.rnn, inputs.flip(1))
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
