"""Solving an initial value problem: hands it to the loop that the settings ask for."""

from collections.abc import Callable
from dataclasses import fields

import torch
from torch import Tensor

from neural_ode.errors import SolverError
from neural_ode.methods import BlackBox
from neural_ode.problem.event import Event
from neural_ode.problem.state import Dynamics
from neural_ode.solution import Segment, Statistics
from neural_ode.stepping.adaptive import adaptive
from neural_ode.stepping.fixed_grid import fixed_grid
from neural_ode.stepping.settings import SolverSettings, Trajectory

__all__ = ["integrate"]

_STEPS = frozenset({"first_step", "min_step", "max_step", "max_steps"})
_DEFAULT = {f.name: f.default for f in fields(SolverSettings)}


def integrate(
    f: Dynamics,
    y0: Tensor,
    t: Tensor,
    settings: SolverSettings,
    stats: Statistics,
    record: Callable[[Segment], None] | None = None,
    event: Event | None = None,
) -> Trajectory:
    """Solve `dy/dt = f(t, y)`, `y(t[0]) = y0`, at the times `t`, or until an event.

    Differentiable with respect to `y0`, whatever `f` depends on, and `t` where it requires a gradient. The step
    lengths of an adaptive solve count as constants: moving `t[0]` shifts the whole grid, moving another time
    moves a point on the continuous extension, whose slope there is `f`. The state at an event is differentiable
    at fixed time; `follow_event` lets the time move.

    Args:
        f: the dynamics; gets its time in float64.
        y0: the initial state, any shape.
        t: strictly monotonic times, float64, shape (n,). With an event the last may be infinite.
        settings: how to solve.
        stats: counters to add to.
        record: called with every accepted step.
        event: ends the solve where one of its numbers changes its sign.

    Raises:
        SolverError: the solve cannot be finished; `partial` holds the times and states that were found.
    """
    if len(t) == 1:
        return Trajectory(t, y0[None].clone())
    if isinstance(settings.method, BlackBox):
        given = {
            n: getattr(settings, n) for n in _STEPS & settings.method.options if getattr(settings, n) != _DEFAULT[n]
        }
        method = settings.method.configured(**given) if given else settings.method
        try:
            with torch.no_grad():
                y, nfe = method.integrate(f, y0, t, settings.tolerance.rtol, settings.tolerance.atol)
        except SolverError as error:
            if error.partial is None:  # raised by f itself
                raise
            times, states = error.partial
            raise error.at(times[-1], (t.new_tensor(times), states)) from None
        stats.nfe += nfe
        return Trajectory(t, y)
    loop = adaptive if settings.controls_error else fixed_grid
    return loop(f, y0, t, settings, stats, record, event)
