"""The gradient of a discrete solve, step by step.

A solve is a chain of steps, `s_{i+1} = step_i(s_i)`, each a function of where it starts, the output times and the
parameters. The backward pass makes one step at a time again, from the last to the first, while autograd records it,
and pulls the cotangent back through it:

    s̄_i = s̄_{i+1} ∂step_i/∂s_i,    θ̄ += s̄_{i+1} ∂step_i/∂θ,

with cotangents of outputs added where a step has found them. This is what `gradient="direct"` computes; only, what
autograd keeps is that of a single step. Where the `s_i` come from is up to the choice: kept, found again from kept
ones, or computed backwards.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from neural_ode.compiled import with_compiled_steps_again, with_plain_steps
from neural_ode.gradients.checkpoints import Kept, Snapshot
from neural_ode.gradients.differentiable import (
    Autocast,
    ReverseMode,
    refuse_transforms,
    twice_differentiable,
)
from neural_ode.problem.dependence import GraphKeeping, gradients, own_parts
from neural_ode.problem.initial_value import InitialValueProblem
from neural_ode.solution import Made, Segment, Statistics
from neural_ode.stepping.adaptive import Adaptive
from neural_ode.stepping.fixed_grid import FixedGrid
from neural_ode.stepping.integrate import integrate
from neural_ode.stepping.per_sample import PerSample, Sweep, per_sample
from neural_ode.stepping.settings import SolverSettings, Trajectory
from neural_ode.stepping.step_records import Replay, take_tensors, tensors_of

__all__ = ["Trail", "solve_stepwise"]


Recorded = TypeVar("Recorded")


class Trail(Protocol[Recorded]):
    """Knows where the steps of a solve started."""

    kept: list[Kept]

    def offer(self, number: int, snapshot: Snapshot) -> None:
        """Called in the forward pass, with what each step starts from."""

    def backwards(self, made: Sequence[Recorded], kept: Sequence[Kept], replay: Replay[Recorded]) -> Iterator[Kept]:
        """Every step with what it started from, the last one first.

        Args:
            made: the steps.
            kept: the attribute `kept` after the forward pass.
            replay: makes steps again.
        """


def solve_stepwise(
    name: str, problem: InitialValueProblem, settings: SolverSettings, stats: Statistics, trail: Trail[Any]
) -> Trajectory:
    """Solve, with the gradient of the discrete solve from a backward pass that makes its steps again.

    Args:
        name: of the choice, for messages.
        problem: what to solve.
        settings: how.
        stats: counters to add to.
        trail: where the steps started; one for each solve.
    """
    refuse_transforms(name)
    solve = _Solve(problem, settings, stats, trail)
    y = _Stepwise.apply(solve, problem.y0, problem.t, *problem.params)
    assert solve.trajectory is not None
    return solve.trajectory._replace(y=y)


class _Solve:
    """One solve and its gradient.

    Attributes:
        made: the accepted steps, as the loop records them.
        trajectory: without its states.
    """

    def __init__(
        self, problem: InitialValueProblem, settings: SolverSettings, stats: Statistics, trail: Trail[Any]
    ):
        self.problem, self.settings, self.stats, self.trail = problem, settings, stats, trail
        self.made: list[Made | Sweep] = []  # all of one kind
        self.trajectory: Trajectory | None = None
        self.autocast = Autocast(problem.y0.device)

    def forward(self) -> Tensor:
        problem = self.problem
        f, y0, t, stats = problem.f, problem.y0, problem.t, self.stats
        if problem.batched:
            trajectory = per_sample(f, y0, t, self.settings, stats, self._record_sweep)
        else:
            trajectory = integrate(f, y0, t, self.settings, stats, self._record, problem.event)
        if trajectory.event is not None:  # the user's times keep their graph; that of an event is a number
            passed = len(trajectory.t) - 1
            t = torch.cat([t[:passed], trajectory.t[passed:]])
        # Without the states: they will hold the graph, which holds this.
        self.trajectory = trajectory._replace(t=t, y=t)
        return trajectory.y

    def _record(self, segment: Segment) -> None:
        self.made.append(segment.made)
        carry = None if segment.made.restarted else segment.carry
        self.trail.offer(segment.made.number, Snapshot(segment.y, carry))

    def _record_sweep(self, sweep: Sweep, y: Tensor, dense: tuple[Tensor, ...]) -> None:
        self.made.append(sweep)
        self.trail.offer(sweep.number, Snapshot(y, None))

    def gradient(
        self, kept: Sequence[Kept], y0: Tensor, t: Tensor, grad_y: Tensor, *params: Tensor
    ) -> list[Tensor]:
        """`∂L/∂y0`, `∂L/∂t` and `∂L/∂θ`; that of the times is zero where `problem.t` requires none."""
        if not self.made:  # a single time, or an event at the start
            return [grad_y.sum(0), torch.zeros_like(t), *(torch.zeros_like(p) for p in params)]
        stats = self.stats.backward = Statistics()
        with self.autocast():
            if torch.is_grad_enabled():
                return self._with_graph(stats, y0, t, grad_y, params)
            self.settings = with_compiled_steps_again(self.settings, stats)
            return self._by_steps(stats, kept, t, grad_y, params)

    def _by_steps(
        self, stats: Statistics, kept: Sequence[Kept], t: Tensor, grad_y: Tensor, params: Sequence[Tensor]
    ) -> list[Tensor]:
        moving = self.problem.t.requires_grad
        with torch.enable_grad():
            t = t.detach().requires_grad_(moving)
            replay = self._replay(t, stats)
        shared = [*((t,) * moving), *params]
        totals = [torch.zeros_like(x) for x in shared]
        graphs = GraphKeeping()
        after: list[Tensor] = []  # cotangents of what the next step starts from
        for number, snapshot in self.trail.backwards(self.made, kept, self._replay(t.detach(), stats)):
            starts = pytree.tree_map(_leaf, snapshot)
            then = self.made[number + 1] if after else None
            with torch.enable_grad():
                again = replay.again(self.made[number], starts.y, starts.carry, then)
            results = [again.y, *tensors_of(again.carry)] if after else []
            outputs = [] if again.outputs is None else [again.outputs]
            along = [*after, *(grad_y[again.where] for _ in outputs)]
            inputs = tensors_of(starts)
            found = graphs.gradients([*results, *outputs], [*inputs, *shared], along)
            after = found[: len(inputs)]
            totals = [total + gradient for total, gradient in zip(totals, found[len(inputs) :], strict=True)]
            del again, results, outputs, starts, inputs, snapshot
        by_t = [totals.pop(0) if moving else torch.zeros_like(t)]
        return [grad_y[0] + after[0], *by_t, *own_parts(params, totals)]

    def _with_graph(
        self, stats: Statistics, y0: Tensor, t: Tensor, grad_y: Tensor, params: Sequence[Tensor]
    ) -> list[Tensor]:
        """The same from the graph of all steps, which can be differentiated."""
        if self.problem.compile:
            stats.not_compiled = "it is differentiated itself"
        self.settings = with_plain_steps(self.settings)
        replay = self._replay(t if self.problem.t.requires_grad else t.detach(), stats)
        y, carry = y0, None
        results, along = [], []
        for made, then in zip(self.made, [*self.made[1:], None], strict=True):
            y, carry, where, outputs = replay.again(made, y, carry, then)
            if outputs is not None:
                results.append(outputs)
                along.append(grad_y[where])
        by_y0, by_t, *totals = gradients(results, [y0, t, *params], along, create_graph=True)
        return [grad_y[0] + by_y0, by_t, *own_parts(params, totals)]

    def _replay(self, t: Tensor, stats: Statistics) -> Replay[Any]:
        loop: Any = PerSample if self.problem.batched else Adaptive if self.settings.controls_error else FixedGrid
        replay: Replay[Any] = loop(self.problem.f, self.problem.y0.detach(), t, self.settings, stats)
        return replay


class _Stepwise(ReverseMode):
    """Forward: a solve that autograd does not see. Backward: its steps, from the last to the first."""

    @staticmethod
    def forward(ctx: Any, solve: _Solve, y0: Tensor, t: Tensor, *params: Tensor) -> Tensor:
        y = solve.forward()
        tensors, ctx.put_back = take_tensors(solve.trail.kept)
        solve.trail.kept = []
        ctx.solve = solve
        ctx.save_for_backward(y0, t, *params, *tensors)
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[3:]
        y0, t, *rest = ctx.saved_tensors
        params, kept = rest[: len(needed)], ctx.put_back(rest[len(needed) :])
        active = [p for p, wanted in zip(params, needed, strict=True) if wanted]
        by_y0, by_t, *found = twice_differentiable(partial(ctx.solve.gradient, kept), (y0, t, grad_y), active)
        remaining = iter(found)
        by_params = [next(remaining) if wanted else None for wanted in needed]
        wanted_y0, wanted_t = ctx.needs_input_grad[1:3]
        return None, by_y0 if wanted_y0 else None, by_t if wanted_t else None, *by_params


def _leaf(x: Any) -> Any:
    return x.detach().requires_grad_() if isinstance(x, Tensor) else x
