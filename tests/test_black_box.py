"""The solvers of SciPy behind the interface of the library."""

import itertools
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest
import scipy.integrate
import torch
from torch import Tensor

from neural_ode import METHODS, odeint, solve
from neural_ode.errors import (
    InvalidArgumentError,
    MaxStepsError,
    NeuralODEWarning,
    NonFiniteError,
    SolverError,
    StepSizeUnderflowError,
    UnknownNameError,
)
from neural_ode.methods import scipy as scipy_methods
from neural_ode.methods.scipy import SCIPY_SOLVERS, ScipySolver

REAL = [name for name, entry in SCIPY_SOLVERS.items() if entry.real]
COMPLEX = [name for name, entry in SCIPY_SOLVERS.items() if entry.complex]
STIFF = ["Radau", "BDF", "LSODA", "vode-bdf"]
ODEPACK = [name for name, entry in SCIPY_SOLVERS.items() if entry.odepack]
TIMES = [0.0, 0.1, 0.11, 1.0, 2.5, 6.0]


def start(solver: str, *shape: int) -> Tensor:
    """Ones of a dtype that the solver takes."""
    return torch.ones(shape or (2,), dtype=torch.float64 if SCIPY_SOLVERS[solver].real else torch.complex128)


def decay(t: Tensor, y: Tensor) -> Tensor:
    return -y


class Recorded:
    """Keeps the times that it is called with."""

    def __init__(self, f):
        self.f, self.times = f, []

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        self.times.append(t.item())
        return self.f(t, y)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("solver", SCIPY_SOLVERS)
def test_against_the_closed_form(solver: str, sign: int) -> None:
    """A rotation, forwards and backwards; the dynamics are never asked for a time outside the interval."""
    times = [sign * time for time in TIMES]
    y0 = torch.tensor([[1.0, 0.0]]).to(start(solver))
    f = Recorded(lambda t, y: torch.stack([y[:, 1], -y[:, 0]], dim=-1))
    y, nfe = ScipySolver(solver).integrate(f, y0, times, 1e-8, 1e-8)
    t = torch.tensor(times, dtype=torch.float64)
    assert y.shape == (6, 1, 2)
    assert y.dtype == y0.dtype
    assert torch.equal(y[0], y0)
    torch.testing.assert_close(y[:, 0], torch.stack([t.cos(), -t.sin()], dim=-1).to(y), rtol=0, atol=3e-6)
    assert nfe == len(f.times)
    assert min(f.times) >= min(times)
    assert max(f.times) <= max(times)


@pytest.mark.parametrize("solver", REAL)
def test_against_scipy(solver: str) -> None:
    """Time-dependent and nonlinear: an oscillator with damping that depends on the time."""

    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[1], -torch.sin(y[0]) - 0.1 * t * y[1]])

    def g(t: float, y: np.ndarray) -> list[float]:
        return [y[1], -np.sin(y[0]) - 0.1 * t * y[1]]

    expected = scipy.integrate.solve_ivp(
        g, (0, 6), [2.0, 0.5], method="DOP853", rtol=1e-13, atol=1e-13, t_eval=TIMES
    )
    y0 = torch.tensor([2.0, 0.5], dtype=torch.float64)
    errors = []
    for tolerance in (1e-5, 1e-8):
        y, _ = ScipySolver(solver).integrate(f, y0, TIMES, tolerance, tolerance)
        errors.append(np.abs(y.numpy() - expected.y.T).max())
    assert errors[0] < 3e-3
    assert errors[1] < min(3e-6, errors[0] / 10)


