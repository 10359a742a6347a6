"""The gradient of a compiled solve, that of `gradient="direct"`, by recomputation.

Kept are the time, the length and the state of every accepted step; the backward pass makes the steps again, from
the last to the first.
"""

from typing import Any

import torch
from torch import Tensor

from neural_ode.compiled.backward import march_back
from neural_ode.compiled.compiler import CannotCompile, call
from neural_ode.compiled.dynamics import with_parameters
from neural_ode.compiled.forward import Solved, run
from neural_ode.compiled.outputs import located, readings
from neural_ode.compiled.plan import Plan, Recorded
from neural_ode.problem.dependence import gradients, own_parts
from neural_ode.solution import Statistics
from neural_ode.stepping.integrate import integrate
from neural_ode.stepping.per_sample import per_sample
from neural_ode.stepping.step_records import take_tensors

__all__ = ["solve_with_gradient"]

Gradients = tuple[Tensor | None, ...]
"""With respect to the initial state, the times, and each parameter."""


def solve_with_gradient(plan: Plan, report: Statistics | None, y0: Tensor, t: Tensor) -> tuple[Tensor, Solved]:
    """`run`, with the states attached to the graph of autograd.

    Args:
        plan: what is solved.
        report: `report.backward` is filled in by the backward pass; or `None`.
        y0: the initial state.
        t: the output times, in the shape of those of the plan.
    """
    y, solved = _Recomputed.apply(plan, report, y0, t, *plan.dynamics.params)
    return y, solved


class _Recomputed(torch.autograd.Function):
    """The solve, with a backward pass that makes its steps again, from the last to the first."""

    @staticmethod
    def forward(
        ctx: Any, plan: Plan, report: Statistics | None, y0: Tensor, t: Tensor, *params: Tensor
    ) -> tuple[Tensor, Solved]:
        y, solved = run(plan, y0, keep=True)
        tensors, ctx.put_back = take_tensors(solved.recorded)
        ctx.plan, ctx.report, ctx.steps, ctx.count = plan, report, solved.steps, len(params)
        ctx.save_for_backward(y0, t, *params, *tensors)
        return y, solved._replace(recorded=[])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: None) -> Gradients:
        y0, t, *rest = ctx.saved_tensors
        plan, params = ctx.plan, tuple(rest[: ctx.count])
        stats = Statistics(nfe=ctx.steps * plan.method.tableau.stages, accepted=ctx.steps)
        if ctx.report is not None:
            ctx.report.backward = stats
        stats.not_compiled = "it is differentiated itself"
        if not torch.is_grad_enabled():
            try:
                with torch.autocast(grad.device.type, enabled=False):
                    recorded = ctx.put_back(rest[ctx.count :])
                    found = _pulled(plan, recorded, y0, grad.contiguous(), params)
                stats.compiled, stats.not_compiled = "solve", None
                return None, None, *found
            except CannotCompile as error:
                stats.not_compiled = str(error)
        return None, None, *_pulled_in_python(plan, y0, t, params, grad)


def _pulled(
    plan: Plan, recorded: list[Recorded], y0: Tensor, grad: Tensor, params: tuple[Tensor, ...]
) -> Gradients:
    """The gradients from those of the outputs, shape (n, *state), by the graph.

    Raises:
        CannotCompile: there is none.
    """
    dynamics, method, capacity = plan.dynamics, plan.method, plan.capacity
    grad_y, grad_t = torch.zeros_like(grad[0]), None
    summed = tuple(torch.zeros_like(p) for p in params)
    ends = plan.times.shape[:-1]
    if plan.moving:
        grad_t = torch.zeros(plan.times.size, dtype=torch.float64, device=grad.device)
        summed = (torch.zeros(ends, dtype=torch.float64, device=grad.device), *summed)
    number = method.tableau.stages
    key = dynamics.key_with_parameters(method, None, plan.moving, len(ends))
    for chunk in reversed(recorded):
        log = chunk.log.new_zeros((capacity, *chunk.log.shape[1:]))
        log[: chunk.number] = chunk.log
        states = grad.new_zeros((capacity + 1, *y0.shape))
        states[: chunk.number + 1] = chunk.states
        places, _ = located(plan, chunk.done, chunk.ends)
        read = readings(plan, places, chunk.log.cpu().numpy(), chunk.ends, grad)
        part = plan.rows(grad)[read.targets]
        grad_states, grad_slopes = torch.zeros_like(states), grad.new_zeros((capacity, number, *y0.shape))
        plan.rows(grad_states).index_add_(0, read.sources, part)
        read.spread(part, plan.rows(grad_slopes), joint=not plan.by_rows)
        if grad_t is not None:
            assert chunk.rates is not None
            grad_t[read.targets] = (part * chunk.rates).sum(1).to(grad_t)
        count = torch.tensor(chunk.number, device=grad.device)
        fixed = (dynamics, method, plan.moving, count, log, states, grad_states, grad_slopes)
        grad_y, *rest = call(march_back, key, y0, *fixed, (grad_y + grad_states[chunk.number], *summed), params)
        summed = tuple(rest)
    if grad_t is not None:
        # Moving the start moves all steps, and the outputs the other way along them.
        grad_t = grad_t.view(-1, plan.batch)
        grad_t[0] = summed[0] - grad_t.sum(0)
        grad_t = grad_t.T.reshape(plan.times.shape).cpu()
    return grad_y + grad[0], grad_t, *summed[plan.moving :]


def _pulled_in_python(plan: Plan, y0: Tensor, t: Tensor, params: tuple[Tensor, ...], grad: Tensor) -> Gradients:
    """The gradients where the backward pass does not compile, or is to be differentiated itself: solve again, with
    the steps recorded by autograd."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        inputs = [
            x if x.requires_grad and create_graph else x.detach().requires_grad_()
            for x in (y0, *((t,) * plan.moving), *params)
        ]
        y0, *rest = inputs
        if plan.moving:
            t = rest.pop(0)
        again = per_sample if plan.by_rows else integrate
        f = with_parameters(plan.dynamics, tuple(rest))
        y = again(f, y0, t, plan.settings, Statistics()).y
        totals = gradients([y], inputs, [grad], create_graph=create_graph)
        by_y0, *found = own_parts(inputs, totals) if create_graph else totals
    return by_y0, found.pop(0) if plan.moving else None, *found
