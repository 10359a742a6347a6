"""The last state of an Elman network: what the recognition network needs of `torch.nn.RNN`, in half the time.

The states of all series after i inputs are the columns of one matrix, with the next input and a 1 below them. So a
step is one product, `h ← tanh([W_hh W_ih b] [h; x; 1])`, and so is each of its gradients. Nothing is allocated but
the states.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["last_state"]

_pull_tanh: Any = torch.ops.aten.tanh_backward.grad_input  # writes to memory that is there


def last_state(rnn: nn.RNN, inputs: Tensor) -> Tensor:
    """The state after the last input, from zeros on; shape (series, hidden).

    Args:
        rnn: one layer, one direction, tanh, with biases, `batch_first`.
        inputs: shape (series, m, features).
    """
    if inputs.device.type != "cpu":
        state: Tensor = rnn(inputs)[1]
        return state[0]
    by_input, by_state, bias, further = rnn.all_weights[0]
    weights = torch.cat([by_state, by_input, (bias + further)[:, None]], dim=1)
    last: Tensor = _LastState.apply(weights, inputs.permute(1, 2, 0)).T
    return last


class _LastState(torch.autograd.Function):
    """Shapes: weights (hidden, hidden + features + 1), inputs (m, features, series), result (hidden, series)."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, inputs: Tensor) -> Tensor:
        hidden, rows = weights.shape
        columns = inputs.new_empty((len(inputs) + 1, rows, inputs.shape[2]))
        columns[0, :hidden] = 0
        columns[:-1, hidden:-1] = inputs
        columns[:-1, -1] = 1
        for now, after in zip(columns[:-1], columns[1:, :hidden], strict=True):
            torch.mm(weights, now, out=after).tanh_()
        ctx.save_for_backward(weights, inputs, columns)
        return columns[-1, :hidden].clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        weights, inputs, columns = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            return _pull_plain(weights, inputs, grad)
        with _without_denormals():
            return _pull(weights, columns, grad, ctx.needs_input_grad[1])


def _pull(weights: Tensor, columns: Tensor, grad: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
    """The gradients of the weights and, if they are `wanted`, of the inputs."""
    hidden = len(weights)
    by_weights, by_column = torch.zeros_like(weights), torch.empty_like(columns[0])
    by_inputs = torch.empty_like(columns[:-1, hidden:-1]) if wanted else None
    by_column[:hidden] = grad
    by_state, by_sum = by_column[:hidden], torch.empty_like(by_column[:hidden])
    for i in reversed(range(len(columns) - 1)):
        _pull_tanh(by_state, columns[i + 1, :hidden], grad_input=by_sum)
        by_weights.addmm_(by_sum, columns[i].T)
        torch.mm(weights.T, by_sum, out=by_column)
        if by_inputs is not None:
            by_inputs[i] = by_column[hidden:-1]
    return by_weights, by_inputs


def _pull_plain(weights: Tensor, inputs: Tensor, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The same by operations that autograd knows."""
    state, one = inputs.new_zeros((len(weights), inputs.shape[2])), inputs.new_ones((1, inputs.shape[2]))
    for x in inputs:
        state = torch.tanh(weights @ torch.cat([state, x, one]))
    wanted = [x for x in (weights, inputs) if x.requires_grad]
    found = iter(torch.autograd.grad(state, wanted, grad, create_graph=True))
    by_weights, by_inputs = (next(found) if x.requires_grad else None for x in (weights, inputs))
    return by_weights, by_inputs


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
