"""`solve`: the entry point of the library."""

import inspect
import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from neural_ode.compiled import per_sample_compiled, with_compiled_steps
from neural_ode.control.controllers import IntegralController
from neural_ode.control.tolerance import Tolerance
from neural_ode.errors import InvalidArgumentError, NeuralODEWarning, SolverError, finite_number
from neural_ode.gradients import (
    Adjoint,
    Backsolve,
    Direct,
    Gradient,
    InitialValueProblem,
    RecursiveCheckpoint,
    Reversible,
    get_gradient,
)
from neural_ode.gradients.differentiable import explain_transforms
from neural_ode.methods import BlackBox, ExplicitRungeKutta, Method, Solver, get_method
from neural_ode.problem.callbacks import Callbacks
from neural_ode.problem.captured import captured, parameters_of, warn_of_missing
from neural_ode.problem.event import Event
from neural_ode.problem.layout import StateLayout
from neural_ode.problem.state import State
from neural_ode.solution import DenseOutput, NoDenseOutput, Segment, Solution, Statistics
from neural_ode.stepping.events import follow_event
from neural_ode.stepping.integrate import integrate
from neural_ode.stepping.per_sample import per_sample
from neural_ode.stepping.settings import SolverSettings, Trajectory, stepping

__all__ = ["solve"]


