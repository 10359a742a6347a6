"""The last state of an Elman network, against `torch.nn.RNN`."""

import pytest
import torch
from torch import Tensor, nn

from reproduction.models.elman import last_state

RNN = nn.RNN(3, 5, batch_first=True).double()
INPUTS = torch.randn(7, 9, 3, dtype=torch.float64)
WEIGHTS = torch.randn(7, 5, dtype=torch.float64)


def by_pytorch(inputs: Tensor) -> Tensor:
    return RNN(inputs)[1][0]


def by_columns(inputs: Tensor) -> Tensor:
    return last_state(RNN, inputs)


@pytest.mark.parametrize("observations", [1, 2, 9])
def test_state_and_gradients_are_those_of_pytorch(observations: int) -> None:
    found = []
    for state in (by_pytorch, by_columns):
        inputs = INPUTS[:, :observations].clone().requires_grad_()
        value = state(inputs)
        found.append((value, *torch.autograd.grad((value * WEIGHTS).sum(), [inputs, *RNN.parameters()])))
    for a, b in zip(*found, strict=True):
        assert observations == 1 or a.abs().max() > 0  # one observation says nothing of the state before
        torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-14)


def test_inputs_need_no_gradient_and_are_left_alone() -> None:
    before = INPUTS.clone()
    expected, found = (
        torch.autograd.grad(state(INPUTS).sum(), RNN.weight_hh_l0) for state in (by_pytorch, by_columns)
    )
    torch.testing.assert_close(found, expected)
    assert torch.equal(INPUTS, before)
    with torch.no_grad():
        torch.testing.assert_close(by_columns(INPUTS), by_pytorch(INPUTS))


def test_second_derivatives() -> None:
    found = []
    for state in (by_pytorch, by_columns):
        inputs = INPUTS.clone().requires_grad_()
        over = [inputs, *RNN.parameters()]
        first = torch.autograd.grad((state(inputs) * WEIGHTS).sum(), over, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), over))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-10, atol=1e-12)
    (by_weight,) = torch.autograd.grad(by_columns(INPUTS).sum(), RNN.weight_hh_l0, create_graph=True)
    assert by_weight.requires_grad


@pytest.mark.parametrize("flushed", [False, True])
def test_vanishing_gradients_cost_no_denormal_numbers(flushed: bool) -> None:
    """And the processor counts them afterwards as it did before."""
    rnn = nn.RNN(1, 4, batch_first=True)
    with torch.no_grad():
        rnn.weight_hh_l0.copy_(1e-5 * torch.eye(4))  # the gradient is 1e-40 after eight steps
    inputs = torch.zeros(2, 12, 1, requires_grad=True)
    smallest = torch.tensor(torch.finfo(torch.float32).tiny)
    torch.set_flush_denormal(flushed)
    try:
        (gradient,) = torch.autograd.grad(last_state(rnn, inputs).sum(), inputs)
        assert ((smallest / 2) == 0) == flushed
    finally:
        torch.set_flush_denormal(False)
    sizes = gradient.abs()
    assert (sizes[:, -6:] > 0).all()
    assert ((sizes == 0) | (sizes >= smallest)).all()
