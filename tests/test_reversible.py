"""Reversible solves: undone exactly, differentiated exactly, in constant memory."""

import math

import pytest
import torch
from torch import Tensor, nn

from neural_ode import InvalidArgumentError, NeuralODEWarning, Reversible, Statistics, solve
from neural_ode.control.tolerance import Tolerance
from neural_ode.gradients.checkpoints import Snapshot
from neural_ode.methods import ExplicitRungeKutta, ReversibleRungeKutta, get_method
from neural_ode.problem.norms import rms_norm
from neural_ode.stepping.integrate import integrate
from neural_ode.stepping.settings import SolverSettings
from reproduction.measure.memory import bytes_kept

EXPLICIT = ["euler", "midpoint", "heun3", "rk4", "bosh3", "dopri5", "tsit5", "dopri8"]


class Field(nn.Module):
    """A non-linear field that depends on the time."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.first = nn.Linear(3, 5, dtype=dtype)
        self.second = nn.Linear(5, 2, dtype=dtype)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        inputs = torch.cat([y, torch.sin(3 * t).to(y.dtype).expand_as(y[..., :1])], dim=-1)
        return 2 * self.second(torch.tanh(self.first(inputs)))


def settings_of(method: str, tolerance: float = 1e-6, **how) -> SolverSettings:
    return SolverSettings(get_method(method), Tolerance(tolerance, tolerance, rms_norm), **how)


def start(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    y0 = torch.randn(3, 2, dtype=dtype, requires_grad=True)
    return y0, torch.tensor([0.1, 0.35, 0.4, 1.0, 1.2], dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("coupling", [0.5, 0.999, 1.0])
@pytest.mark.parametrize("method", EXPLICIT)
def test_undoing_a_step_is_its_inverse(method: str, coupling: float) -> None:
    base = get_method(method)
    assert isinstance(base, ExplicitRungeKutta)
    reversible = ReversibleRungeKutta(base, coupling)
    f, y = Field(), torch.randn(3, 2, dtype=torch.float64)
    z = y + 0.1 * torch.randn_like(y)
    t = torch.tensor(0.3, dtype=torch.float64)
    with torch.no_grad():
        step = reversible.step(f, t, y, 0.2, type(reversible.step(f, t, y, 0.2, None).carry)(z))
        undone_y, undone, nfe = reversible.undo(f, t, step.y1, 0.2, step.carry)
    torch.testing.assert_close(undone_y, y, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(undone.z, z, rtol=1e-14, atol=1e-14)
    assert nfe <= step.nfe


@pytest.mark.parametrize("method", EXPLICIT)
def test_order_is_that_of_the_method(method: str) -> None:
    """y' = -y + sin t in closed form."""
    order = get_method(method).order
    exact = 1.5 * math.exp(-1) + (math.sin(1) - math.cos(1)) / 2
    errors = []
    sizes = (0.25, 0.125) if order > 5 else (0.05, 0.025)
    for step_size in sizes:
        y = solve(
            lambda t, y: -y + torch.sin(t),
            torch.ones(1, dtype=torch.float64),
            [0.0, 1.0],
            method=method,
            step_size=step_size,
            gradient=Reversible(),
            params=(),
        ).y
        errors.append(abs(y[-1].item() - exact))
    assert math.log2(errors[0] / errors[1]) > order - 0.35


@pytest.mark.parametrize(
    "how",
    [
        {"method": "dopri5"},
        {"method": "bosh3", "tolerance": 1e-4},
        {"method": "dopri5", "jump_t": (0.5,)},
        {"method": "rk4", "step_size": 0.07},
        {"method": "midpoint"},
        {"method": "dopri5", "step_size": 0.1},
    ],
    ids=["dopri5", "bosh3", "jump", "rk4", "midpoint", "dopri5 on a grid"],
)
@pytest.mark.parametrize("case", ["forward", "reverse", "complex"])
def test_is_the_gradient_of_the_reversible_solve(how: dict, case: str) -> None:
    """Against autograd through the same steps, for state, times and parameters."""
    dtype = torch.complex128 if case == "complex" else torch.float64
    f = Field(dtype)
    y0, t = start(dtype)
    if case == "reverse":
        t = t.detach().flip(0).requires_grad_()
    settings = settings_of(**how)
    found = []
    for steps_recorded in (True, False):
        stats = Statistics()
        if steps_recorded:
            y = integrate(f, y0, t, Reversible().settings(settings, t)[0], stats).y
        else:
            tolerance = how.get("tolerance", 1e-6)
            options = {name: value for name, value in how.items() if name != "tolerance"}
            y = solve(f, y0, t, gradient="reversible", rtol=tolerance, atol=tolerance, **options).y
        weights = torch.linspace(0.2, 1.5, y.numel(), dtype=torch.float64).reshape(y.shape)
        found.append([y, *torch.autograd.grad((y * weights).abs().square().sum(), [y0, t, *f.parameters()])])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9 * float(a.detach().abs().max()))


