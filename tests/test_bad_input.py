"""What is wrong raises an exception that names argument, value and way out, or is documented to work."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torchdiffeq
from torch import Tensor, nn

from neural_ode import (
    METHODS,
    Backsolve,
    InvalidArgumentError,
    MaxStepsError,
    NeuralODEError,
    NewtonError,
    NonFiniteError,
    PIDController,
    Solution,
    SolverError,
    StepSizeUnderflowError,
    UnknownNameError,
    odeint,
    odeint_adjoint,
    odeint_dense,
    odeint_event,
    solve,
)

ONE = torch.ones(2)
META = torch.ones(2, device="meta")
TIMES = torch.tensor([0.0, 1.0])


def decay(t: Tensor, y: Tensor) -> Tensor:
    return -y


def tuple_decay(t: Tensor, y: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(-part for part in y)


def bad_later(value: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Fine up to t = 0.5."""
    return lambda t, y: torch.where(t < 0.5, -y, torch.full_like(y, value))


class Calls:
    """Returns what fits at first and something else later."""

    def __init__(self, later: Callable[[Tensor], Any], good: int = 3):
        self.later, self.good = later, good

    def __call__(self, t: Tensor, y: Tensor) -> Any:
        self.good -= 1
        return -y if self.good >= 0 else self.later(y)


