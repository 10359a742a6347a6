"""`solve`: the entry point of the library."""

import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from neural_ode.compiled import with_compiled_steps
from neural_ode.control.controllers import IntegralController
from neural_ode.errors import InvalidArgumentError, NeuralODEWarning, SolverError
from neural_ode.gradients import Gradient, check_gradient, get_gradient
from neural_ode.gradients.differentiable import explain_transforms
from neural_ode.gradients.parameters import params_of
from neural_ode.methods import BlackBox, Method, Solver
from neural_ode.problem.callbacks import Callbacks
from neural_ode.problem.event import Event
from neural_ode.problem.initial_value import InitialValueProblem, output_times
from neural_ode.problem.layout import StateLayout
from neural_ode.problem.state import Dynamics, State
from neural_ode.solution import DenseOutput, NoDenseOutput, Segment, Solution, Statistics
from neural_ode.stepping.events import follow_event
from neural_ode.stepping.integrate import integrate
from neural_ode.stepping.settings import SolverSettings, Trajectory

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

    **The problem and its method**

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
        batched: give every row of `y0` its own steps, error control and statistics. `f` then gets times of shape
            (batch,). For explicit methods with error control; not with `reversible` and `interpolating`.
        compile: compile the solve, or else its steps, with `torch.compile`. What cannot be compiled runs as it is,
            with one warning. `Solution.stats` says which it was.

    **Control of the steps**

    Args:
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

    **Gradients**

    Args:
        gradient: how gradients are computed: through the steps, as autograd records them (`"direct"`, the default)
            or makes them again (`"recursive_checkpoint"`), or as a reversible solver undoes them (`"reversible"`);
            or by the adjoint equation, with the state solved backwards too (`"backsolve"`, the paper's method, and
            the default of a black box) or stored (`"interpolating"`). Also an object such as
            `Backsolve(rtol=1e-4)`. Under `torch.no_grad()` there are none.
        params: for all but `direct`, the tensors besides `y0` and `t` that get gradients; the parameters of `f`
            if it is a module.

    **Where it ends and what it keeps**

    Args:
        event: a function of time and state that returns one or more numbers. The solve ends where one of them
            changes the sign it has at `t[0]` (at once, where it is zero there); the time and the state there come
            last in the solution, differentiable as such. Without such a time up to `t[-1]`, which may be infinite,
            the solve ends as usual.
        callbacks: functions to call before and after steps.
        dense: keep every step, so that `Solution.dense(t)` gives the state at any time in between.

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
    settings = SolverSettings.checked(
        layout,
        method=method,
        rtol=rtol,
        atol=atol,
        norm=norm,
        callbacks=callbacks,
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
    )
    found = solve_laid_out(
        f, layout, t, settings, gradient, params, look=gradient is None, event=event, compile=compile, dense=dense
    )
    # The user's own tensor where every time was reached, so that its graph, dtype and device are kept.
    shown = t if isinstance(t, Tensor) and found.event is None else found.t
    return Solution(shown, found.y, found.stats, found.dense, found.event)


def solve_laid_out(
    f: Callable[[Tensor, Any], Any],
    layout: StateLayout,
    t: Tensor | Iterable[float],
    settings: SolverSettings,
    gradient: str | Gradient | None,
    params: Iterable[Tensor] | None,
    *,
    look: bool,
    event: Callable[[Tensor, Any], Tensor] | None,
    compile: bool,
    dense: bool,
) -> Solution:
    """What `solve` and the names of torchdiffeq share: from a state laid out and settings checked to the solution.

    Args:
        f, t, gradient, params, event, compile, dense: see `solve`.
        layout: of the initial state.
        settings: how to solve.
        look: whether the tensors that a function `f` refers to get gradients, if `params` does not say.
    """
    times = output_times(t, event is not None, layout.y0 if layout.batched else None)
    if gradient is None:
        gradient = "direct" if settings.method.shows_steps else "backsolve"
    choice = get_gradient(gradient)
    if event is not None and not callable(event):
        raise InvalidArgumentError(f"event must be callable as event(t, y), got {type(event).__name__}")
    dynamics = layout.dynamics(f)
    problem = InitialValueProblem(
        f=dynamics,
        y0=layout.y0,
        t=times,
        params=params_of(f, choice, params, look, lambda: _start_slope(dynamics, layout.y0, times)),
        restore=layout.restore,
        event=None if event is None else layout.event(Event.of(event)),
        compile=compile,
        batched=layout.batched,
        dense=dense,
    )
    settings.check(problem)
    check_gradient(choice, problem, settings)
    if compile and not settings.method.supports_compile:
        name = settings.method.name
        text = f"compile=True is for explicit Runge-Kutta methods, such as dopri5; {name} runs as it is"
        warnings.warn(text, NeuralODEWarning, stacklevel=4)
    return _solve(problem, settings, choice)


def _solve(problem: InitialValueProblem, settings: SolverSettings, gradient: Gradient) -> Solution:
    stats = Statistics()
    output: DenseOutput | NoDenseOutput = NoDenseOutput()
    try:
        if problem.dense:
            trajectory, output = _solve_dense(problem, settings, stats)
        else:
            trajectory = gradient(problem, settings, stats)
    except SolverError as error:
        if error.partial is not None:
            reached, states = error.partial
            error.partial = Solution(reached, problem.restore(states), stats)
        raise
    if problem.event is not None and trajectory.event is not None and problem.event.moves:
        at, state = follow_event(problem.f, problem.event, trajectory.event, trajectory.t[-1], trajectory.y[-1])
        trajectory = trajectory._replace(
            t=torch.cat([trajectory.t[:-1], at[None]]), y=torch.cat([trajectory.y[:-1], state[None]])
        )
    return Solution(trajectory.t, problem.restore(trajectory.y), stats, output, trajectory.event)


def _solve_dense(
    problem: InitialValueProblem, settings: SolverSettings, stats: Statistics
) -> tuple[Trajectory, DenseOutput]:
    method = settings.method
    assert isinstance(method, Method)
    segments: list[Segment] = []
    if problem.compile:
        settings = with_compiled_steps(settings, stats, "dense=True keeps the steps")
    # The first step starts from y0, which stays the caller's.
    t, y0 = problem.t.detach(), problem.y0.clone()
    trajectory = integrate(problem.f, y0, t, settings, stats, segments.append, problem.event)
    return trajectory, DenseOutput(method, segments, y0, trajectory.t[-1].item(), problem.restore)


def _start_slope(f: Dynamics, y0: Tensor, t: Tensor) -> Tensor:
    return f(t.detach()[..., 0].to(y0.device), y0.detach())
