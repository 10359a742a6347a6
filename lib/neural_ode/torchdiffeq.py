"""The names and signatures that users of torchdiffeq type."""

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from neural_ode.errors import InvalidArgumentError, NeuralODEWarning
from neural_ode.gradients import Backsolve, Gradient
from neural_ode.gradients.differentiable import explain_transforms
from neural_ode.problem.captured import parameters_of
from neural_ode.problem.event import Event
from neural_ode.problem.layout import StateLayout
from neural_ode.problem.state import State
from neural_ode.solution import DenseOutput, Solution
from neural_ode.solve import solve_laid_out
from neural_ode.stepping.events import follow_event
from neural_ode.stepping.settings import SolverSettings, stepping
from neural_ode.torchdiffeq_options import (
    Func,
    NamedMethod,
    adjoint_norm,
    lenient,
    named_method,
    solver_keywords,
)

__all__ = ["odeint", "odeint_adjoint", "odeint_dense", "odeint_event"]

_EVENT_STEPS = 20_000
"""How many steps torchdiffeq, on a fixed grid, looks for an event; here the limit of all methods."""


def odeint(
    func: Func,
    y0: State,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: dict[str, Any] | None = None,
    event_fn: Callable[[Tensor, Any], Tensor] | None = None,
    gradient: str | Gradient | None = None,
    compile: bool = False,
) -> Any:
    """Solve `dy/dt = func(t, y)`, `y(t[0]) = y0`, and differentiate through the steps.

    The arguments are those of torchdiffeq's `odeint` and mean the same; `gradient` and `compile` are those of
    `solve`, which does the work and has the longer documentation.

    Args:
        func: the dynamics. A derivative that broadcasts to the state, or has another dtype, is accepted.
            Callbacks are found on it by their names, `callback_step`, `callback_accept_step` and
            `callback_reject_step`.
        y0: a tensor or a tuple of tensors.
        t: times, strictly monotonic, shape (n,). With `event_fn`, two of them, of which the second only says
            which way to go.
        rtol, atol: tolerances: a number, a tensor, or for a tuple state one of either for each part.
        method: `"dopri5"` if left out.
        options: `first_step`, `min_step`, `max_step`, `max_num_steps`, `step_t`, `jump_t`, `safety`, `ifactor`,
            `dfactor` and `norm` for adaptive methods; `step_size`, `grid_constructor`, `interp` and `perturb` for
            methods on a fixed grid; `max_order` and `max_iters` where the method has them; `solver`, `min_step`
            and `max_step` for `scipy_solver`. Times are counted in float64, whatever `dtype` says. Others warn
            and have no effect.
        event_fn: a function of time and state; the solve ends where it changes its sign.

    Returns:
        The states at `t`: shape (n, *y0.shape), or a tuple of such tensors. With `event_fn`: the time of the event
        and the states at `t[0]` and there, differentiable as if that time were fixed; `odeint_event` lets it move.

    Raises:
        NeuralODEError: see `solve`; also where a solve on a fixed grid ends in NaN, which torchdiffeq returns. An
            event that has not happened after `max_num_steps` steps, by default 20000, raises `MaxStepsError`.
    """
    layout = _laid_out(y0, t)
    solution = _solve(
        func, layout, t, rtol, atol, named_method(method), options, gradient, compile, event_fn=event_fn
    )
    return _states(solution, t, event_fn)