Invalid, Unknown = InvalidArgumentError, UnknownNameError
SOLVE: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    # what f is and returns
    ("f is no function", {"f": 3}, Invalid, "f must be callable.*int"),
    ("f is None", {"f": None}, Invalid, "f must be callable.*NoneType"),
    ("f returns None", {"f": lambda t, y: None}, Invalid, "must return a tensor.*NoneType"),
    ("f returns a number", {"f": lambda t, y: 1.0}, Invalid, "must return a tensor.*float"),
    ("f returns a tuple", {"f": lambda t, y: (y,)}, Invalid, "must return a tensor.*tuple"),
    ("f has another shape", {"f": lambda t, y: y[:1]}, Invalid, r"shape.*\(2,\).*\(1,\)"),
    ("f has more dimensions", {"f": lambda t, y: y[None]}, Invalid, r"shape.*\(1, 2\)"),
    ("f has another dtype", {"f": lambda t, y: y.double()}, Invalid, "float32.*float64"),
    ("f is complex", {"f": lambda t, y: y + 0j}, Invalid, "complex64"),
    ("f is on another device", {"f": lambda t, y: META}, Invalid, "device.*meta"),
    ("f is NaN at the start", {"f": lambda t, y: y * math.nan}, NonFiniteError, "not finite at the start, t = 0"),
    ("f is infinite at the start", {"f": lambda t, y: y + math.inf}, NonFiniteError, "at the start"),
    ("f is NaN later", {"f": bad_later(math.nan)}, NonFiniteError, r"just after t = 0\.49999"),
    ("f is infinite later", {"f": bad_later(math.inf)}, NonFiniteError, r"just after t = 0\.49999"),
    (
        "f is NaN later, on a grid",
        {"f": bad_later(math.nan), "method": "rk4", "step_size": 0.1},
        NonFiniteError,
        "NaN",
    ),
    ("f needs another argument", {"f": lambda t, y, u: y}, TypeError, "positional argument"),
    (
        "f of a tuple returns a tensor",
        {"y0": (ONE, ONE), "f": lambda t, y: y[0]},
        Invalid,
        "tuple of tensors.*Tensor",
    ),
    ("f of a tuple misses a part", {"y0": (ONE, ONE), "f": lambda t, y: y[:1]}, Invalid, "shapes of y0"),
    ("f of a tuple swaps parts", {"y0": (ONE, ONE[:1]), "f": lambda t, y: y[::-1]}, Invalid, "shapes of y0"),
    ("f of a tuple has None", {"y0": (ONE, ONE), "f": lambda t, y: (y[0], None)}, Invalid, "no tensor"),
    (
        "Newton fails on a grid",
        {"f": lambda t, y: y**2 + 1, "method": "implicit_euler", "step_size": 1.0},
        NewtonError,
        "step_size|shorter",
    ),
    (
        "Newton fails in a pair on a grid",
        {"f": lambda t, y: y**2 + 1, "method": "kvaerno5", "step_size": 1.0},
        NonFiniteError,
        "kvaerno5 cannot make the step from t = 0.0 to 1.0.*shorter",
    ),
    # y0
    ("y0 is a list", {"y0": [1.0, 2.0]}, Invalid, "y0 must be a tensor.*list"),
    ("y0 is a number", {"y0": 1.0}, Invalid, "y0 must be a tensor.*float"),
    ("y0 is None", {"y0": None}, Invalid, "y0 must be a tensor.*NoneType"),
    ("y0 is of integers", {"y0": torch.ones(2, dtype=torch.int64)}, Invalid, "int64.*float"),
    ("y0 is of bools", {"y0": torch.ones(2, dtype=torch.bool)}, Invalid, "bool"),
    ("y0 is an empty tuple", {"y0": ()}, Invalid, "empty tuple"),
    ("y0 has a part that is no tensor", {"y0": (ONE, 3.0)}, Invalid, "y0.*float"),
    ("y0 is on two devices", {"y0": (ONE, META)}, Invalid, "share a device.*meta"),
    ("y0 is NaN", {"y0": torch.tensor([1.0, math.nan])}, NonFiniteError, "at the start.*y0"),
    # t
    ("t is a number", {"t": 1.0}, Invalid, "t must be.*float"),
    ("t is None", {"t": None}, Invalid, "t must be.*NoneType"),
    ("t is text", {"t": "0 1"}, Invalid, "t must be.*str"),
    ("t is empty", {"t": []}, Invalid, "at least one time"),
    ("t is a matrix", {"t": torch.zeros(2, 2)}, Invalid, "one dimension"),
    ("t is 0-dimensional", {"t": torch.tensor(1.0)}, Invalid, "one dimension"),
    ("t is of integers", {"t": torch.tensor([0, 1])}, Invalid, "int64.*double"),
    ("t is not monotonic", {"t": [0.0, 2.0, 1.0]}, Invalid, "strictly"),
    ("t repeats a time", {"t": [0.0, 1.0, 1.0]}, Invalid, "strictly"),
    ("t has no length", {"t": [1.0, 1.0]}, Invalid, "strictly"),
    ("t has NaN", {"t": [0.0, math.nan]}, Invalid, "finite"),
    ("t is infinite", {"t": [0.0, math.inf]}, Invalid, "finite"),
    ("t has text", {"t": [0.0, "1"]}, Invalid, "t must be"),
    # tolerances
    ("rtol is negative", {"rtol": -1e-3}, Invalid, "rtol must be zero or more.*-0.001"),
    ("atol is NaN", {"atol": math.nan}, Invalid, "atol must be a finite number"),
    ("rtol is infinite", {"rtol": math.inf}, Invalid, "rtol must be a finite"),
    ("rtol is text", {"rtol": "1e-3"}, Invalid, "rtol.*'1e-3'"),
    ("rtol is None", {"rtol": None}, Invalid, "rtol"),
    ("both are zero", {"rtol": 0, "atol": 0}, Invalid, "both be zero"),
    ("rtol does not broadcast", {"rtol": torch.ones(3)}, Invalid, r"broadcast.*\(2,\).*\(3,\)"),
    ("rtol is negative somewhere", {"rtol": torch.tensor([1.0, -1.0])}, Invalid, "everywhere"),
    ("rtol requires gradients", {"rtol": torch.tensor(1e-3, requires_grad=True)}, Invalid, "rtol.*detach"),
    ("rtol is for other parts", {"y0": (ONE, ONE), "f": tuple_decay, "rtol": (1e-3,)}, Invalid, "2 parts"),
    # names and choices
    ("method is unknown", {"method": "dopri55"}, Unknown, "unknown method 'dopri55', did you mean 'dopri5'"),
    ("method is a number", {"method": 5}, Invalid, "method must be a name"),
    ("gradient is unknown", {"gradient": "backsolv"}, Unknown, "did you mean 'backsolve'"),
    ("gradient is a class", {"gradient": Backsolve}, Invalid, "gradient must be"),
    ("backsolve of a function", {"gradient": "backsolve"}, Invalid, "pass params"),
    ("params are numbers", {"gradient": "backsolve", "params": [1.0]}, Invalid, "params must be tensors.*float"),
    ("the norm is text", {"norm": "max"}, Invalid, "norm must be a function"),
    ("the controller is text", {"controller": "pid"}, Invalid, "controller.*'pid'"),
    ("interpolation is unknown", {"interpolation": "quintic"}, Invalid, "interpolation.*'quintic'"),
    # steps
    ("first_step is zero", {"first_step": 0.0}, Invalid, "first_step must be a positive number"),
    ("step_size is negative", {"step_size": -0.1}, Invalid, "step_size.*-0.1"),
    (
        "step_size and grid",
        {"step_size": 0.1, "grid": lambda t: t, "method": "rk4"},
        Invalid,
        "step_size and a grid",
    ),
    ("grid is a tensor", {"grid": TIMES, "method": "rk4"}, Invalid, "grid must be a function"),
    ("grid ends elsewhere", {"grid": lambda t: t * 2, "method": "rk4"}, Invalid, "start and end with t"),
    ("grid goes back", {"grid": lambda t: t.new_tensor([0, 2, 1]), "method": "rk4"}, Invalid, "monotonic"),
    ("grid is a list", {"grid": lambda t: t.tolist(), "method": "rk4"}, Invalid, "grid must be a tensor"),
    ("min_step is negative", {"min_step": -1}, Invalid, "min_step"),
    ("max_step is zero", {"max_step": 0.0}, Invalid, "max_step"),
    ("max_step is under min_step", {"min_step": 0.2, "max_step": 0.1}, Invalid, "max_step.*0.1 and 0.2"),
    ("max_steps is zero", {"max_steps": 0}, Invalid, "max_steps"),
    ("max_steps is a fraction", {"max_steps": 1.5}, Invalid, "max_steps must be a whole number"),
    ("max_steps is reached", {"max_steps": 1}, MaxStepsError, r"reached t = 0\.\d+.*max_steps"),
    ("step_t is a number", {"step_t": 0.5}, Invalid, "step_t"),
    ("step_t and jump_t", {"step_t": [0.5], "jump_t": [0.5]}, Invalid, r"step_t and jump_t.*0\.5"),
    ("jump_t is NaN", {"jump_t": [math.nan]}, Invalid, "jump_t"),
    # what does not go together
    ("adams on a grid", {"method": "adams", "step_size": 0.1}, Invalid, "implicit_adams"),
    ("adams and another control", {"method": "adams", "controller": PIDController()}, Invalid, "step control"),
    ("dense without dense output", {"dense": True, "method": "rk4"}, Invalid, "rk4 has no dense output"),
    ("dense and backsolve", {"dense": True, "gradient": "backsolve", "params": ()}, Invalid, "dense=True"),
    ("event is text", {"event": "y = 0"}, Invalid, "event must be callable"),
    ("event returns a number", {"event": lambda t, y: 1.0}, Invalid, "event function must return a tensor"),
    ("event returns complex numbers", {"event": lambda t, y: 1j * y}, Invalid, "real.*whose sign changes.*complex"),
    ("event of a black box", {"event": lambda t, y: y, "method": "scipy_solver"}, Invalid, "look for events"),
    (
        "event that never happens",
        {"event": lambda t, y: y + 1, "t": [0.0, math.inf], "max_steps": 50},
        MaxStepsError,
        "no event in 50 steps",
    ),
    ("event on no grid", {"event": lambda t, y: y, "t": [0.0, math.inf], "method": "rk4"}, Invalid, "step_size"),
]
GOOD = {"f": decay, "y0": ONE, "t": [0.0, 1.0]}


