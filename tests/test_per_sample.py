"""Steps for each sample: every row is solved as if it were alone."""

import pytest
import torch
from torch import Tensor, nn

from neural_ode import Backsolve, InvalidArgumentError, MaxStepsError, PIDController, SolverError, solve
from neural_ode.methods import METHODS, ExplicitRungeKutta

METHODS_HERE = [name for name, m in METHODS.items() if isinstance(m, ExplicitRungeKutta) and m.adaptive]


def van_der_pol(t: Tensor, y: Tensor) -> Tensor:
    x, v = y[..., 0], y[..., 1]
    return torch.stack([v, (1 - x**2) * v - x], dim=-1)


def driven(t: Tensor, y: Tensor) -> Tensor:
    """y' = y cos t, for one time or one time a row."""
    return y * torch.cos(t).reshape(*t.shape, *[1] * (y.dim() - t.dim()))


def states(rows: int = 5) -> Tensor:
    return torch.randn(rows, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("method", METHODS_HERE)
@pytest.mark.parametrize("end", [2.0, -0.2])
def test_every_row_as_if_alone(method: str, end: float) -> None:
    """Same values, steps and evaluations; the joint solve of a single row is the reference."""
    y0, t = states(), torch.linspace(0, end, 7, dtype=torch.float64)
    how = {"method": method, "rtol": 1e-4, "atol": 1e-5}
    together = solve(van_der_pol, y0, t, batched=True, **how)
    counts = together.stats.per_sample
    assert counts is not None
    for row in range(len(y0)):
        alone = solve(van_der_pol, y0[row], t, **how)
        torch.testing.assert_close(together.y[:, row], alone.y, rtol=1e-9, atol=1e-9)
        assert counts.accepted[row] == alone.stats.accepted
        assert counts.rejected[row] == alone.stats.rejected
        if METHODS[method].tableau.fsal:  # otherwise a joint solve saves the last evaluation
            assert counts.nfe[row] == alone.stats.nfe
    assert together.stats.nfe >= int(counts.nfe.max())
    if end > 1:
        assert len(set(counts.nfe.tolist())) > 1


def test_own_output_times() -> None:
    y0 = states(3)
    t = torch.tensor([[0.0, 0.5, 1.0], [1.0, 1.1, 4.0], [-1.0, 0.0, 0.3]], dtype=torch.float64)
    y = solve(driven, y0, t, batched=True, rtol=1e-10, atol=1e-11).y
    exact = y0 * torch.exp(torch.sin(t.T) - torch.sin(t[:, 0]))[..., None]
    torch.testing.assert_close(y, exact, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("controller", [None, PIDController()])
def test_a_tuple_with_a_norm_of_its_own(controller) -> None:
    y0 = states(4)
    seen = set()

    def norm(parts: tuple[Tensor, ...]) -> Tensor:
        seen.add(tuple(tuple(part.shape) for part in parts))
        return torch.stack([part.abs().amax() for part in parts]).amax()

    def f(t: Tensor, parts: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        a, b = parts
        return -a, van_der_pol(t, b)

    t = torch.tensor([0.0, 1.5], dtype=torch.float64)
    how = {"batched": True, "norm": norm, "controller": controller, "rtol": 1e-8, "atol": 1e-8}
    a, b = solve(f, (y0[:, 0], y0), t, **how).y
    assert seen == {((), (2,))}
    torch.testing.assert_close(a[-1], y0[:, 0] * torch.exp(-t[1]), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(b[-1], solve(van_der_pol, y0, t).y[-1], rtol=1e-5, atol=1e-5)


def test_gradients() -> None:
    """Of states, parameters and all times: finite differences where the grid cannot move, the closed form where
    it can."""
    torch.manual_seed(0)
    net = nn.Linear(2, 2).double()
    y0 = states(3).requires_grad_()
    t = torch.tensor([[0.0, 0.4, 1.0], [0.5, 0.6, 0.8], [-1.0, -0.5, 0.0]], dtype=torch.float64, requires_grad=True)

    def f(time: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(net(y)) * torch.cos(time)[:, None]

    def run(y0: Tensor, t: Tensor, *params: Tensor) -> Tensor:
        return solve(f, y0, t, batched=True, rtol=1e-11, atol=1e-12).y

    assert torch.autograd.gradcheck(run, (y0, t, *net.parameters()), atol=1e-6)


def test_a_row_that_blows_up_does_not_spoil_the_gradients_of_others() -> None:
    """Its first step is far too long and overflows; that attempt must not reach the graph as 0 · inf."""
    y0 = torch.tensor([[1.0], [1e3]], dtype=torch.float64, requires_grad=True)
    y = solve(lambda t, y: -(y**3), y0, [0.0, 1.0], batched=True, first_step=1.0, rtol=1e-6, atol=1e-6).y
    y[-1].sum().backward()
    assert y0.grad is not None
    exact = (1 + 2 * y0.detach() ** 2) ** -1.5
    torch.testing.assert_close(y0.grad, exact, rtol=1e-3, atol=1e-6)


def test_a_row_that_blows_up_does_not_shorten_the_steps_of_others() -> None:
    """Nor are its attempts forgotten."""
    y0 = torch.tensor([[1.0], [1e3]], dtype=torch.float64)
    how = {"first_step": 1.0, "rtol": 1e-6, "atol": 1e-6}
    together = solve(lambda t, y: -(y**3), y0, [0.0, 1.0], batched=True, **how).stats.per_sample
    alone = [solve(lambda t, y: -(y**3), row, [0.0, 1.0], **how).stats for row in y0]
    assert together is not None
    assert together.accepted.tolist() == [stats.accepted for stats in alone]
    assert together.rejected.tolist() == [stats.rejected for stats in alone]
    assert alone[1].rejected > 5


def test_a_row_that_waits_is_not_charged() -> None:
    """While another row's step leaves all that is reasonable and is repeated, as many evaluations as if alone."""

    def f(t: Tensor, y: Tensor) -> Tensor:
        burst = 1e6 * torch.exp(-((200 * (t[:, None] - 0.5)) ** 2))
        return torch.where(y > 50, burst, -(y**3))

    y0 = torch.tensor([[1.0], [100.0]], dtype=torch.float64)
    for controller in (None, PIDController()):
        how = {"rtol": 1e-6, "atol": 1e-6, "controller": controller, "first_step": 1.0, "batched": True}
        together = solve(f, y0, [0.0, 1.0], **how).stats.per_sample
        alone = solve(f, y0[:1], [0.0, 1.0], **how).stats.per_sample
        assert together is not None
        assert alone is not None
        assert [int(count[0]) for count in together] == [int(count[0]) for count in alone]


def test_limits_of_the_steps() -> None:
    """Four steps of a quarter: none may be shorter, whatever the error, and then none longer."""
    y0, t = states(), [0.0, 1.0]
    short = solve(van_der_pol, y0, t, batched=True, rtol=1e-12, atol=1e-14, min_step=0.25).stats.per_sample
    loose = {"batched": True, "rtol": 0.1, "atol": 0.1, "first_step": 1.0, "max_step": 0.25}
    long = solve(van_der_pol, y0, t, max_steps=4, **loose).stats.per_sample
    for counts in (short, long):
        assert counts is not None
        assert counts.accepted.tolist() == [4] * 5
        assert not counts.rejected.any()
    with pytest.raises(MaxStepsError, match="3 steps"):
        solve(van_der_pol, y0, t, max_steps=3, **loose)


@pytest.mark.parametrize("shape", [(0, 2), (1, 2), (3,), (2, 3, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128])
def test_shapes_and_dtypes(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    y0 = torch.ones(shape, dtype=dtype)
    y = solve(driven, y0, [0.0, 0.5, 1.0], batched=True, rtol=1e-5, atol=1e-5).y
    assert y.shape == (3, *shape)
    assert y.dtype == dtype
    torch.testing.assert_close(y[-1], y0 * torch.exp(torch.sin(torch.tensor(1.0))), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "rk4"}, "error control"),
        ({"method": "scipy_solver"}, "error control"),
        ({"step_size": 0.1}, "fixed grid"),
        ({"gradient": "interpolating", "params": ()}, "direct.*recursive_checkpoint.*Interpolating"),
        ({"gradient": Backsolve(checkpoints=2), "params": ()}, "checkpoints=2"),
        ({"gradient": Backsolve(step_size=0.1), "params": ()}, "step_size=0.1"),
        ({"gradient": Backsolve(method="rk4"), "params": ()}, "explicit method with error control.*rk4"),
        ({"gradient": Backsolve(method="kvaerno5"), "params": ()}, "dopri5; got kvaerno5"),
        ({"gradient": "reversible", "params": ()}, "direct.*recursive_checkpoint.*Reversible"),
        ({"event": lambda t, y: y[:, 0]}, "event"),
        ({"dense": True}, "dense"),
        ({"jump_t": [0.5]}, "jump_t"),
        ({"y0": torch.tensor(1.0)}, "first dimension"),
        ({"y0": (torch.ones(2), torch.ones(3))}, "first dimension"),
        ({"t": torch.zeros(3, 2)}, "3 rows"),
        ({"t": torch.tensor([[0.0, 1.0], [1.0, 0.0]])}, "strictly"),
    ],
)
def test_misuse_is_named(change: dict, words: str) -> None:
    arguments = {"f": driven, "y0": torch.ones(2, 2), "t": [0.0, 1.0], "batched": True} | change
    with pytest.raises(InvalidArgumentError, match=words):
        solve(**arguments)


def test_failures_say_which_row() -> None:
    y0 = torch.tensor([[0.1], [2.0]], dtype=torch.float64)
    with pytest.raises(SolverError, match=r"row 1") as caught:
        solve(lambda t, y: y**2, y0, [0.0, 0.3, 1.0], batched=True)
    partial = caught.value.partial
    assert torch.isfinite(partial.y[1]).all()
    assert partial.y[2, 1].isnan()
    with pytest.raises(MaxStepsError, match="max_steps"):
        solve(van_der_pol, states(), [0.0, 10.0], batched=True, max_steps=3)
