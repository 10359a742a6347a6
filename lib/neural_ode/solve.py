"""`solve`: the entry point of the library."""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from neural_ode.errors import InvalidArgumentError, finite_number
from neural_ode.gradients import Backsolve, Direct, Gradient, get_gradient
from neural_ode.integrate import Scheme, integrate
from neural_ode.methods import ExplicitRungeKutta, get_method
from neural_ode.solution import DenseOutput, Segment, Solution, Statistics
from neural_ode.state import Dynamics, Norm, State, TupleState, rms_norm
from neural_ode.step_size import IntegralController

__all__ = ["solve"]


def solve(
    f: Callable[[Tensor, Any], Any],
    y0: State,
    t: Tensor | Iterable[float],
    *,
    method: str | ExplicitRungeKutta = "dopri5",
    rtol: float = 1e-7,
    atol: float = 1e-9,
    gradient: str | Gradient = "direct",
    params: Iterable[Tensor] | None = None,
    controller: IntegralController | None = None,
    norm: Callable[[Any], Tensor] | None = None,
    first_step: float | None = None,
    max_steps: int = 2**31 - 1,
    step_size: float | None = None,
    interpolation: Literal["linear", "cubic"] = "linear",
    dense: bool = False,
) -> Solution:
    """Solve the initial value problem `dy/dt = f(t, y)`, `y(t[0]) = y0`.

    Args:
        f: the dynamics, a function or module. Gets `t` of shape () and the state, returns the state's derivative
            in the same structure, shapes and dtype.
        y0: a floating-point tensor of any shape, or a tuple of tensors of one dtype and device.
        t: at least two times, strictly increasing or decreasing, shape (n,). The state at `t[0]` is `y0`.
        method: name of a method (`neural_ode.METHODS`) or a method object.
        rtol, atol: relative and absolute tolerance: the local error of a step may be `atol + rtol · |y|`. Methods
            without an error estimate do not use them.
        gradient: how gradients are computed: `"direct"` through the steps; `"backsolve"` by the adjoint method;
            or an object such as `Backsolve(rtol=1e-4)`.
        params: for `backsolve`, the tensors besides `y0` and `t` that get gradients; the parameters of `f` if it
            is a module.
        controller: chooses the step sizes; `IntegralController()` by default.
        norm: norm of the error control; gets tensors in the structure of `y0`, returns shape (). The default is
            the root mean square, of a tuple the largest among its parts.
        first_step: length of the first step; by default chosen from the dynamics at the cost of one evaluation.
        max_steps: how many steps before the solve is given up.
        step_size: take constant steps of this length instead of controlling the error.
        interpolation: how `euler`, `midpoint` and `rk4` find outputs between the points of a `step_size` grid.
        dense: keep every step, so that `Solution.dense(t)` gives the state at any time in between (no gradients).

    Returns:
        The states at `t`, the statistics and, where asked for, the dense output.

    Raises:
        InvalidArgumentError: an argument cannot be used; the message names it.
        UnknownNameError: no such method or gradient.
        SolverError: the solve cannot be finished: `NonFiniteError`, `StepSizeUnderflowError`, `MaxStepsError`.

    Example:
        >>> import torch
        >>> from neural_ode import solve
        >>> decay = solve(lambda t, y: -y, torch.ones(1, dtype=torch.float64), [0.0, 1.0])
        >>> round(decay.y[-1].item(), 6)
        0.367879
    """
    if not callable(f):
        raise InvalidArgumentError(f"f must be callable as f(t, y), got {type(f).__name__}")
    structure, packed = _pack(y0)
    times = _times(t)
    chosen_method = get_method(method)
    chosen_gradient = get_gradient(gradient)
    rtol, atol = _tolerance("rtol", rtol), _tolerance("atol", atol)
    if rtol == 0 and atol == 0:
        raise InvalidArgumentError("rtol and atol must not both be zero")
    if finite_number("max_steps", max_steps) < 1:
        raise InvalidArgumentError(f"max_steps must be at least 1, got {max_steps!r}")
    if interpolation not in ("linear", "cubic"):
        raise InvalidArgumentError(f"interpolation must be 'linear' or 'cubic', got {interpolation!r}")
    dynamics: Dynamics = f if structure is None else _packed_dynamics(f, structure)
    scheme = Scheme(
        method=chosen_method,
        rtol=rtol,
        atol=atol,
        controller=controller or IntegralController(),
        norm=_packed_norm(norm, structure),
        first_step=_length("first_step", first_step),
        max_steps=int(max_steps),
        step_size=_length("step_size", step_size),
        interpolation=interpolation,
    )
    stats = Statistics()
    output: DenseOutput | None = None
    if dense:
        if not chosen_method.has_dense_output:
            raise InvalidArgumentError(f"{chosen_method.name} has no dense output; dopri5 has")
        if not isinstance(chosen_gradient, Direct):
            raise InvalidArgumentError("dense=True needs gradient='direct': it keeps the steps")
        segments: list[Segment] = []
        with torch.no_grad():
            y = integrate(dynamics, packed, times, scheme, stats, segments.append).y
        output = DenseOutput(chosen_method, segments, times[-1].item(), structure)
    else:
        y = chosen_gradient(dynamics, packed, times, scheme, stats, _params(f, chosen_gradient, params))
    values = y if structure is None else structure.unpack(y)
    return Solution(t if isinstance(t, Tensor) else times, values, stats, output)