@pytest.mark.parametrize(
    ("change", "error", "words"), [case[1:] for case in SOLVE], ids=[case[0] for case in SOLVE]
)
def test_solve(change: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        solve(**(GOOD | change))
    assert isinstance(caught.value, NeuralODEError | TypeError)
    assert len(SOLVE) >= 60


UNCHANGED: dict[str, Any] = {"func": decay, "y0": ONE, "t": TIMES}
ODEINT: list[tuple[str, Callable[..., Any], dict[str, Any], type[Exception], str]] = [
    ("t is a list", odeint, {"t": [0.0, 1.0]}, Invalid, "t must be a tensor.*as_tensor"),
    ("func is no function", odeint, {"func": None}, Invalid, "func must be callable"),
    ("func does not fit", odeint, {"func": lambda t, y: torch.ones(3)}, Invalid, "shape"),
    ("y0 is a list", odeint, {"y0": [ONE]}, Invalid, "y0.*list"),
    ("method is unknown", odeint, {"method": "rk5"}, Unknown, "did you mean 'rk4'"),
    ("solver is unknown", odeint, {"method": "scipy_solver", "options": {"solver": "RK4"}}, Unknown, "RK45"),
    (
        "three times for an event",
        odeint,
        {"t": torch.arange(3.0), "event_fn": lambda t, y: y},
        Invalid,
        "two times",
    ),
    (
        "event that never happens",
        odeint,
        {"event_fn": lambda t, y: y + 1, "options": {"max_num_steps": 9}},
        MaxStepsError,
        "no event in 9 steps",
    ),
    ("no module", odeint_adjoint, {}, Invalid, "torch.nn.Module.*adjoint_params"),
    (
        "options of another method",
        odeint_adjoint,
        {"adjoint_params": (), "adjoint_method": "rk4", "options": {"safety": 0.8}},
        Invalid,
        "adjoint_options must",
    ),
    ("adjoint tolerance", odeint_adjoint, {"adjoint_params": (), "adjoint_rtol": -1.0}, Invalid, "backward"),
    (
        "adjoint norm",
        odeint_adjoint,
        {"adjoint_params": (), "adjoint_options": {"norm": "semi"}},
        Invalid,
        "seminorm",
    ),
]


@pytest.mark.parametrize(
    ("function", "change", "error", "words"), [case[1:] for case in ODEINT], ids=[case[0] for case in ODEINT]
)
def test_odeint(function: Callable[..., Any], change: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        function(**(UNCHANGED | change))


def test_odeint_event_and_dense() -> None:
    with pytest.raises(InvalidArgumentError, match="t0 must be a tensor"):
        odeint_event(decay, ONE, 0.0, event_fn=lambda t, y: y)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="the event function must be callable"):
        odeint_event(decay, ONE, TIMES[:1], event_fn=None)  # type: ignore[arg-type]
    dense = odeint_dense(decay, ONE, 0.0, 1.0)
    with pytest.raises(InvalidArgumentError, match=r"t = 2\.0 lies outside .* 0\.0 to 1\.0"):
        dense(2.0)
    with pytest.raises(InvalidArgumentError, match="kI must be positive"):
        PIDController(kI=0.0)


def test_f_that_changes_its_mind() -> None:
    """Only the first evaluation is checked; PyTorch itself says what does not fit later."""
    with pytest.raises((RuntimeError, TypeError, NeuralODEError)):
        solve(Calls(lambda y: None), ONE, [0.0, 1.0])
    with pytest.raises((RuntimeError, NeuralODEError)):
        solve(Calls(lambda y: y[:1].expand(3)), ONE, [0.0, 1.0])


def test_step_underflow() -> None:
    """y' = y² from 1 has a pole at t = 1."""
    with pytest.raises(StepSizeUnderflowError, match=r"at t = (0\.9999|1\.0000).*kvaerno5") as caught:
        solve(lambda t, y: y**2, torch.ones(1, dtype=torch.float64), [0.0, 0.5, 2.0])
    assert caught.value.t == pytest.approx(1.0)


@pytest.mark.parametrize("how", [{}, {"method": "rk4", "step_size": 0.01}, {"method": "scipy_solver"}])
@pytest.mark.parametrize("as_tuple", [False, True])
def test_a_failed_solve_returns_what_it_has(how: dict[str, Any], as_tuple: bool) -> None:
    """The output times that were passed, and where the solve was when it failed."""
    y0 = torch.tensor([1.0, 2.0], dtype=torch.float64)
    start = (y0,) if as_tuple else y0
    f = bad_later(math.nan)
    field = (lambda t, y: (f(t, y[0]),)) if as_tuple else f
    if how.get("method") == "rk4":
        how = how | {"max_steps": 45}
    with pytest.raises(SolverError) as caught:
        solve(field, start, [0.0, 0.1, 0.3, 0.9], **how)
    partial = caught.value.partial
    assert isinstance(partial, Solution)
    assert partial.t[:3].tolist() == [0.0, 0.1, 0.3]
    y = partial.y[0] if as_tuple else partial.y
    assert len(y) == len(partial.t)
    torch.testing.assert_close(y[:3], y0 * torch.exp(-partial.t[:3])[:, None], rtol=2e-3, atol=1e-3)
    assert caught.value.t == partial.t[-1]
    assert partial.stats.nfe > 0 or how.get("method") == "scipy_solver"


def test_a_failed_backward_solve_says_so() -> None:
    class Field(nn.Module):
        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return -y

    y0 = torch.ones(1, requires_grad=True)
    y = solve(Field(), y0, [0.0, 1.0], gradient=Backsolve(options={"max_steps": 1, "first_step": 1e-6})).y
    with pytest.raises(MaxStepsError) as caught:
        y.sum().backward()
    assert "backward solve" in caught.value.__notes__[0]
    assert caught.value.partial is None  # states of the augmented system are none of the user's


class TestDocumentedToWork:
    def test_one_time(self) -> None:
        y = solve(decay, ONE, [3.0]).y
        assert torch.equal(y, ONE[None])

    @pytest.mark.parametrize("shape", [(0,), (0, 3)])
    def test_an_empty_batch(self, shape: tuple[int, ...]) -> None:
        assert solve(decay, torch.ones(shape), [0.0, 1.0]).y.shape == (2, *shape)

    def test_gradients_asked_for_under_no_grad(self) -> None:
        y0 = torch.ones(2, requires_grad=True)
        with torch.no_grad():
            assert not solve(decay, y0, [0.0, 1.0]).y.requires_grad
            assert not odeint_adjoint(decay, y0, TIMES, adjoint_params=()).requires_grad
        with torch.inference_mode():
            assert not odeint(decay, y0.detach(), TIMES).requires_grad

    def test_a_tuple_of_two_dtypes(self) -> None:
        a, b = solve(tuple_decay, (torch.ones(1), torch.ones(1).double()), [0.0, 1.0]).y
        assert a.dtype == b.dtype == torch.float64

    def test_an_event_at_the_start(self) -> None:
        solution = solve(decay, ONE, [0.0, 1.0], event=lambda t, y: y[0] - 1)
        assert solution.t[-1] == 0
        assert solution.event == 0

    def test_an_event_that_does_not_happen_in_a_finite_interval(self) -> None:
        solution = solve(decay, ONE, [0.0, 0.5, 1.0], event=lambda t, y: y[0] + 1)
        assert solution.event is None
        assert len(solution.y) == 3

    def test_min_step_accepts_whatever_the_error(self) -> None:
        solution = solve(decay, ONE, [0.0, 1.0], rtol=1e-12, atol=1e-14, min_step=0.25)
        assert solution.stats.accepted == 4


@pytest.mark.parametrize(
    "method", ["dopri5", "rk4", "euler", "adams", "kvaerno5", "implicit_adams", "scipy_solver"]
)
def test_arguments_in_the_wrong_order(method: str) -> None:
    """f(y, t) of SciPy's `odeint` returns a number where a state is wanted: nothing may broadcast it."""
    y0, times = torch.tensor([1.0, 2.0]).double(), torch.tensor([0.0, 1.0, 2.0]).double()
    for call in (odeint, partial(odeint, compile=method == "dopri5")):
        with pytest.raises(InvalidArgumentError, match=r"f is called as f\(t, y\), with the time first"):
            call(lambda y, t: -0.5 * y, y0, times, method=method)
    if method != "scipy_solver":
        with pytest.raises(InvalidArgumentError, match=r"f is called as f\(t, y\), with the time first"):
            odeint_adjoint(lambda y, t: -0.5 * y, y0, times, method=method, adjoint_params=())


@pytest.mark.parametrize(
    "f", [lambda t, y: -y[:, :1], lambda t, y: -y[:1], lambda t, y: -y[0]], ids=["column", "row", "vector"]
)
@pytest.mark.parametrize("method", ["dopri5", "bosh3", "tsit5", "dopri8", "rk4", "euler", "implicit_adams"])
def test_derivatives_broadcast_where_they_do_in_torchdiffeq(f: Any, method: str) -> None:
    y0, times = torch.tensor([[1.0, 2.0], [3.0, 5.0]]).double(), torch.tensor([0.0, 0.1, 0.2]).double()
    if METHODS[method].adaptive:
        with pytest.raises(InvalidArgumentError, match="must have the shape"):
            odeint(f, y0, times, method=method)
        if method != "tsit5":
            with pytest.raises(RuntimeError):
                torchdiffeq.odeint(f, y0, times, method=method)
        return
    expected = torchdiffeq.odeint(f, y0, times, method=method)
    torch.testing.assert_close(odeint(f, y0, times, method=method), expected, rtol=1e-10, atol=0)


def test_names_from_elsewhere_are_understood() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'backsolve'"):
        solve(decay, ONE, [0.0, 1.0], gradient="adjoint")
    with pytest.raises(UnknownNameError, match="did you mean 'dopri5'"):
        solve(decay, ONE, [0.0, 1.0], method="RK45")


def test_tolerances_in_a_sequence() -> None:
    """For a tensor state a list broadcasts to it, as a tensor does."""
    y0 = torch.tensor([1.0, 1.0]).double()
    expected = solve(decay, y0, [0.0, 1.0], rtol=torch.tensor([1e-3, 1e-6], dtype=torch.float64))
    assert torch.equal(solve(decay, y0, [0.0, 1.0], rtol=[1e-3, 1e-6]).y, expected.y)
    single = solve(decay, y0, [0.0, 1.0], rtol=(1e-3,))
    assert torch.equal(single.y, solve(decay, y0, [0.0, 1.0], rtol=1e-3).y)
    with pytest.raises(InvalidArgumentError, match=r"rtol must broadcast to the shape of y0, \(2,\)"):
        solve(decay, y0, [0.0, 1.0], rtol=[1e-3, 1e-3, 1e-3])
    with pytest.raises(InvalidArgumentError, match=r"rtol must be a number, or a tensor or list of numbers"):
        solve(decay, y0, [0.0, 1.0], rtol=["1e-3"])


def test_implicit_methods_say_which_dtypes_they_solve() -> None:
    with pytest.raises(InvalidArgumentError, match=r"torch\.float16.*use y0\.float"):
        solve(decay, torch.ones(2, dtype=torch.float16), [0.0, 1.0], method="kvaerno5", rtol=1e-2, atol=1e-2)
