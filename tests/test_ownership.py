"""Nobody writes into another's memory: dynamics that reuse theirs, or write over what they get, change nothing."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from neural_ode import METHODS, InvalidArgumentError, odeint, odeint_dense, solve
from neural_ode.methods import ImplicitRungeKutta, Method

DOUBLE = torch.float64
A = torch.tensor([[-0.5, 1.0], [-1.0, -0.5]], dtype=DOUBLE)
Y0 = torch.tensor([1.0, 2.0], dtype=DOUBLE)
TIMES = torch.tensor([0.0, 1.0, 3.0], dtype=DOUBLE)
EXACT = torch.stack([torch.matrix_exp(A * t) @ Y0 for t in TIMES])
Dynamics = Callable[[Tensor, Tensor], Tensor]


def one_buffer() -> Dynamics:
    buffer = torch.empty(2, dtype=DOUBLE)

    def f(t: Tensor, y: Tensor) -> Tensor:
        torch.mv(A, y, out=buffer)
        return buffer

    return f


def views_of_one_buffer() -> Dynamics:
    buffer = torch.empty(3, 2, dtype=DOUBLE)

    def f(t: Tensor, y: Tensor) -> Tensor:
        torch.mv(A, y, out=buffer[1])
        return buffer[1]

    return f


def several_buffers() -> Dynamics:
    buffers = [torch.empty(2, dtype=DOUBLE) for _ in range(4)]
    calls = 0

    def f(t: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.mv(A, y, out=buffers[calls % 4])

    return f


def overwritten() -> Dynamics:
    last = torch.empty(2, dtype=DOUBLE)

    def f(t: Tensor, y: Tensor) -> Tensor:
        nonlocal last
        last.fill_(math.nan)
        last = A @ y
        return last

    return f


def in_place() -> Dynamics:
    def f(t: Tensor, y: Tensor) -> Tensor:
        return y.copy_(A @ y)

    return f


CARELESS = [one_buffer, views_of_one_buffer, several_buffers, overwritten, in_place]
WAYS: dict[str, dict[str, Any]] = {
    **{
        name: {"method": name}
        if not isinstance(method, Method) or method.adaptive
        else {"method": name, "step_size": 0.05}
        for name, method in METHODS.items()
    },
    "dense": {"dense": True},
    "compiled steps": {"dense": True, "compile": True},
    "compiled": {"compile": True},
    "cubic": {"method": "heun2", "step_size": 0.05, "interpolation": "cubic"},
    "jump": {"jump_t": [0.5]},
    **{
        gradient: {"gradient": gradient, "params": ()}
        for gradient in ("recursive_checkpoint", "reversible", "backsolve", "interpolating")
    },
}

IMPLICIT = [name for name, method in METHODS.items() if isinstance(method, ImplicitRungeKutta)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("make", CARELESS, ids=lambda make: make.__name__)
def test_the_solution_is_that_of_careful_dynamics(make: Callable[[], Dynamics], way: str) -> None:
    how = WAYS[way]
    found = solve(make(), Y0, TIMES, **how)
    careful = solve(lambda t, y: A @ y, Y0, TIMES, **how)
    torch.testing.assert_close(found.y, careful.y, rtol=1e-6, atol=1e-9)
    if how.get("method") not in ("euler", "implicit_euler", "explicit_adams"):  # of low order, or not stable here
        torch.testing.assert_close(found.y, EXACT, rtol=0.02, atol=0.02)
    if way not in IMPLICIT:  # whose Jacobians cost evaluations where autograd cannot follow
        assert found.stats.nfe == careful.stats.nfe
    assert Y0.tolist() == [1.0, 2.0]
    if found.dense:
        torch.testing.assert_close(found.dense(1.7), torch.matrix_exp(A * 1.7) @ Y0, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("writes", [False, True])
def test_rows_with_steps_of_their_own(compiled: bool, writes: bool) -> None:
    y0 = torch.stack([Y0, 2 * Y0, -Y0])
    buffer = torch.empty_like(y0)

    def f(t: Tensor, y: Tensor) -> Tensor:
        return y.copy_(y @ A.T) if writes else torch.matmul(y, A.T, out=buffer)

    found = solve(f, y0, TIMES, batched=True, compile=compiled)
    torch.testing.assert_close(found.y, EXACT[:, None] * y0[:, :1] / Y0[0], rtol=1e-5, atol=1e-5)
    assert torch.equal(y0[0], Y0)


@pytest.mark.parametrize("make", CARELESS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("method", ["dopri5", "rk4", "implicit_adams", "scipy_solver"])
def test_the_names_of_torchdiffeq(make: Callable[[], Dynamics], method: str) -> None:
    times = torch.linspace(0, 3, 61, dtype=DOUBLE)
    found = odeint(make(), Y0, times, method=method)
    torch.testing.assert_close(found[-1], EXACT[-1], rtol=1e-3, atol=1e-3)
    assert Y0.tolist() == [1.0, 2.0]


def test_a_gradient_through_dynamics_that_work_in_place() -> None:
    y0 = Y0.clone().requires_grad_()
    y = solve(in_place(), y0, [0.0, 3.0], rtol=1e-9, atol=1e-9).y[-1]
    (gradient,) = torch.autograd.grad(y.sum(), y0)
    torch.testing.assert_close(gradient, torch.matrix_exp(3 * A).sum(0), rtol=1e-7, atol=1e-7)


def test_inference_mode() -> None:
    """Where tensors do not count what is written into them."""
    with torch.inference_mode():
        y0 = Y0.clone()
        for make in CARELESS:
            torch.testing.assert_close(solve(make(), y0, TIMES).y, EXACT, rtol=1e-5, atol=1e-5)
        assert y0.tolist() == [1.0, 2.0]


def test_writing_that_begins_late_is_refused() -> None:
    calls = 0

    def f(t: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return A @ y if calls < 30 else y.copy_(A @ y)

    with pytest.raises(InvalidArgumentError, match=r"changed its arguments in place at t = .*y\.clone\(\)"):
        solve(f, Y0, TIMES)


def test_results_share_no_memory_with_the_start() -> None:
    y0 = Y0.clone()
    for t in ([0.0], [0.0, 1.0]):
        for how in ({}, {"method": "rk4"}, {"method": "scipy_solver"}, {"compile": True}, {"batched": True}):
            states = solve(lambda t, y: -y, y0[:, None], t, **how).y
            states += 5
            assert torch.equal(y0, Y0)
    states = solve(lambda t, y: (-y[0],), (y0,), [0.0]).y[0]
    states += 5
    assert torch.equal(y0, Y0)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_dense_output_keeps_its_start(compiled: bool) -> None:
    y0 = Y0.clone()
    dense = odeint_dense(lambda t, y: -y, y0, 0.0, 1.0, compile=compiled)
    solution = solve(lambda t, y: -y, y0, [0.0, 1.0], dense=True, compile=compiled)
    y0.fill_(7.0)
    for found in (dense(0.01), solution.dense(0.01)):
        torch.testing.assert_close(found, Y0 * math.exp(-0.01), rtol=1e-7, atol=1e-7)
