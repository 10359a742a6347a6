"""Dense output: many times at once, the ends of the interval, and what it can be differentiated by."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from neural_ode import InvalidArgumentError, SolverError, odeint_dense, solve
from neural_ode.methods import METHODS
from pretend_device import pretend_device, to_cpu, to_device

METHODS_WITH_DENSE_OUTPUT = ["dopri5", "dopri8", "adams", "kvaerno5"]


def real(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def decay(t: Tensor, y: Tensor) -> Tensor:
    return -y


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("start", "end"), [(0.7, 1.1), (1.1, 0.7), (0.1, 0.9), (-0.7, -1.1)])
def test_an_end_in_any_dtype_is_that_end(start: float, end: float, dtype: torch.dtype) -> None:
    """In float32 0.7 and 0.9 lie a little lower, and 0.1 and 1.1 a little higher. Whole numbers are no rounding."""
    dense = odeint_dense(decay, real(1), start, end)
    ends = torch.tensor([start, end], dtype=dtype)
    assert torch.equal(dense(ends), torch.stack([dense(start), dense(end)]))
    torch.testing.assert_close(dense(ends), torch.exp(real(0, start - end))[:, None], rtol=1e-7, atol=0)
    outwards = torch.tensor([-math.inf, math.inf], dtype=dtype) * math.copysign(1, end - start)
    beyond = torch.nextafter(torch.nextafter(ends, outwards), outwards)
    for time in (*beyond, torch.tensor(0)):
        with pytest.raises(InvalidArgumentError, match="outside the interval"):
            dense(time)


def exact(t: Tensor) -> tuple[Tensor, Tensor]:
    """From (1, (1, 1)) at t = 0.5, by `rotation`."""
    t = (t - 0.5)[..., None]
    return torch.exp(1j * t), torch.exp(torch.cat([-t, -2 * t], dim=-1)).to(torch.complex128)


def rotation(t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return 1j * y[0], y[1] * real(-1, -2)


@pytest.mark.parametrize(
    ("method", "size"), [*((method, 1) for method in METHODS_WITH_DENSE_OUTPUT), ("dopri5", 2000)]
)
@pytest.mark.parametrize("end", [4.5, -1.5])
def test_many_times_cost_one_evaluation_a_step(
    end: float, method: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times of any shape and order, complex states in a tuple, both directions; against the closed form."""
    y0 = (torch.ones(size, dtype=torch.complex128), torch.ones(2, dtype=torch.complex128))
    solution = solve(rotation, y0, [0.5, end], method=method, rtol=1e-9, atol=1e-11, dense=True)
    calls = 0
    kind: Any = type(METHODS[method])
    for name in ("interpolate", "interpolate_rows"):
        original: Callable[..., Tensor] | None = getattr(kind, name, None)
        if original is not None:

            def counted(*arguments: Any, original: Callable[..., Tensor] = original) -> Tensor:
                nonlocal calls
                calls += 1
                return original(*arguments)

            monkeypatch.setattr(kind, name, counted)
    times = 0.5 + (end - 0.5) * torch.rand(500, dtype=torch.float64)
    for some in (times.reshape(50, 10), times.reshape(5, 1, 100), times[:3], times[0], times[:0].reshape(2, 0)):
        calls = 0
        found = solution.dense(some)
        assert calls <= min(some.numel(), solution.stats.accepted)
        for part, expected in zip(found, exact(some), strict=True):
            assert part.shape[:-1] == some.shape
            torch.testing.assert_close(part, expected.expand(part.shape), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "size"), [*((method, 1) for method in METHODS_WITH_DENSE_OUTPUT), ("dopri5", 1500)]
)
def test_first_and_second_derivatives(method: str, size: int) -> None:
    """y = y0 exp(a (t - 1)): by the initial state, by a parameter, and by the times, which are not in order."""
    y0, a, t = real(2).requires_grad_(), real(0.7).requires_grad_(), real(1.9, 1.2, 1.9, 1.6).requires_grad_()
    dense = solve(
        lambda t, y: a * y, y0.expand(size), [1.0, 2.0], method=method, rtol=1e-11, atol=1e-12, dense=True
    ).dense
    weights = real(1, 2, 3, 4)
    found = []
    for y in (dense(t).mean(1), y0 * torch.exp(a * (t - 1))):
        first = torch.autograd.grad(weights @ y, (y0, a, t), create_graph=True)
        second = torch.autograd.grad(sum((x**2).sum() for x in first), (y0, a, t))
        found.append((y, *first, *second))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for times in (t.detach(), t[0].detach()):
        states, slopes = torch.func.jvp(dense, (times,), (torch.ones_like(times),))
        torch.testing.assert_close(slopes, a * states, rtol=1e-6, atol=0)


def test_a_solve_without_steps() -> None:
    """Ends where it starts: with a single time, or with an event there."""
    y0 = real(0.5).requires_grad_()
    for solution in (
        solve(decay, y0, [1.0], dense=True),
        solve(decay, y0, [1.0, 2.0], event=lambda t, y: y - 0.5, dense=True),
    ):
        assert solution.dense(1.0).tolist() == [0.5]
        y = solution.dense(torch.ones(2, 3))
        assert y.shape == (2, 3, 1)
        assert torch.autograd.grad(y.sum(), y0)[0].tolist() == [6.0]
        with pytest.raises(InvalidArgumentError, match=r"t = 1\.5 lies outside .* 1\.0 to 1\.0"):
            solution.dense(1.5)


def test_without_dense_output() -> None:
    """Also where the solve failed: its error has the solution so far, without the steps."""
    solution = solve(decay, real(1), [0.0, 1.0])
    with pytest.raises(SolverError) as caught:
        solve(decay, real(1), [0.0, 1.0], max_steps=1, dense=True)
    for without in (solution, caught.value.partial):
        assert not without.dense
        with pytest.raises(InvalidArgumentError, match=r"pass dense=True to solve"):
            without.dense(0.5)
    assert solve(decay, real(1), [0.0, 1.0], dense=True).dense


@pytest.mark.parametrize(("method", "size"), [("dopri5", 2), ("dopri5", 4000), ("adams", 2)])
def test_on_another_device(method: str, size: int) -> None:
    """Times on either device, with gradients; the states stay where they are."""

    def work(y0: Tensor, t: Tensor) -> list[Tensor]:
        y0, t = y0.requires_grad_(), t.requires_grad_()
        y = solve(decay, y0, [0.0, 1.0], method=method, dense=True).dense(t)
        assert isinstance(y, Tensor)
        assert y.device == y0.device
        return [to_cpu(x) for x in (y, *torch.autograd.grad(y.square().sum(), (y0, t)))]

    y0, t = torch.rand(size), torch.rand(3, 5)
    expected = work(y0.clone(), t.clone())
    with pretend_device():
        found = [*work(to_device(y0), t.clone()), *work(to_device(y0), to_device(t))]
    for x, y in zip(found, expected * 2, strict=True):
        torch.testing.assert_close(x, y)
    torch.testing.assert_close(expected[0], torch.exp(-t)[..., None] * y0, rtol=1e-5, atol=1e-5)