@explain_transforms()
def solve(
    f: Callable[[Tensor, Any], Any],
    y0: State,
    t: Tensor | Iterable[float],
    *,
    method: str | Method | BlackBox | Solver = "dopri5",
    rtol: float | Tensor | Iterable[float | Tensor] = 1e-7,
    atol: float | Tensor | Iterable[float | Tensor] = 1e-9,
    gradient: str | Gradient | None = None,
    params: Iterable[Tensor] | None = None,
    controller: IntegralController | None = None,
    norm: Callable[[Any], Tensor] | None = None,
    first_step: float | None = None,
    min_step: float = 0.0,
    max_step: float = math.inf,
    max_steps: int = 2**31 - 1,
    step_t: Tensor | Iterable[float] = (),
    jump_t: Tensor | Iterable[float] = (),
    step_size: float | None = None,
    grid: Callable[[Tensor], Tensor] | None = None,
    interpolation: Literal["linear", "cubic"] = "linear",
    perturb: bool = False,
    event: Callable[[Tensor, Any], Tensor] | None = None,
    callbacks: Callbacks | None = None,
    dense: bool = False,
    batched: bool = False,
    compile: bool = False,
) -> Solution:
    """Solve the initial value problem `dy/dt = f(t, y)`, `y(t[0]) = y0`.

    Args:
        f: the dynamics, a function or module. Gets `t` of shape () and the state, returns the state's derivative
            in the same structure, shapes and dtype.
        y0: a floating-point or complex tensor of any shape, or a tuple of tensors of one device. The tensors of a
            tuple are solved in a dtype that can represent all of them. A batch may be empty.
        t: times, strictly increasing or decreasing, shape (n,). The state at `t[0]` is `y0`; if that is the only
            time there is nothing to solve. With `batched=True` also of shape (batch, n).
        method: name of a method (`neural_ode.METHODS`), a method object, or a solver of your own, a function
            `solver(f, y0, t, rtol, atol)` that returns the states at `t`: a black box, whose gradients come from
            `backsolve`.
        rtol, atol: relative and absolute tolerance: the local error of a step may be `atol + rtol · |y|`. A number,
            a tensor that broadcasts to `y0`, or for a tuple one of either for each part. Methods without an error
            estimate do not use them.
        gradient: how gradients are computed: through the steps, as autograd records them (`"direct"`, the default)
            or makes them again (`"recursive_checkpoint"`), or as a reversible solver undoes them (`"reversible"`);
            or by the adjoint equation, with the state solved backwards too (`"backsolve"`, the paper's method, and
            the default of a black box) or stored (`"interpolating"`). Also an object such as
            `Backsolve(rtol=1e-4)`. Under `torch.no_grad()` there are none.
        params: for all but `direct`, the tensors besides `y0` and `t` that get gradients; the parameters of `f`
            if it is a module.
        controller: chooses the step sizes; `IntegralController()` by default.
        norm: norm of the error control; gets tensors in the structure of `y0`, returns shape (). The default is
            the root mean square, of a tuple the largest among its parts.
        first_step: length of the first step; by default chosen from the dynamics at the cost of one evaluation.
        min_step: a step that is not longer is accepted whatever its error.
        max_step: the longest step.
        max_steps: how many steps from one output time to the next before the solve is given up.
        step_t: times that steps must end at.
        jump_t: the same for times where `f` jumps: each step sees the side of the jump that it lies on.
        step_size: take constant steps of this length instead of controlling the error.
        grid: take the steps from each point to the next of `grid(t)`, a tensor that starts and ends as `t` does,
            instead of controlling the error.
        interpolation: how methods without a continuous extension find outputs between the points of a grid.
        perturb: on a grid, evaluate `f` at the next representable time inside the step instead of at its ends.
        event: a function of time and state that returns one or more numbers. The solve ends where one of them
            changes the sign it has at `t[0]` (at once, where it is zero there); the time and the state there come
            last in the solution, differentiable as such. Without such a time up to `t[-1]`, which may be infinite,
            the solve ends as usual.
        callbacks: functions to call before and after steps.
        dense: keep every step, so that `Solution.dense(t)` gives the state at any time in between.
        batched: give every row of `y0` its own steps, error control and statistics. `f` then gets times of shape
            (batch,). For explicit methods with error control; not with `reversible` and `interpolating`.
        compile: compile the steps with `torch.compile`. What cannot be compiled runs as it is, with one warning.

    Returns:
        The states at `t`, the statistics and, where asked for, the dense output.

    Raises:
        InvalidArgumentError: an argument cannot be used; the message names it.
        UnknownNameError: no such method or gradient.
        SolverError: the solve cannot be finished: `NonFiniteError`, `StepSizeUnderflowError`, `MaxStepsError`, or
            for implicit methods `NewtonError`. Its `partial` is a `Solution` up to the time `error.t` that was
            reached.

    Example:
        >>> import torch
        >>> from neural_ode import solve
        >>> decay = solve(lambda t, y: -y, torch.ones(1, dtype=torch.float64), [0.0, 1.0])
        >>> round(decay.y[-1].item(), 6)
        0.367879
    """
    if not callable(f):
        raise InvalidArgumentError(f"f must be callable as f(t, y), got {type(f).__name__}")
    layout = StateLayout(y0, batched)
    times = _times(t, event is not None, layout.y0 if batched else None)
    chosen_method = get_method(method)
    if compile:
        _check_compiled(chosen_method)
    by_default = "backsolve" if isinstance(chosen_method, BlackBox) else "direct"
    chosen_gradient = get_gradient(by_default if gradient is None else gradient)
    tolerance = Tolerance(layout.tolerance("rtol", rtol), layout.tolerance("atol", atol), layout.packed_norm(norm))
    if not isinstance(tolerance.rtol, Tensor) and tolerance.rtol == tolerance.atol == 0:
        raise InvalidArgumentError("rtol and atol must not both be zero")
    if event is not None and not callable(event):
        raise InvalidArgumentError(f"event must be callable as event(t, y), got {type(event).__name__}")
    settings = SolverSettings(
        method=chosen_method,
        tolerance=tolerance,
        callbacks=layout.callbacks(callbacks),
        **stepping(
            controller=controller,
            first_step=first_step,
            min_step=min_step,
            max_step=max_step,
            max_steps=max_steps,
            step_t=step_t,
            jump_t=jump_t,
            step_size=step_size,
            grid=grid,
            interpolation=interpolation,
            perturb=perturb,
        ),
    )
    if isinstance(chosen_method, Method) and chosen_method.own_steps:
        if not settings.controls_error:
            raise InvalidArgumentError(f"{chosen_method.name} chooses its steps; on a grid, use implicit_adams")
        if type(settings.controller) is not IntegralController:
            raise InvalidArgumentError(
                f"{chosen_method.name} has step control of its own, got {settings.controller}"
            )
    if event is not None and isinstance(chosen_method, BlackBox):
        raise InvalidArgumentError(f"{chosen_method.name} does not look for events; dopri5 does")
    if (
        event is not None
        and math.isinf(times[-1].item())
        and not settings.controls_error
        and settings.step_size is None
    ):
        raise InvalidArgumentError(
            f"{chosen_method.name} needs a step_size to look for an event: without one it takes a single step"
        )
    problem = InitialValueProblem(
        f=layout.dynamics(f),
        y0=layout.y0,
        t=times,
        params=_params(f, chosen_gradient, params, gradient is None, lambda: _start_slope(layout, f, times)),
        restore=layout.restore,
        event=None if event is None else layout.event(Event.of(event)),
        compile=compile,
    )
    stats = Statistics()
    output: DenseOutput | NoDenseOutput = NoDenseOutput()
    try:
        if batched:
            trajectory = _solve_batched(problem, settings, stats, chosen_gradient, dense)
        elif dense:
            trajectory, output = _solve_dense(problem, settings, stats, chosen_gradient)
        else:
            trajectory = chosen_gradient(problem, settings, stats)
    except SolverError as error:
        if error.partial is not None:
            reached, states = error.partial
            error.partial = Solution(reached, layout.restore(states), stats)
        raise
    if problem.event is not None and trajectory.event is not None and problem.event.moves:
        at, state = follow_event(problem.f, problem.event, trajectory.event, trajectory.t[-1], trajectory.y[-1])
        trajectory = trajectory._replace(
            t=torch.cat([trajectory.t[:-1], at[None]]), y=torch.cat([trajectory.y[:-1], state[None]])
        )
    shown = t if isinstance(t, Tensor) and trajectory.event is None else trajectory.t
    return Solution(shown, layout.restore(trajectory.y), stats, output, trajectory.event)


