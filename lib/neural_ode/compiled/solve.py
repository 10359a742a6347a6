"""Solves compiled as far as it goes: as a whole, or else their steps."""

import torch
from torch import Tensor

from neural_ode.compiled.cache import CACHE
from neural_ode.compiled.compiler import CannotCompile
from neural_ode.compiled.dynamics import LiftedDynamics, compiling, depends_on_parameters
from neural_ode.compiled.forward import run
from neural_ode.compiled.gradient import solve_with_gradient
from neural_ode.compiled.plan import LARGE, Plan
from neural_ode.compiled.steps import with_compiled_steps
from neural_ode.control.controllers import IntegralController
from neural_ode.methods import ExplicitRungeKutta
from neural_ode.problem.callbacks import Callbacks
from neural_ode.problem.event import Event
from neural_ode.problem.state import Dynamics
from neural_ode.solution import Statistics
from neural_ode.stepping.integrate import integrate
from neural_ode.stepping.per_sample import per_sample
from neural_ode.stepping.settings import SolverSettings, Trajectory

__all__ = ["check", "compiled_integrate", "integrate_compiled", "per_sample_compiled"]

# Facts about kinds of dynamics.
_REFUSED = "why a whole solve does not compile"
_FITS = "they fit their state"


def integrate_compiled(
    f: Dynamics, y0: Tensor, t: Tensor, settings: SolverSettings, stats: Statistics, event: Event | None = None
) -> Trajectory:
    """`integrate`, compiled as far as it goes: the whole solve, or else its steps."""
    reason = "the solve ends at an event"
    if event is None:
        try:
            return compiled_integrate(f, y0, t, settings, stats)
        except CannotCompile as error:
            reason = str(error)
    return integrate(f, y0, t, with_compiled_steps(settings, stats, reason), stats, event=event)


def per_sample_compiled(
    f: Dynamics, y0: Tensor, t: Tensor, settings: SolverSettings, stats: Statistics
) -> Trajectory:
    """`per_sample`, compiled as far as it goes: the whole solve, or else its steps."""
    try:
        return compiled_integrate(f, y0, t, settings, stats, batched=True)
    except CannotCompile as error:
        return per_sample(f, y0, t, with_compiled_steps(settings, stats, str(error)), stats)


def compiled_integrate(
    f: Dynamics,
    y0: Tensor,
    t: Tensor,
    settings: SolverSettings,
    stats: Statistics,
    params: tuple[Tensor, ...] | None = None,
    batched: bool = False,
) -> Trajectory:
    """A compiled solve; arguments as for `integrate`, or `per_sample` if it is `batched`.

    Args:
        params: what gets gradients besides `y0` and `t`, parameters of modules that `f` is or refers to; all of
            them that require gradients if left out. If given, `stats.backward` is filled in by the backward pass.

    Raises:
        CannotCompile: use the loops in Python.
    """
    check(y0, t, settings)
    report = None if params is None else stats
    if not torch.is_grad_enabled():
        params = ()
    return compiling(f, y0, params, lambda dynamics: _solved(dynamics, y0, t, settings, stats, report, batched))


def _solved(
    dynamics: LiftedDynamics,
    y0: Tensor,
    t: Tensor,
    settings: SolverSettings,
    stats: Statistics,
    report: Statistics | None,
    batched: bool,
) -> Trajectory:
    assert isinstance(settings.method, ExplicitRungeKutta)
    grad, facts = torch.is_grad_enabled(), CACHE.facts
    refused = (_REFUSED, batched, dynamics.kind)
    if refused in facts:
        raise CannotCompile(facts[refused])
    moving, depends = grad and t.requires_grad, False
    times = t.expand(len(y0), t.shape[-1]) if batched else t
    fits = (_FITS, batched, dynamics.kind, dynamics.constants, y0.dtype, y0.device, y0.shape[1:])
    if grad or fits not in facts:
        depends = depends_on_parameters(dynamics, times.detach()[..., 0].to(y0.device), y0, grad)
        facts[fits] = True
    plan = Plan(dynamics, settings, settings.method, times.detach().numpy(), moving, y0.numel())
    try:
        if grad and (depends or y0.requires_grad or moving):
            y, solved = solve_with_gradient(plan, report, y0, times)
        else:
            y, solved = run(plan, y0)
    except CannotCompile as error:
        if not error.failed and not dynamics.lifts:
            facts[refused] = str(error)
        raise
    own = solved.stats
    stats.nfe += own.nfe
    stats.accepted += own.accepted
    stats.rejected += own.rejected
    stats.step_sizes += own.step_sizes
    stats.per_sample, stats.compiled = own.per_sample, own.compiled
    return Trajectory(t, y, solved.next_step)


def check(y0: Tensor, t: Tensor, settings: SolverSettings) -> None:
    """What the compiled loop does not do.

    Raises:
        CannotCompile: it would have to.
    """
    if not isinstance(settings.method, ExplicitRungeKutta) or not settings.controls_error:
        raise CannotCompile(f"{settings.method.name} is not an explicit method with error control")
    if not settings.method.has_dense_output:
        raise CannotCompile(f"{settings.method.name} has no dense output")
    if type(settings.controller) is not IntegralController:
        raise CannotCompile(f"the controller is {type(settings.controller).__name__}")
    if settings.step_t or settings.jump_t:
        raise CannotCompile("step_t and jump_t cut the steps")
    if settings.callbacks != Callbacks():
        raise CannotCompile("there are callbacks")
    if y0.is_complex() or y0.numel() == 0 or t.shape[-1] < 2:
        raise CannotCompile("the state is complex or empty, or there is nothing to solve")
    if y0.numel() > LARGE:
        raise CannotCompile("the state is large, its arithmetic takes most of the time")
    if torch.is_autocast_enabled(y0.device.type):
        raise CannotCompile("autocast is on")
    if torch.is_inference_mode_enabled() or y0.is_inference():
        raise CannotCompile("inference mode is on; torch.no_grad() does the same")
