"""The states of an Elman network: what the models of series need of `torch.nn.RNN`, in half the time.

The states of all series after i inputs are the columns of one matrix, with the next input and a 1 below them. So a
step is one product, `h ← tanh([W_hh W_ih b] [h; x; 1])`, and so is each of its gradients. Nothing is allocated but
the states. With a first dimension for several networks (`reproduction.models.stacked`), each product is one of all.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["all_states", "joined_weights", "last_state", "states_of_series"]

_pull_tanh: Any = torch.ops.aten.tanh_backward.grad_input  # writes to memory that is there


def all_states(rnn: nn.Module, inputs: Tensor) -> Tensor:
    """The state after each input, from zeros on; shape (…, m, hidden).

    Args:
        rnn: an `nn.RNN` with one layer, one direction, tanh, biases and `batch_first`; or a `StackedRNN`.
        inputs: shape (…, m, features): a dimension for the series, and one for networks before it.
    """
    if inputs.device.type != "cpu" and isinstance(rnn, nn.RNN):
        states: Tensor = rnn(inputs)[0]
        return states
    return states_of_series(rnn, inputs).mT.movedim(0, -2)


def last_state(rnn: nn.Module, inputs: Tensor) -> Tensor:
    """The state after the last input, shape (…, hidden); see `all_states`."""
    if inputs.device.type != "cpu" and isinstance(rnn, nn.RNN):
        state: Tensor = rnn(inputs)[1]
        return state[0]
    return states_of_series(rnn, inputs)[-1].mT


def joined_weights(rnn: nn.Module) -> Tensor:
    """`[W_hh W_ih b]`, shape (…, hidden, hidden + features + 1)."""
    names = ("weight_hh_l0", "weight_ih_l0", "bias_ih_l0", "bias_hh_l0")
    by_state, by_input, bias, further = (getattr(rnn, name) for name in names)
    return torch.cat([by_state, by_input, (bias + further)[..., None]], dim=-1)


def states_of_series(rnn: nn.Module, inputs: Tensor) -> Tensor:
    """`all_states` as they lie in memory: shape (m, …, hidden, series)."""
    weights, columns = joined_weights(rnn), inputs.movedim(-2, 0).mT
    if inputs.device.type != "cpu":
        return _plain_states(weights, columns)
    states: Tensor = _States.apply(weights, columns)
    return states


class _States(torch.autograd.Function):
    """Shapes: weights (…, hidden, hidden + features + 1), inputs (m, …, features, series)."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, inputs: Tensor) -> Tensor:
        *_, hidden, rows = weights.shape
        columns = inputs.new_empty((len(inputs) + 1, *weights.shape[:-2], rows, inputs.shape[-1]))
        columns[0, ..., :hidden, :] = 0
        columns[:-1, ..., hidden:-1, :] = inputs
        columns[:-1, ..., -1, :] = 1
        for now, after in zip(columns[:-1], columns[1:, ..., :hidden, :], strict=True):
            torch.matmul(weights, now, out=after).tanh_()
        ctx.save_for_backward(weights, inputs, columns)
        return columns[1:, ..., :hidden, :].clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        weights, inputs, columns = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            return _pull_plain(weights, inputs, grad)
        with _without_denormals():
            return _pull(weights, columns, grad, ctx.needs_input_grad[1])


def _pull(weights: Tensor, columns: Tensor, grad: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
    """The gradients of the weights and, if they are `wanted`, of the inputs."""
    hidden = weights.shape[-2]
    by_weights, by_column = torch.zeros_like(weights), torch.zeros_like(columns[0])
    by_inputs = torch.empty_like(columns[:-1, ..., hidden:-1, :]) if wanted else None
    by_state, by_sum = by_column[..., :hidden, :], torch.empty_like(grad[0])
    add_product = by_weights.addmm_ if weights.dim() == 2 else by_weights.baddbmm_
    for i in reversed(range(len(grad))):
        by_state += grad[i]
        _pull_tanh(by_state, columns[i + 1, ..., :hidden, :], grad_input=by_sum)
        add_product(by_sum, columns[i].mT)
        torch.matmul(weights.mT, by_sum, out=by_column)
        if by_inputs is not None:
            by_inputs[i] = by_column[..., hidden:-1, :]
    return by_weights, by_inputs


def _pull_plain(weights: Tensor, inputs: Tensor, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The same by operations that autograd knows."""
    wanted = [x for x in (weights, inputs) if x.requires_grad]
    found = iter(torch.autograd.grad(_plain_states(weights, inputs), wanted, grad, create_graph=True))
    by_weights, by_inputs = (next(found) if x.requires_grad else None for x in (weights, inputs))
    return by_weights, by_inputs


def _plain_states(weights: Tensor, inputs: Tensor) -> Tensor:
    *networks, hidden, _ = weights.shape
    state = inputs.new_zeros((*networks, hidden, inputs.shape[-1]))
    one = torch.ones_like(state[..., :1, :])
    states = []
    for x in inputs:
        state = torch.tanh(weights @ torch.cat([state, x, one], dim=-2))
        states.append(state)
    return torch.stack(states)


@contextmanager
def _without_denormals() -> Iterator[None]:
    """Numbers below the smallest normal one count as zero in here.

    Gradients vanish on their way back through a recurrent network (Bengio et al. 1994, *Learning Long-Term
    Dependencies with Gradient Descent is Difficult*), and a CPU takes tens of times as long for products with
    denormal numbers.
    """
    smallest = torch.tensor(torch.finfo(torch.float32).tiny)
    kept = bool(smallest / 2 > 0) and torch.set_flush_denormal(True)
    try:
        yield
    finally:
        if kept:
            torch.set_flush_denormal(False)