def _check_compiled(method: Method | BlackBox) -> None:
    if not isinstance(method, ExplicitRungeKutta):
        warnings.warn(
            f"compile=True is for explicit Runge-Kutta methods, such as dopri5; {method.name} runs as it is",
            NeuralODEWarning,
            stacklevel=3,
        )


def _solve_dense(
    problem: InitialValueProblem, settings: SolverSettings, stats: Statistics, gradient: Gradient
) -> tuple[Trajectory, DenseOutput]:
    method = settings.method
    if not isinstance(method, Method) or not method.has_dense_output:
        raise InvalidArgumentError(f"{method.name} has no dense output; dopri5 has")
    if not isinstance(gradient, Direct):
        raise InvalidArgumentError("dense=True needs gradient='direct': it keeps the steps")
    segments: list[Segment] = []
    if problem.compile:
        settings = with_compiled_steps(settings, stats, "dense=True keeps the steps")
    # The first step starts from y0, which stays the caller's.
    problem = replace(problem, t=problem.t.detach(), y0=problem.y0.clone())
    trajectory = integrate(problem.f, problem.y0, problem.t, settings, stats, segments.append, problem.event)
    return trajectory, DenseOutput(method, segments, problem.y0, trajectory.t[-1].item(), problem.restore)


def _solve_batched(
    problem: InitialValueProblem, settings: SolverSettings, stats: Statistics, gradient: Gradient, dense: bool
) -> Trajectory:
    method = settings.method
    if not isinstance(method, ExplicitRungeKutta) or not settings.controls_error:
        raise InvalidArgumentError(
            f"batched=True is for explicit methods with error control, such as dopri5; got {method.name}"
            + ("" if isinstance(method, Method) and not method.adaptive else " on a fixed grid")
        )
    if not isinstance(gradient, Direct | RecursiveCheckpoint | Backsolve):
        raise InvalidArgumentError(
            "batched=True needs gradient='direct' or 'recursive_checkpoint', which go back through the steps of "
            f"each row, or 'backsolve', which gives each row new ones; got {gradient!r}"
        )
    if isinstance(gradient, Backsolve):
        gradient.check_rows(method)
    for name, value in (
        ("event", problem.event),
        ("dense", dense),
        ("step_t", settings.step_t),
        ("jump_t", settings.jump_t),
        ("callbacks", settings.callbacks != Callbacks()),
    ):
        if value:
            raise InvalidArgumentError(
                f"{name} cannot be used with batched=True: every sample has times of its own"
            )
    if not isinstance(gradient, Direct):
        return gradient(replace(problem, batched=True), settings, stats)
    run = per_sample_compiled if problem.compile else per_sample
    return run(problem.f, problem.y0, problem.t, settings, stats)