def _pack(y0: State) -> tuple[TupleState | None, Tensor]:
    parts = y0 if isinstance(y0, tuple) else (y0,)
    if not parts:
        raise InvalidArgumentError("y0 must be a tensor or a tuple of tensors, got an empty tuple")
    for part in parts:
        if not isinstance(part, Tensor):
            raise InvalidArgumentError(f"y0 must be a tensor or a tuple of tensors, got {type(part).__name__}")
        if not part.is_floating_point():
            raise InvalidArgumentError(f"y0 must be of a floating-point dtype, got {part.dtype}: use y0.float()")
        if part.dtype != parts[0].dtype or part.device != parts[0].device:
            raise InvalidArgumentError(
                "the tensors of y0 must share dtype and device, got "
                f"{parts[0].dtype} on {parts[0].device} and {part.dtype} on {part.device}"
            )
    if isinstance(y0, Tensor):
        return None, y0
    structure = TupleState(tuple(part.shape for part in parts))
    return structure, structure.pack(parts)


def _packed_dynamics(f: Callable[[Tensor, Any], Any], structure: TupleState) -> Dynamics:
    def dynamics(t: Tensor, y: Tensor) -> Tensor:
        parts = f(t, structure.unpack(y))
        sequence = isinstance(parts, tuple | list)
        shapes = tuple(getattr(part, "shape", None) for part in parts) if sequence else None
        if shapes != structure.shapes:
            raise InvalidArgumentError(
                f"f(t, y) must return a tuple of tensors with the shapes of y0, {_show(structure.shapes)}; "
                f"got {type(parts).__name__ if shapes is None else _show(shapes)}"
            )
        return structure.pack(tuple(parts))

    return dynamics


def _show(shapes: tuple[Any, ...]) -> str:
    return ", ".join("no tensor" if shape is None else str(tuple(shape)) for shape in shapes)


def _packed_norm(norm: Callable[[Any], Tensor] | None, structure: TupleState | None) -> Norm:
    if structure is None:
        return norm or rms_norm
    if norm is None:
        return structure.norm
    return lambda x: norm(structure.unpack(x))


def _times(t: Tensor | Iterable[float]) -> Tensor:
    """The times as float64: steps are counted in float64 whatever the state is."""
    if not isinstance(t, Tensor):
        t = torch.tensor([float(x) for x in t], dtype=torch.float64)
    if not t.is_floating_point():
        raise InvalidArgumentError(f"t must be of a floating-point dtype, got {t.dtype}: use t.double()")
    if t.dim() != 1 or len(t) < 2:
        raise InvalidArgumentError(f"t must hold at least two times in one dimension, got shape {tuple(t.shape)}")
    differences = t.detach().diff()
    if not torch.isfinite(t.detach()).all():
        raise InvalidArgumentError(f"t must be finite, got {t.tolist()}")
    if not ((differences > 0).all() or (differences < 0).all()):
        raise InvalidArgumentError("t must be strictly increasing or strictly decreasing")
    return t.to("cpu", torch.float64)


def _tolerance(name: str, value: Any) -> float:
    number = finite_number(name, value)
    if number < 0:
        raise InvalidArgumentError(f"{name} must be zero or more, got {value!r}")
    return number


def _length(name: str, value: Any) -> float | None:
    if value is None:
        return None
    number = finite_number(name, value)
    if number <= 0:
        raise InvalidArgumentError(f"{name} must be a positive number, got {value!r}")
    return number


def _params(f: object, gradient: Gradient, params: Iterable[Tensor] | None) -> tuple[Tensor, ...]:
    if params is not None:
        chosen = tuple(params)
    elif isinstance(f, nn.Module):
        chosen = tuple(f.parameters())
    elif isinstance(gradient, Backsolve):
        raise InvalidArgumentError(
            "backsolve has to know what gets gradients: make f a torch.nn.Module or pass params=(...); "
            "params=() if only y0 and t do"
        )
    else:
        chosen = ()
    return tuple(p for p in chosen if p.requires_grad)