def odeint_adjoint(
    func: Func,
    y0: State,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: dict[str, Any] | None = None,
    event_fn: Callable[[Tensor, Any], Tensor] | None = None,
    adjoint_rtol: Any = None,
    adjoint_atol: Any = None,
    adjoint_method: str | None = None,
    adjoint_options: dict[str, Any] | None = None,
    adjoint_params: Iterable[Tensor] | None = None,
    gradient: str | Gradient | None = None,
    compile: bool = False,
) -> Any:
    """`odeint` with gradients by the adjoint method (`gradient="backsolve"` of `solve`).

    Args:
        func, y0, t, rtol, atol, method, options, event_fn: see `odeint`. `func` must be a module unless
            `adjoint_params` is given. Its callbacks for the backward solve have names that end in `_adjoint`.
        adjoint_rtol, adjoint_atol, adjoint_method, adjoint_options: of the backward solve; those of the forward
            solve if left out, without its norm. A norm gets the tuple `(0, *y, *a, *∂L/∂θ)`, whose first entry
            stands where torchdiffeq has `∂L/∂t`, which is no part of the system here; `"seminorm"` leaves out the
            parameters (Kidger et al. 2021).
        adjoint_params: tensors that get gradients besides `y0` and `t`; the parameters of `func` if left out.
        gradient: another way to differentiate, instead of what the `adjoint_` arguments describe.

    Raises:
        InvalidArgumentError: `func` is no module and `adjoint_params` is not given; or `adjoint_method` is given,
            `options` are, and `adjoint_options` are not.
    """
    if adjoint_params is None and not isinstance(func, nn.Module):
        raise InvalidArgumentError(
            "func must be a torch.nn.Module, whose parameters get gradients, or adjoint_params be given, if only "
            f"as (); got {type(func).__name__}"
        )
    if adjoint_method not in (None, method) and options is not None and adjoint_options is None:
        raise InvalidArgumentError(
            f"adjoint_options must be given: the options are for {method!r}, not for {adjoint_method!r}"
        )
    layout, chosen = _laid_out(y0, t), named_method(method)
    if adjoint_params is not None:
        adjoint_params = tuple(adjoint_params)
    if gradient is None:
        params = parameters_of(func) if adjoint_params is None else adjoint_params
        own = chosen if adjoint_method in (None, method) else named_method(adjoint_method)
        norm = (adjoint_options or {}).get("norm")
        backward = (options if adjoint_options is None else adjoint_options) or {}
        backward = {name: value for name, value in backward.items() if name != "norm"}
        gradient = _backsolve(func, layout, t, adjoint_rtol, adjoint_atol, own, backward, norm, params)
    solution = _solve(func, layout, t, rtol, atol, chosen, options, gradient, compile, event_fn, adjoint_params)
    return _states(solution, t, event_fn)


def odeint_event(
    func: Func,
    y0: State,
    t0: Tensor,
    *,
    event_fn: Callable[[Tensor, Any], Tensor],
    reverse_time: bool = False,
    odeint_interface: Callable[..., Any] = odeint,
    **kwargs: Any,
) -> tuple[Tensor, State]:
    """Solve until `event_fn(t, y)` changes its sign; time and state there are differentiable as such.

    Args:
        func, y0: see `odeint`.
        t0: where to start, a tensor of one element.
        event_fn: a function of time and state that returns one or more numbers, the first of which to change its
            sign ends the solve.
        reverse_time: whether to go backwards.
        odeint_interface: `odeint`, `odeint_adjoint`, or a function like these.
        **kwargs: passed on to it.

    Returns:
        The time of the event, shape (), and the states at `t0` and there, shape (2, *y0.shape), or a tuple of such
        tensors.
    """
    if not isinstance(t0, Tensor) or t0.numel() != 1:
        raise InvalidArgumentError(f"t0 must be a tensor of one element, got {t0!r}")
    moving = Event.of(event_fn)
    start = t0.reshape(1)
    t = torch.cat([start, start.detach() + (-1.0 if reverse_time else 1.0)])
    event_t, solution = odeint_interface(func, y0, t, event_fn=event_fn, **kwargs)

    layout = StateLayout(y0)
    state = layout.pack(tuple(part[-1] for part in solution) if isinstance(solution, tuple) else solution[-1])
    event = layout.event(moving)
    component = _component(event, t0.reshape(()), layout.y0, event_t, state)
    event_t, state = follow_event(layout.dynamics(lenient(func)), event, component, event_t, state)
    end = layout.restore(state)
    if isinstance(solution, tuple):
        return event_t, tuple(
            torch.cat([part[:-1], final[None]]) for part, final in zip(solution, end, strict=True)
        )
    assert isinstance(end, Tensor)
    return event_t, torch.cat([solution[:-1], end[None]])


