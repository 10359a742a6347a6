"""The adjoint method where every row of a batch has steps of its own, forwards and backwards."""

import pytest
import torch
from torch import Tensor, nn

from neural_ode import Backsolve, InvalidArgumentError, solve

TIGHT = {"rtol": 1e-10, "atol": 1e-11}


class Field(nn.Module):
    """Rows of two numbers; how fast they turn depends on the row, so that rows need steps of different lengths."""

    def __init__(self, dtype: torch.dtype = torch.float64):
        super().__init__()
        torch.manual_seed(4)
        self.linear = nn.Linear(3, 2, dtype=dtype)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        wave = torch.sin(3 * t).to(y.dtype).expand(y.shape[0])[:, None]
        fast = 1 + 8 * torch.tanh((y * y.conj()).real[:, :1])
        return fast * torch.tanh(self.linear(torch.cat([y, wave], 1)))


def rows(dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    scale = torch.tensor([0.01, 0.3, 3.0, 1.0], dtype=torch.float64)[:, None]
    return (scale * torch.randn(4, 2, dtype=dtype, generator=generator)).requires_grad_()


SHARED = torch.tensor([0.1, 0.35, 0.4, 1.0], dtype=torch.float64)
OWN = torch.stack([SHARED, SHARED * 2, SHARED + 1, SHARED / 3])


def found(field: nn.Module, y0: Tensor, t: Tensor, gradient: object, **how) -> list[Tensor]:
    t = t.clone().requires_grad_()
    solution = solve(field, y0, t, gradient=gradient, **{"batched": True, **TIGHT, **how})
    weights = torch.linspace(0.2, 1.5, solution.y.numel(), dtype=torch.float64).reshape(solution.y.shape)
    loss = (solution.y * weights).abs().square().sum()
    return list(torch.autograd.grad(loss, [y0, t, *field.parameters()]))


@pytest.mark.parametrize("t", [SHARED, OWN, -SHARED, -OWN], ids=["shared", "own", "reversed", "own reversed"])
@pytest.mark.parametrize("method", ["dopri5", "tsit5", "bosh3"])
def test_it_is_the_gradient(t: Tensor, method: str) -> None:
    field, y0 = Field(), rows()
    how = {"rtol": 1e-8, "atol": 1e-9} if method == "bosh3" else {}
    expected = found(field, y0, t, "direct", **how)
    for one, other in zip(found(field, y0, t, "backsolve", method=method, **how), expected, strict=True):
        assert one.shape == other.shape
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)


def test_it_is_that_of_separate_solves() -> None:
    field, y0 = Field(), rows()
    together = found(field, y0, OWN, Backsolve())
    total = [torch.zeros_like(p) for p in field.parameters()]
    weights = torch.linspace(0.2, 1.5, 4 * 4 * 2, dtype=torch.float64).reshape(4, 4, 2)
    for row in range(4):
        start = y0[row : row + 1].detach().requires_grad_()
        y = solve(field, start, OWN[row], gradient="backsolve", **TIGHT).y
        loss = (y * weights[:, row : row + 1]).square().sum()
        of_start, *of_params = torch.autograd.grad(loss, [start, *field.parameters()])
        assert torch.allclose(of_start[0], together[0][row], rtol=1e-6, atol=1e-7)
        total = [a + b for a, b in zip(total, of_params, strict=True)]
    for one, other in zip(together[2:], total, strict=True):
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-7)


def test_complex_states() -> None:
    field, y0 = Field(torch.complex128), rows(torch.complex128)
    expected = found(field, y0, SHARED, "direct")
    for one, other in zip(found(field, y0, SHARED, "backsolve"), expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-6)


def test_tuple_states_tolerances_for_each_part_and_a_norm() -> None:
    weight = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)

    def f(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        a, b = state
        return weight * torch.sin(b).sum(1, keepdim=True) * a, -b * a.mean(1, keepdim=True) + t[:, None]

    def gradients(gradient: object, **how) -> list[Tensor]:
        a = torch.tensor([[0.3], [1.0], [2.0]], dtype=torch.float64, requires_grad=True)
        b = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(3, 2).requires_grad_()
        y = solve(f, (a, b), [0.0, 0.5, 1.0], gradient=gradient, batched=True, params=(weight,), **how).y
        return list(torch.autograd.grad(y[0][1:].sum() + y[1][-1].square().sum(), [a, b, weight]))

    expected = gradients("direct", **TIGHT)
    for how in (
        TIGHT,
        {"rtol": (1e-9, 1e-10), "atol": (1e-10, torch.tensor([1e-10, 1e-11], dtype=torch.float64))},
        {**TIGHT, "norm": lambda state: torch.stack([x.abs().amax() for x in state]).amax()},
    ):
        for one, other in zip(gradients("backsolve", **how), expected, strict=True):
            assert torch.allclose(one, other, rtol=1e-6, atol=1e-6)

    seen = []

    def norm(state, adjoint, gradients):
        seen.append((state[0].shape, adjoint[1].shape, gradients))
        return torch.stack([x.abs().amax() for x in (*state, *adjoint)]).amax()

    for one, other in zip(gradients(Backsolve(norm=norm), **TIGHT), expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-6)
    assert seen[0] == (torch.Size([1]), torch.Size([2]), ())


def test_the_backward_solve_has_its_own_method_tolerances_and_counts() -> None:
    field, y0 = Field(), rows()
    loose, tight = (
        solve(field, y0, SHARED, gradient=choice, batched=True, **TIGHT)
        for choice in (Backsolve(rtol=1e-3, atol=1e-4), Backsolve(method="tsit5"))
    )
    for solution in (loose, tight):
        solution.y[-1].sum().backward()
    assert loose.stats.backward.nfe < loose.stats.nfe
    assert loose.stats.backward.nfe < tight.stats.backward.nfe
    assert torch.equal(loose.stats.per_sample.nfe, tight.stats.per_sample.nfe)
    assert len(set(loose.stats.per_sample.accepted.tolist())) > 1


def test_every_evaluation_of_the_backward_solve_is_counted() -> None:
    field, y0, calls = Field(), rows(), []
    solution = solve(field, y0, OWN, gradient="backsolve", batched=True, rtol=1e-4, atol=1e-5)
    field.register_forward_hook(lambda *_: calls.append(1))
    solution.y.square().sum().backward()
    assert solution.stats.backward.nfe == len(calls)


def test_compiled_forwards() -> None:
    field, y0 = Field(torch.float32), rows().detach().float().requires_grad_()
    how = {"rtol": 1e-5, "atol": 1e-6}
    expected = found(field, y0, SHARED, "direct", **how)
    for one, other in zip(found(field, y0, SHARED, "backsolve", compile=True, **how), expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-2, atol=1e-2)


def test_one_time_and_no_rows() -> None:
    field, y0 = Field(), rows()
    (of_y0,) = torch.autograd.grad(solve(field, y0, [0.3], gradient="backsolve", batched=True).y.sum(), y0)
    assert torch.equal(of_y0, torch.ones_like(y0))
    empty = torch.zeros(0, 2, dtype=torch.float64, requires_grad=True)
    y = solve(field, empty, [0.0, 1.0], gradient="backsolve", batched=True).y
    assert torch.autograd.grad(y.sum(), empty)[0].shape == (0, 2)


def test_second_derivatives_are_refused() -> None:
    field, y0 = Field(), rows()
    y = solve(field, y0, SHARED, gradient="backsolve", batched=True, **TIGHT).y
    with pytest.raises(InvalidArgumentError, match="differentiated once"):
        torch.autograd.grad(y.sum(), y0, create_graph=True)
