"""What must hold for every method and every problem of a kind: hypothesis looks for a counterexample."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from neural_ode import METHODS, solve
from neural_ode.methods import Method

STEPPING = sorted(name for name, method in METHODS.items() if isinstance(method, Method))
LOW = {"adaptive_heun", "fehlberg2", "bosh3", "kvaerno3"}
numbers = st.floats(-2, 2, allow_nan=False).map(lambda x: round(x, 3))
pairs = st.tuples(numbers, numbers)


def how(method: str) -> dict[str, object]:
    """The same steps for every problem where there is a grid, a tolerance that the method can keep where not."""
    if not METHODS[method].adaptive:  # type: ignore[union-attr]
        chosen = METHODS[method]
        if method == "explicit_adams":  # of order 11, the default, it is unstable with this step, as in torchdiffeq
            chosen = chosen.configured(max_order=4)
        return {"method": chosen, "step_size": 0.025, "rtol": 1e-11, "atol": 1e-12}
    tolerance = 1e-5 if method in LOW else 1e-8
    return {"method": method, "rtol": tolerance, "atol": tolerance}


def close(method: str) -> float:
    """How far two solves of one problem may be apart, a multiple of what the method's error allows."""
    if not METHODS[method].adaptive:  # type: ignore[union-attr]
        return {1: 0.5, 2: 2e-2, 3: 2e-3}.get(METHODS[method].order, 5e-4)  # type: ignore[union-attr]
    return 5e-3 if method in LOW else 1e-5


def rotation(t: Tensor, y: Tensor) -> Tensor:
    """Linear: y' = A(t) y."""
    return torch.stack([y[..., 1] * torch.cos(t), -y[..., 0] - 0.3 * y[..., 1]], dim=-1)


def pendulum(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([y[..., 1], -torch.sin(y[..., 0]) + 0.1 * torch.cos(t)], dim=-1)


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@given(start=pairs, method=st.sampled_from(STEPPING))
def test_there_and_back(start: tuple[float, float], method: str) -> None:
    """Solving forwards and then backwards ends where it began."""
    y0 = tensor(start)
    there = solve(pendulum, y0, [0.0, 1.0], **how(method)).y[-1]
    back = solve(pendulum, there, [1.0, 0.0], **how(method)).y[-1]
    torch.testing.assert_close(back, y0, rtol=0, atol=close(method))


@given(first=pairs, second=pairs, a=numbers, method=st.sampled_from(STEPPING))
def test_superposition(first: tuple[float, float], second: tuple[float, float], a: float, method: str) -> None:
    """A combination of solutions of a linear equation is the solution of the combination."""
    t = [0.0, 0.4, 1.0]
    y, z, both = (
        solve(rotation, tensor(start), t, **how(method)).y
        for start in (first, second, tuple(a * p + q for p, q in zip(first, second, strict=True)))
    )
    torch.testing.assert_close(
        both, a * y + z, rtol=0, atol=4 * close(method) if METHODS[method].adaptive else 1e-9
    )  # type: ignore[union-attr]


@given(starts=st.lists(pairs, min_size=2, max_size=4), method=st.sampled_from(STEPPING), data=st.data())
def test_permuting_the_batch_permutes_the_solution(starts: list[tuple[float, float]], method: str, data) -> None:
    order = data.draw(st.permutations(range(len(starts))))
    y0 = tensor(starts)
    y = solve(pendulum, y0, [0.0, 1.0], **how(method)).y
    permuted = solve(pendulum, y0[order], [0.0, 1.0], **how(method)).y
    torch.testing.assert_close(permuted, y[:, order], rtol=1e-7, atol=1e-7)


@given(start=pairs, middle=st.floats(0.1, 0.9).map(lambda x: round(x * 40) / 40), method=st.sampled_from(STEPPING))
def test_splitting_the_interval(start: tuple[float, float], middle: float, method: str) -> None:
    """One solve, or one to the middle and one from there."""
    y0 = tensor(start)
    whole = solve(pendulum, y0, [0.0, middle, 1.0], **how(method)).y
    half = solve(pendulum, y0, [0.0, middle], **how(method)).y[-1]
    rest = solve(pendulum, half, [middle, 1.0], **how(method)).y[-1]
    torch.testing.assert_close(half, whole[1], rtol=0, atol=close(method))
    torch.testing.assert_close(rest, whole[2], rtol=0, atol=2 * close(method))


@given(start=pairs, method=st.sampled_from(STEPPING))
def test_dtype(start: tuple[float, float], method: str) -> None:
    """float32 in, float32 out, and the numbers of float64 to its precision and the tolerance."""
    loose = how(method) | {"rtol": 1e-4, "atol": 1e-4}
    exact = solve(pendulum, tensor(start), [0.0, 1.0], **loose).y
    single = solve(pendulum, tensor(start).float(), [0.0, 1.0], **loose).y
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=0, atol=max(close(method) / 10, 3e-3))


@given(start=pairs, shift=numbers, method=st.sampled_from(STEPPING))
def test_time_shift(start: tuple[float, float], shift: float, method: str) -> None:
    """An autonomous equation does not know what time it is."""

    def f(t: Tensor, y: Tensor) -> Tensor:
        return pendulum(t * 0, y)

    here = solve(f, tensor(start), [0.0, 0.5, 1.0], **how(method)).y
    there = solve(f, tensor(start), [shift, shift + 0.5, shift + 1.0], **how(method)).y
    torch.testing.assert_close(there, here, rtol=0, atol=max(1e-6, close(method) / 100))


@pytest.mark.parametrize("method", STEPPING)
def test_every_method_is_reached(method: str) -> None:
    """The draws above are random: every method solves at least this."""
    y = solve(rotation, tensor([1.0, 0.5]), [0.0, 0.7, 1.0], **how(method)).y
    exact = solve(rotation, tensor([1.0, 0.5]), [0.0, 0.7, 1.0], method="dopri8", rtol=1e-12, atol=1e-13).y
    torch.testing.assert_close(y, exact, rtol=0, atol=close(method) / (2 if method in LOW else 10))
