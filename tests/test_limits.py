"""Where a solve must end: at a state that is not finite, and where a step's length is no number any more."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from neural_ode import METHODS, NonFiniteError, SolverError, odeint, solve
from neural_ode.methods import Method

DOUBLE = torch.float64
ADAPTIVE = [name for name, method in METHODS.items() if isinstance(method, Method) and method.adaptive]


def blow_up(t: Tensor, y: Tensor) -> Tensor:
    """y' = y²: y = 1 / (1 - t)."""
    return y * y


def still(t: Tensor, y: Tensor) -> Tensor:
    return torch.zeros_like(y)


def ends(call: Any) -> None:
    with pytest.raises(NonFiniteError, match=r"just after t = 1\.\d*"):
        call()


@pytest.mark.parametrize("method", [name for name in ADAPTIVE if not name.startswith("kvaerno")])
def test_a_shortest_step_that_is_not_finite(method: str) -> None:
    """A longer wait would not end. (Methods for stiff problems step over the pole.)"""
    start = torch.tensor(1.0, dtype=DOUBLE)
    ends(lambda: odeint(blow_up, start, start * 2 * torch.arange(2), method=method, options={"min_step": 1e-3}))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("gradient", ["direct", "recursive_checkpoint", "backsolve"])
def test_a_shortest_step_that_is_not_finite_in_every_loop(compiled: bool, batched: bool, gradient: str) -> None:
    y0 = torch.ones(3, 1, dtype=DOUBLE, requires_grad=True)
    how: dict[str, Any] = {"compile": compiled, "batched": batched, "gradient": gradient, "params": ()}
    ends(lambda: solve(blow_up, y0, [0.0, 2.0], min_step=1e-3, **how))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("method", ["dopri5", "tsit5", "dopri8", "bosh3", "adams"])
def test_steps_that_outgrow_their_dtype(method: str, dtype: torch.dtype) -> None:
    """Nothing moves, so the steps grow; the answer is the start."""
    y0 = torch.ones(2, dtype=dtype)
    end = 100 * torch.finfo(dtype).max
    loose: dict[str, Any] = {"rtol": 1e-2, "atol": 1e-2, "method": method}
    assert solve(still, y0, [0.0, end], **loose).y[-1].tolist() == [1.0, 1.0]
    if method != "adams":
        assert solve(still, y0[:, None], [0.0, end], batched=True, **loose).y[-1].tolist() == [[1.0], [1.0]]
    if method == "dopri5":
        assert solve(still, y0, [0.0, end], compile=True, **loose).y[-1].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("method", ["rk4", "euler", "implicit_adams"])
def test_a_given_step_that_its_dtype_does_not_hold(method: str) -> None:
    with pytest.raises(SolverError, match=r"the step from t = 0\.0 to 100000\.0 is too long for torch\.float16"):
        solve(still, torch.ones(2, dtype=torch.float16), [0.0, 1e5], method=method)
    assert (
        solve(still, torch.ones(2, dtype=torch.float16), [0.0, 1e5], method=method, step_size=1e3).y[-1].sum() == 2
    )


@pytest.mark.parametrize("compiled", [False, True])
def test_counters_of_a_batch_are_totals(compiled: bool) -> None:
    """Rows of other stiffness need other numbers of steps; the top of the statistics says how many in all."""
    rates = torch.tensor([[1.0], [10.0], [100.0]], dtype=DOUBLE)

    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.cos(rates * t[:, None]) - rates * y

    stats = solve(f, torch.ones(3, 1, dtype=DOUBLE), [0.0, 1.0], batched=True, compile=compiled).stats
    assert stats.per_sample is not None
    assert len(set(stats.per_sample.accepted.tolist())) == 3
    assert stats.accepted == int(stats.per_sample.accepted.sum())
    assert stats.rejected == int(stats.per_sample.rejected.sum()) > 0


def test_a_nan_row_on_a_fixed_grid_leaves_the_others_in_the_partial_result() -> None:
    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([-y[0], torch.where(t < 0.3, -y[1], math.nan)])

    y0 = torch.tensor([1.0, 1.0], dtype=DOUBLE, requires_grad=True)
    with pytest.raises(NonFiniteError, match=r"partial") as caught:
        solve(f, y0, [0.0, 0.5, 1.0], method="rk4", step_size=0.01)
    partial = caught.value.partial
    assert partial.t.tolist() == [0.0, 0.5, 1.0]
    torch.testing.assert_close(partial.y[:, 0], torch.exp(-partial.t), rtol=1e-8, atol=0)
    assert partial.y[1:, 1].isnan().all()
    (slope,) = torch.autograd.grad(partial.y[-1, 0], y0)
    assert slope[0].item() == pytest.approx(math.exp(-1), rel=1e-8)