@pytest.mark.parametrize("solver", ["RK45", "DOP853", "Radau", "BDF"])
def test_the_same_steps_as_solve_ivp(solver: str) -> None:
    """Up to rounding: the options arrive, and nothing is added. NFE may differ by outputs and Jacobians."""
    y, nfe = ScipySolver(solver, first_step=0.05, max_step=0.3).integrate(decay, start(solver), TIMES, 1e-6, 1e-9)
    expected = scipy.integrate.solve_ivp(
        lambda t, y: -y,
        (0, 6),
        np.ones(2),
        method=solver,
        t_eval=TIMES[1:],
        rtol=1e-6,
        atol=1e-9,
        first_step=0.05,
        max_step=0.3,
    )
    np.testing.assert_allclose(y[1:].numpy(), expected.y.T, rtol=1e-12)
    assert abs(nfe - expected.nfev) <= 12 + 2 * expected.njev


@pytest.mark.parametrize("solver", COMPLEX)
def test_complex_states(solver: str) -> None:
    rate = torch.tensor([[-0.5 + 2j], [0.1 - 1j]])
    y0 = torch.tensor([[1 + 1j], [2 - 1j]], dtype=torch.complex128)

    def f(t: Tensor, y: Tensor) -> Tensor:
        assert t.dtype == torch.float64
        return rate * y

    y, _ = ScipySolver(solver).integrate(f, y0, TIMES, 1e-8, 1e-8)
    t = torch.tensor(TIMES, dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(y, y0 * torch.exp(rate * t), rtol=0, atol=1e-5)


@pytest.mark.parametrize("solver", SCIPY_SOLVERS)
def test_states_of_the_wrong_kind_are_refused(solver: str) -> None:
    entry = SCIPY_SOLVERS[solver]
    for able, dtype, kind in (
        (entry.real, torch.float64, "real"),
        (entry.complex, torch.complex128, "complex"),
    ):
        if not able:
            with pytest.raises(InvalidArgumentError, match=rf"'{solver}' takes no {kind} y0; .*RK45|vode-adams"):
                ScipySolver(solver).integrate(decay, torch.ones(1, dtype=dtype), [0, 1], 1e-3, 1e-3)


@pytest.mark.parametrize("solver", STIFF)
def test_stiff(solver: str) -> None:
    """`y' = -10⁶ (y - cos t) - sin t`, `y = cos t` (Prothero & Robinson 1974): explicit steps would be 10⁶ / 2."""

    def f(t: Tensor, y: Tensor) -> Tensor:
        return -1e6 * (y - torch.cos(t)) - torch.sin(t)

    y, nfe = ScipySolver(solver, max_step=0.1).integrate(f, start(solver, 1), [0, 1, 2], 1e-6, 1e-6)
    torch.testing.assert_close(y[:, 0], torch.tensor([0.0, 1, 2], dtype=torch.float64).cos(), rtol=0, atol=1e-5)
    assert nfe < 1000


def test_newtons_method_takes_long_steps_of_stiff_problems() -> None:
    """A rate of 1000 by fixed-point iteration costs by its stability, of which Newton's method knows nothing."""
    y0 = torch.ones(1, dtype=torch.float64)

    def evaluations(solver: str) -> int:
        how = {"method": ScipySolver(solver), "rtol": 1e-6, "atol": 1e-6}
        return solve(lambda t, y: -1e3 * (y - torch.cos(t)), y0, (0, 2), **how).stats.nfe

    assert evaluations("vode-adams") > 20 * evaluations("vode-adams-newton")
    assert evaluations("vode-adams") > 20 * evaluations("vode-bdf")


@pytest.mark.parametrize("solver", ["LSODA", "RK45", "vode-adams"])
def test_dtypes_and_shapes(solver: str) -> None:
    """Dynamics in float32 with a state of three dimensions, and of none."""

    def f(t: Tensor, y: Tensor) -> Tensor:
        assert t.dtype == y.dtype == torch.float32
        assert t.shape == ()
        assert y.shape == y0.shape
        assert not y.requires_grad
        assert not torch.is_grad_enabled()
        return -y * weight

    weight = torch.ones((), requires_grad=True)
    for shape in ((2, 3, 4), ()):
        y0 = torch.full(shape, 2.0, requires_grad=True)
        y, _ = ScipySolver(solver).integrate(f, y0, [0.0, 1.0], 1e-4, 1e-4)
        assert y.shape == (2, *shape)
        assert y.dtype == torch.float32
        assert not y.requires_grad
        torch.testing.assert_close(y[1], torch.full(shape, 2 * np.exp(-1.0)).float(), rtol=0, atol=1e-3)


@pytest.mark.gpu
def test_on_a_gpu(device: torch.device) -> None:
    def f(t: Tensor, y: Tensor) -> Tensor:
        assert t.device == y.device == y0.device
        return -y

    y0 = torch.ones(3, device=device)
    y, _ = ScipySolver().integrate(f, y0, [0.0, 1.0], 1e-4, torch.full((3,), 1e-4, device=device))
    assert y.device == y0.device
    torch.testing.assert_close(y[1], torch.full_like(y0, np.exp(-1.0)), rtol=0, atol=1e-3)


@pytest.mark.parametrize("solver", SCIPY_SOLVERS)
def test_nothing_to_solve(solver: str) -> None:
    def f(t: Tensor, y: Tensor) -> Tensor:
        raise AssertionError("called")

    y0 = start(solver, 2)
    y, nfe = ScipySolver(solver).integrate(f, y0, [3.0], 1e-3, 1e-3)
    assert torch.equal(y, y0[None])
    assert nfe == 0
    y, nfe = ScipySolver(solver).integrate(f, y0[:0], [3.0, 4.0], 1e-3, 1e-3)
    assert y.shape == (2, 0)
    assert nfe == 0


@pytest.mark.parametrize("solver", SCIPY_SOLVERS)
def test_tolerances_for_each_entry(solver: str) -> None:
    """Two independent equations; the second may have any error, so the first alone decides the steps."""
    y0 = start(solver, 2)

    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([-y[0], y[0] * torch.cos(20 * t)])

    tight, _ = ScipySolver(solver).integrate(f, y0, [0, 2], 1e-9, 1e-9)
    loose = torch.tensor([1e-9, 1e9], dtype=torch.float64)
    relative: float | Tensor = 1e-9
    if solver not in ("Radau", "BDF"):
        relative = torch.tensor([1e-9, 1.0], dtype=torch.float64)
    y, nfe = ScipySolver(solver).integrate(f, y0, [0, 2], relative, loose)
    _, all_tight = ScipySolver(solver).integrate(f, y0, [0, 2], 1e-9, 1e-9)
    assert (y - tight)[1, 0].abs() < 1e-6
    assert nfe < all_tight


@pytest.mark.parametrize("solver", ["Radau", "BDF"])
def test_relative_tolerances_for_each_entry_are_refused(solver: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"rtol must be one number .* got a tensor of shape \(2,\)"):
        ScipySolver(solver).integrate(decay, start(solver), [0, 1], torch.ones(2), 1e-3)


@pytest.mark.parametrize("solver", SCIPY_SOLVERS)
def test_tolerances_of_zero(solver: str) -> None:
    """One of both may be zero, also where the state is zero and stays there; SciPy has nothing to warn of."""
    y0 = torch.tensor([1.0, 0.0]).to(start(solver))
    for rtol, atol in ((1e-6, 0.0), (0.0, 1e-6)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            y, _ = ScipySolver(solver).integrate(decay, y0, [0, 1], rtol, atol)
        torch.testing.assert_close(y[1].real, np.exp(-1.0) * y0.real, rtol=0, atol=1e-4)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("solver", SCIPY_SOLVERS)
def test_step_options(solver: str, sign: int) -> None:
    """A first step and a longest step keep the times of the evaluations together."""
    f = Recorded(lambda t, y: -sign * y)
    ScipySolver(solver, first_step=1e-3, max_step=0.05).integrate(f, start(solver), [0, sign * 2], 1e-2, 1e-2)
    times = np.unique(np.abs(f.times))
    assert np.diff(times).max() <= 0.05 * (1 + 1e-9)
    assert times[times > 1e-9].min() <= 1e-3 * (1 + 1e-9)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("solver", SCIPY_SOLVERS)
def test_a_first_step_longer_than_the_interval(solver: str, sign: int) -> None:
    y, _ = ScipySolver(solver, first_step=5.0).integrate(decay, start(solver), [0, 1.5 * sign], 1e-6, 1e-6)
    expected = torch.full((2,), np.exp(-1.5 * sign), dtype=torch.float64)
    torch.testing.assert_close(y[1].real, expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("solver", [name for name in ODEPACK if name != "LSODA"])
def test_shortest_step(solver: str) -> None:
    """With a step that the error does not allow, the solver stops instead of going on with shorter ones."""

    def f(t: Tensor, y: Tensor) -> Tensor:
        return y * torch.cos(100 * t)

    ScipySolver(solver).integrate(f, start(solver), [0, 1], 1e-8, 1e-8)
    with pytest.raises(SolverError, match=f"{solver} stopped at t = "):
        ScipySolver(solver, min_step=0.3, first_step=0.3).integrate(f, start(solver), [0, 1], 1e-8, 1e-8)


def test_names() -> None:
    assert ScipySolver("lsoda") == ScipySolver("LSODA") == ScipySolver()
    assert ScipySolver("radau").solver == "Radau"
    with pytest.raises(UnknownNameError, match="did you mean 'DOP853'"):
        ScipySolver("DOP835")
    with pytest.raises(UnknownNameError, match="unknown solver of SciPy 5"):
        ScipySolver(5)  # type: ignore[arg-type]


def test_configured() -> None:
    solver = ScipySolver("BDF", max_steps=9).configured(solver="radau", max_step=0.5)
    assert solver == ScipySolver("Radau", max_step=0.5, max_steps=9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"first_step": 0.0}, "first_step must be a positive number, got 0.0"),
        ({"first_step": float("nan")}, "first_step must be a finite number, got nan"),
        ({"min_step": -1.0}, "min_step must be zero or more, got -1.0"),
        ({"max_step": 0.0}, "max_step must be longer than min_step, got 0.0"),
        ({"min_step": 1.0, "max_step": 0.5}, "max_step must be longer than min_step, got 0.5"),
        ({"max_step": float("nan")}, "max_step must be longer than min_step, got nan"),
        ({"max_steps": 0}, "max_steps must be at least 1, got 0"),
    ],
)
def test_options_that_cannot_be_used(options: dict, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        ScipySolver(**options)


def test_option_without_effect() -> None:
    with pytest.warns(NeuralODEWarning, match="RK45 has no shortest step"):
        ScipySolver("RK45", min_step=0.1)


@pytest.mark.parametrize("solver", SCIPY_SOLVERS)
def test_blow_up(solver: str) -> None:
    """No way past t = 1 for `y = 1 / (1 - t)`. The exception says where it stopped and has what was found."""
    with pytest.raises(SolverError, match=f"{solver} stopped") as caught:
        ScipySolver(solver).integrate(lambda t, y: y**2, start(solver), [0, 0.5, 0.8, 2], 1e-6, 1e-6)
    assert isinstance(caught.value, StepSizeUnderflowError | NonFiniteError)
    assert caught.value.t == pytest.approx(1, abs=1e-3)
    t, y = caught.value.partial
    assert t == [0, 0.5, 0.8, caught.value.t]
    expected = torch.tensor([1.0, 2.0, 5.0], dtype=y.dtype)
    torch.testing.assert_close(y[:3], torch.stack([expected, expected], dim=-1), rtol=1e-3, atol=0)
    assert y[3, 0].abs() > 1000


@pytest.mark.parametrize("solver", SCIPY_SOLVERS)
def test_not_finite(solver: str) -> None:
    """From the start, and from some time on."""
    y0 = start(solver)
    with pytest.raises(NonFiniteError, match="not finite at the start") as caught:
        ScipySolver(solver).integrate(lambda t, y: y * float("inf"), y0, [0, 1], 1e-6, 1e-6)
    assert caught.value.t == 0

    def f(t: Tensor, y: Tensor) -> Tensor:
        return -y if t < 0.5 else y * float("nan")

    with pytest.raises(NonFiniteError, match="NaN or infinite after t = ") as caught:
        ScipySolver(solver, max_step=0.1).integrate(f, y0, [0, 0.2, 1], 1e-6, 1e-6)
    assert 0.2 < caught.value.t <= 0.5
    t, y = caught.value.partial
    assert len(t) == 3
    torch.testing.assert_close(y[1].real, torch.full((2,), np.exp(-0.2), dtype=torch.float64), rtol=0, atol=1e-4)


@pytest.mark.parametrize("solver", ["RK23", "RK45", "DOP853"])
def test_a_slope_that_was_once_not_finite_is_not_blamed_later(solver: str) -> None:
    """It is NaN in the first attempt, which is made again and shorter; `y = 1 / (1 - t)` blows up long after."""
    calls = itertools.count()

    def f(t: Tensor, y: Tensor) -> Tensor:
        return y * float("nan") if next(calls) == 3 else y**2

    with pytest.raises(StepSizeUnderflowError, match=f"{solver} stopped at t = (0.999|1.000)"):
        ScipySolver(solver).integrate(f, start(solver), [0, 2], 1e-6, 1e-6)


@pytest.mark.parametrize("solver", SCIPY_SOLVERS)
def test_too_many_steps(solver: str) -> None:
    y0 = start(solver)
    with pytest.raises(MaxStepsError, match=f"{solver}: 7 steps were not enough to go to t = 5.0") as caught:
        ScipySolver(solver, max_steps=7, max_step=0.1).integrate(decay, y0, [0, 0.3, 5], 1e-3, 1e-3)
    t, y = caught.value.partial
    assert t == [0, 0.3, caught.value.t]
    assert 0.3 < caught.value.t < 1.2
    torch.testing.assert_close(
        y.real, torch.exp(-torch.tensor(t, dtype=torch.float64))[:, None].expand(3, 2), rtol=0, atol=1e-2
    )
    # The steps are counted from one output time to the next.
    ScipySolver(solver, max_steps=60, max_step=0.1).integrate(decay, y0, range(10), 1e-3, 1e-3)


class CustomError(Exception):
    pass


@pytest.mark.parametrize("solver", SCIPY_SOLVERS)
@pytest.mark.parametrize(
    "error", [CustomError("mine"), KeyboardInterrupt(), ValueError("also mine"), NonFiniteError("mine, too")]
)
@pytest.mark.parametrize("when", [0.0, 0.3])
def test_exceptions_of_the_dynamics(solver: str, error: BaseException, when: float) -> None:
    """The very object arrives, at once, through solvers written in other languages; the next solve works."""
    calls = 0

    def f(t: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        if t >= when:
            calls += 1
            raise error
        return -y

    with pytest.raises(type(error)) as caught:
        ScipySolver(solver).integrate(f, start(solver), [0, 1], 1e-6, 1e-6)
    assert caught.value is error
    assert getattr(error, "partial", None) is None
    assert calls == 1
    y, _ = ScipySolver(solver).integrate(decay, start(solver), [0, 1], 1e-6, 1e-6)
    assert y[1, 0].real == pytest.approx(np.exp(-1), abs=1e-4)


@pytest.mark.parametrize("solver", ["RK45", "LSODA", "vode-bdf"])
@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda t, y: y[:1], r"shape, dtype and device of y, which are \(2,\), torch.float64 .* it has \(1,\)"),
        (lambda t, y: y.float(), "it has .* torch.float32"),
        (lambda t, y: [1.0, 2.0], "must return a tensor like y, got list"),
    ],
)
def test_dynamics_that_do_not_fit(solver: str, f, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        ScipySolver(solver).integrate(f, start(solver), [0, 1], 1e-6, 1e-6)


@pytest.mark.parametrize("solver", SCIPY_SOLVERS)
def test_dynamics_that_reuse_memory(solver: str) -> None:
    """Dynamics that write their result into the same tensor every time, or over the state, change nothing."""
    y0 = start(solver)
    result = torch.empty_like(y0)

    def f(t: Tensor, y: Tensor) -> Tensor:
        torch.neg(y, out=result)
        y.zero_()
        return result

    y, nfe = ScipySolver(solver).integrate(f, y0, TIMES, 1e-6, 1e-6)
    expected, calls = ScipySolver(solver).integrate(decay, y0, TIMES, 1e-6, 1e-6)
    assert torch.equal(y, expected)
    assert nfe == calls


@pytest.mark.parametrize("outer", SCIPY_SOLVERS)
def test_solves_inside_solves(outer: str) -> None:
    """ODEPACK inside ODEPACK is refused before it does harm; anything else works."""

    def nested(inner: str):
        def f(t: Tensor, y: Tensor) -> Tensor:
            states, _ = ScipySolver(inner).integrate(decay, start(inner), [0, 1], 1e-8, 1e-8)
            return -y * (states[1, 0].real * np.e)  # 1, found by solving

        return f

    y0 = start(outer)
    allowed = "DOP853" if outer in ODEPACK else "LSODA"
    y, _ = ScipySolver(outer).integrate(nested(allowed), y0, [0, 1], 1e-4, 1e-4)
    assert y[1, 0].real == pytest.approx(np.exp(-1), abs=1e-3)
    if outer in ODEPACK:
        with pytest.raises(InvalidArgumentError, match="one solve at a time: use 'DOP853'"):
            ScipySolver(outer).integrate(nested("LSODA"), y0, [0, 1], 1e-4, 1e-4)
        ScipySolver(outer).integrate(decay, y0, [0, 1], 1e-4, 1e-4)


@pytest.mark.parametrize("solver", ["LSODA", "vode-adams"])
def test_solves_beside_solves(solver: str) -> None:
    """Threads wait for each other, whole solves, and get what they would have got alone."""
    seen: list[int] = []

    def solve(rate: float, pause: float) -> Tensor:
        def f(t: Tensor, y: Tensor) -> Tensor:
            seen.append(threading.get_ident())
            time.sleep(pause)  # lets the other threads run
            return -rate * y

        return ScipySolver(solver).integrate(f, start(solver), [0, 1, 2], 1e-6, 1e-6)[0]

    alone = [solve(rate, 0.0) for rate in (1.0, 2.0, 3.0)]
    beside: dict[float, Tensor] = {}
    threads = [
        threading.Thread(target=lambda rate=rate: beside.update({rate: solve(rate, 1e-4)}))
        for rate in (1.0, 2.0, 3.0)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(one != other for one, other in itertools.pairwise(seen)) == 3
    for rate, expected in zip((1.0, 2.0, 3.0), alone, strict=True):
        assert torch.equal(beside[rate], expected)


def test_warnings_of_scipy_become_exceptions(recwarn: pytest.WarningsRecorder) -> None:
    for solver in SCIPY_SOLVERS:
        with pytest.raises(SolverError):
            ScipySolver(solver).integrate(lambda t, y: y**2, start(solver), [0, 2], 1e-6, 1e-6)
    assert not [str(warning.message) for warning in recwarn if "ode:" in str(warning.message)]


def test_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setitem(sys.modules, "scipy.integrate", None)
    with pytest.raises(InvalidArgumentError, match=r"which is not installed: pip install scipy"):
        ScipySolver().integrate(decay, torch.ones(1), [0, 1], 1e-3, 1e-3)


def test_scipy_is_imported_when_it_is_needed() -> None:
    code = "import sys, neural_ode; sys.exit('scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_return_code_is_explained() -> None:
    """The failures that SciPy knows of, without the internal error -7."""
    codes = set(scipy.integrate._ode.vode.messages) | set(scipy.integrate._ode.lsoda.messages)
    assert {code for code in codes if code < 0} - {-7} == set(scipy_methods._ODEPACK_FAILURES)


# Training through a black box -----------------------------------------------------------------------------------


def midpoint(f, y0: Tensor, t: Tensor, rtol, atol) -> Tensor:
    """Ten lines, as someone would write them in a notebook."""
    states = [y0]
    for start, end in itertools.pairwise(t):
        y, h = states[-1], (end - start) / 20
        for i in range(20):
            time = start + i * h
            y = y + h * f(time + h / 2, y + h / 2 * f(time, y))
        states.append(y)
    return torch.stack(states)


class Spiral(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.matrix = torch.nn.Parameter(torch.zeros(2, 2, dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return y @ self.matrix


@pytest.mark.parametrize("solver", [ScipySolver("vode-adams"), midpoint], ids=["VODE", "ten lines"])
def test_trains_through_a_black_box(solver) -> None:
    """The adjoint needs nothing of a solver but its solutions (section 2 of the paper)."""
    torch.manual_seed(0)
    exact = torch.tensor([[-0.2, 1.5], [-1.5, -0.2]], dtype=torch.float64)
    t = torch.linspace(0, 1, 5, dtype=torch.float64)
    y0 = torch.randn(8, 2, dtype=torch.float64)
    data = torch.stack([y0 @ torch.matrix_exp(time * exact) for time in t])
    f = Spiral()
    optimizer = torch.optim.Adam(f.parameters(), lr=0.2)
    for _ in range(100):
        optimizer.zero_grad()
        solution = solve(f, y0, t, method=solver, gradient="backsolve", rtol=1e-5, atol=1e-6)
        loss = (solution.y - data).square().mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1e-3
    assert solution.stats.nfe > 0
    assert solution.stats.backward is not None
    assert solution.stats.backward.nfe > 0
    torch.testing.assert_close(f.matrix.detach(), exact, rtol=0.1, atol=0.1)


def test_a_solver_of_ones_own_has_a_name_if_given_one() -> None:
    f, y0 = Spiral(), torch.ones(1, 2, dtype=torch.float32)
    calls = solve(lambda t, y: -y, y0, [0.0, 0.5, 1.0], method=midpoint)
    assert calls.stats.nfe == 80
    assert calls.y.dtype == torch.float32
    METHODS["mine"] = midpoint
    try:
        assert torch.equal(
            solve(f.float(), y0, [0.0, 1.0], method="mine").y,
            odeint(f, y0, torch.tensor([0.0, 1.0]), method="mine"),
        )
        gradient = torch.autograd.functional.jacobian(
            lambda y: (
                solve(lambda t, y: -y, y, [0.0, 1.0], method="mine", gradient="backsolve", params=()).y[-1].sum()
            ),
            y0,
        )
        torch.testing.assert_close(gradient, torch.full_like(y0, np.exp(-1)), rtol=1e-3, atol=1e-3)
    finally:
        del METHODS["mine"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
def test_a_solver_of_ones_own_gets_times_that_do_not_change_the_dtype(dtype: torch.dtype) -> None:
    """Not even of a state of shape (), with which a time of shape () counts as much."""

    def euler(f, y0: Tensor, t: Tensor, rtol: float, atol: float) -> Tensor:
        states = [y0]
        for start, end in itertools.pairwise(t):
            states.append(states[-1] + (end - start) * f(start, states[-1]))
        return torch.stack(states)

    y = solve(decay, torch.ones((), dtype=dtype), [0.0, 0.5, 1.0], method=euler).y
    assert y.dtype == dtype
    assert y[-1].item() == 0.25


@pytest.mark.parametrize(
    ("solver", "error", "words"),
    [
        (lambda f, y0, t, rtol, atol: y0, InvalidArgumentError, r"shape \(2, 3\).*returned \(3,\)"),
        (lambda f, y0, t, rtol, atol: [y0, y0], InvalidArgumentError, "returned list"),
        (lambda f, y0, t, rtol, atol: torch.stack([y0, y0 * np.nan]), NonFiniteError, "NaN"),
    ],
)
def test_what_a_solver_returns_is_checked(solver, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        solve(decay, torch.ones(3), [0.0, 1.0], method=solver)