def _component(event: Event, t0: Tensor, y0: Tensor, t: Tensor, y: Tensor) -> int:
    """Which number of the event function crossed: of those with another sign than at the start the nearest zero."""
    with torch.no_grad():
        before, after = (
            event(time.detach().double(), state.detach()).reshape(-1).double() for time, state in ((t0, y0), (t, y))
        )
        size = after.abs()
        changed = before.sign() != after.sign()
        return int(torch.where(changed, size, torch.inf).argmin() if changed.any() else size.argmin())


def odeint_dense(
    func: Func,
    y0: State,
    t0: Tensor | float,
    t1: Tensor | float,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: dict[str, Any] | None = None,
    gradient: str | Gradient | None = None,
    compile: bool = False,
) -> DenseOutput:
    """Solve from `t0` to `t1` and return the solution as a function of time.

    Args:
        func, y0, rtol, atol, method, options: see `odeint`; a method with dense output.
        t0, t1: where to start and end.

    Returns:
        A function that maps a time, or a tensor of times, to the states there.
    """
    t = torch.stack([torch.as_tensor(time, dtype=torch.float64).reshape(()).cpu() for time in (t0, t1)])
    chosen = named_method(method)
    dense = _solve(func, StateLayout(y0), t, rtol, atol, chosen, options, gradient, compile, dense=True).dense
    assert isinstance(dense, DenseOutput)
    return dense


def _laid_out(y0: State, t: Tensor) -> StateLayout:
    if not isinstance(t, Tensor):
        raise InvalidArgumentError(f"t must be a tensor, got {type(t).__name__}: use torch.as_tensor(t)")
    return StateLayout(y0)


def _solve(
    func: Func,
    layout: StateLayout,
    t: Tensor,
    rtol: Any,
    atol: Any,
    method: NamedMethod,
    options: dict[str, Any] | None,
    gradient: str | Gradient | None,
    compile: bool,
    event_fn: Callable[[Tensor, Any], Tensor] | None = None,
    params: Iterable[Tensor] | None = None,
    dense: bool = False,
) -> Solution:
    """What the arguments of torchdiffeq mean to `solve`."""
    keywords = solver_keywords(func, layout, t, method, options)
    event = None
    if event_fn is not None:
        if len(t) != 2:
            raise InvalidArgumentError(
                f"t must hold two times, the start and one in the direction to go, got {len(t)}"
            )
        event = replace(Event.of(event_fn), moves=False)
        away = math.copysign(math.inf, (t[1] - t[0]).item())
        t = torch.cat([t[:1], t.new_tensor([away])])
        keywords = {"max_steps": _EVENT_STEPS} | keywords
    dynamics = lenient(func, broadcasts=not method.method.adaptive)
    with explain_transforms():
        settings = SolverSettings.checked(layout, rtol=rtol, atol=atol, **keywords)
        return solve_laid_out(
            dynamics, layout, t, settings, gradient, params, look=True, event=event, compile=compile, dense=dense
        )


def _states(solution: Solution, t: Tensor, event_fn: object) -> Any:
    if event_fn is None:
        return solution.y
    return solution.t[-1].to(t.dtype).to(t.device), solution.y


def _backsolve(
    func: Func,
    layout: StateLayout,
    t: Tensor,
    rtol: Any,
    atol: Any,
    method: NamedMethod,
    options: dict[str, Any],
    norm: Any,
    params: Iterable[Tensor],
) -> Backsolve:
    """The adjoint method as torchdiffeq's arguments describe it.

    Its solve takes no option from the forward solve but those it is given.
    """
    if callable(norm) and not all(p.requires_grad for p in params):
        text = "parameters that do not require gradients are not solved for and do not appear in the adjoint norm"
        warnings.warn(text, NeuralODEWarning, stacklevel=3)
    keywords = solver_keywords(func, layout, t, method, options, "_adjoint")
    own, callbacks = keywords.pop("method"), keywords.pop("callbacks")
    steps = stepping(**keywords) | {"callbacks": callbacks}
    return Backsolve(method=own, rtol=rtol, atol=atol, norm=adjoint_norm(norm), options=steps)