def test_steps_of_a_grid_lead_through_the_outputs() -> None:
    """Equal ones from each output to the next, not longer than asked for; 0.1 + 0.2 is a little more than 0.3."""
    y0, t = torch.ones(1, dtype=torch.float64), [0.0, 0.1 + 0.2, 0.55]
    how = {"method": "rk4", "step_size": 0.1, "gradient": "reversible", "params": ()}
    steps = solve(lambda t, y: -y, y0, t, **how).stats.step_sizes
    assert steps == pytest.approx([0.1] * 3 + [0.25 / 3] * 3)


def test_agrees_with_direct_up_to_discretisation() -> None:
    f = Field()
    y0, t = start()
    found = []
    for gradient in ("direct", "reversible"):
        y = solve(f, y0, t, gradient=gradient, rtol=1e-10, atol=1e-10).y
        found.append(torch.autograd.grad(y.square().sum(), [y0, t, *f.parameters()]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5)


def test_tuple_states() -> None:
    f = Field()
    y0, t = start()

    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = f

        def forward(self, t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            slope = self.f(t, torch.cat(y))
            return slope[:1], slope[1:]

    how = {"gradient": "reversible", "method": "rk4", "step_size": 0.1}
    first, second = solve(Halves(), (y0[:1], y0[1:]), t, **how).y
    pairs = torch.cat([first, second], dim=1)
    whole = solve(f, y0, t, **how).y
    assert torch.allclose(pairs, whole, rtol=1e-12)
    for a, b in zip(
        torch.autograd.grad(pairs.square().sum(), [y0, t, *f.parameters()]),
        torch.autograd.grad(whole.square().sum(), [y0, t, *f.parameters()]),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_keeps_two_states_however_many_steps() -> None:
    f, y0 = Field(), torch.randn(20, 2, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.0, 2.0], dtype=torch.float64)
    known = [y0, *f.parameters()]

    def kept(step_size: float) -> int:
        return bytes_kept(
            lambda: solve(f, y0, t, method="rk4", step_size=step_size, gradient="reversible").y.sum(), known
        )

    assert kept(0.2) == kept(0.002) <= (2 + 2 + 2) * y0.numel() * 8


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 2e-3)])
def test_reconstruction_error_over_a_thousand_steps(dtype: torch.dtype, limit: float) -> None:
    """Rounding errors grow like λ^-n."""
    f, y0 = Field(dtype), torch.randn(3, 2, dtype=dtype)
    method = ReversibleRungeKutta(get_method("rk4"), 0.999)
    t = [torch.tensor(0.01 * n, dtype=dtype) for n in range(1000)]
    state = Snapshot(y0, None)
    with torch.no_grad():
        for time in t:
            step = method.step(f, time, state.y, 0.01, state.carry)
            state = Snapshot(step.y1, step.carry)
        for time in reversed(t):
            y, carry, _ = method.undo(f, time, state.y, 0.01, state.carry)
            state = Snapshot(y, carry)
    assert 0 < float((state.y - y0).abs().max()) < limit


def test_backward_statistics() -> None:
    f = Field()
    y0, t = start()
    solution = solve(f, y0, t.detach(), gradient="reversible", rtol=1e-5, atol=1e-5)
    solution.y.sum().backward()
    stats = solution.stats.backward
    assert stats is not None
    assert stats.accepted == solution.stats.accepted
    # Each step is undone (12 evaluations) and made again (13); the first needs its slope once more.
    assert stats.nfe == 12 * (stats.accepted - 1) + 13 * stats.accepted + 1


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"method": "kvaerno5"}, "explicit Runge-Kutta.*kvaerno5"),
        ({"method": "adams"}, "explicit Runge-Kutta.*adams"),
        ({"method": "scipy_solver"}, "explicit Runge-Kutta.*scipy_solver"),
        ({"event": lambda t, y: t - 0.5}, "event cannot be used"),
        ({"method": "rk4", "grid": lambda t: torch.stack([t[0], t[-1]])}, r"lacks \[0.5\]"),
    ],
)
def test_what_cannot_be(how: dict, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        solve(Field(), torch.zeros(3, 2).double(), [0.0, 0.5, 1.0], gradient="reversible", **how)


@pytest.mark.parametrize("coupling", [0.0, -1.0, 1.5, math.nan, "0.9"])
def test_bad_couplings(coupling: object) -> None:
    with pytest.raises(InvalidArgumentError, match="coupling"):
        Reversible(coupling)


def test_warns_where_the_two_states_drift_apart() -> None:
    """Both follow a solution that decays like exp(-10 t); their difference grows like exp(10 t)."""

    def decay(t: Tensor, y: Tensor) -> Tensor:
        return -10 * (y - torch.cos(t))

    y0 = torch.ones(1, dtype=torch.float64)
    how = {"rtol": 1e-6, "atol": 1e-6, "params": ()}
    with pytest.warns(NeuralODEWarning, match="drifted apart.*smaller coupling"):
        solve(decay, y0, [0.0, 3.0], gradient="reversible", **how)
    with pytest.warns(NeuralODEWarning, match="drifted apart"):
        solve(decay, y0, [0.0, 5.0], gradient="reversible", method="rk4", step_size=0.05, params=())
    solve(decay, y0, [0.0, 3.0], gradient=Reversible(0.5), **how)