def _times(t: Tensor | Iterable[float], with_event: bool, batch: Tensor | None) -> Tensor:
    """The times as float64 on the CPU: steps are counted in float64 whatever the state is."""
    if isinstance(t, str | bytes) or not isinstance(t, Iterable):
        raise InvalidArgumentError(f"t must be a tensor or a sequence of times, got {type(t).__name__}")
    if not isinstance(t, Tensor):
        t = torch.tensor([finite_number("t", x) if not with_event else float(x) for x in t], dtype=torch.float64)
    if not t.is_floating_point():
        raise InvalidArgumentError(f"t must be of a floating-point dtype, got {t.dtype}: use t.double()")
    if batch is not None and t.dim() == 2:
        if len(t) != len(batch):
            raise InvalidArgumentError(f"t has {len(t)} rows of times for a batch of {len(batch)}")
    elif t.dim() != 1:
        raise InvalidArgumentError(f"t must have one dimension, got shape {tuple(t.shape)}")
    if t.shape[-1] == 0:
        raise InvalidArgumentError("t must hold at least one time, got none")
    values = t.detach().to("cpu", torch.float64)
    finite = torch.isfinite(values)
    if with_event:
        finite[-1] |= torch.isinf(values[-1])
    if not finite.all():
        raise InvalidArgumentError(f"t must be finite, got {t.tolist()}")
    differences = values.diff()
    if not ((differences > 0).all() or (differences < 0).all()):
        raise InvalidArgumentError(f"t must be strictly increasing or strictly decreasing, got {t.tolist()}")
    return t.to("cpu", torch.float64)


def _start_slope(layout: StateLayout, f: Callable[[Tensor, Any], Any], t: Tensor) -> Tensor:
    y0 = layout.y0
    slope: Tensor = layout.dynamics(f)(t.detach()[..., 0].to(y0.device), y0.detach())
    return slope


def _params(
    f: object,
    gradient: Gradient,
    params: Iterable[Tensor] | None,
    by_default: bool,
    evaluate: Callable[[], Tensor],
) -> tuple[Tensor, ...]:
    """What gets gradients besides the initial state and the times.

    Args:
        by_default: whether the gradient was not asked for: then what a function refers to is found.
        evaluate: the slope at the start.
    """
    f = inspect.unwrap(f) if callable(f) else f
    if params is not None:
        chosen = tuple({id(p): p for p in params}.values())
        for p in chosen:
            if not isinstance(p, Tensor):
                raise InvalidArgumentError(f"params must be tensors, got {type(p).__name__}")
    elif isinstance(gradient, Direct) or isinstance(f, nn.Module):
        chosen = parameters_of(f)
    elif by_default:
        chosen = tuple({id(p): p for p in captured(f).values()}.values())
    elif isinstance(gradient, RecursiveCheckpoint | Adjoint | Reversible):
        raise InvalidArgumentError(
            f"{gradient.name} has to know what gets gradients: make f a torch.nn.Module or pass params=(...); "
            "params=() if only y0 and t do"
        )
    else:
        chosen = ()
    chosen = tuple(p for p in chosen if p.requires_grad)
    if torch.is_grad_enabled() and not isinstance(gradient, Direct) and (chosen or params is None):
        warn_of_missing(f, chosen, getattr(gradient, "name", repr(gradient)), evaluate)
    return chosen
