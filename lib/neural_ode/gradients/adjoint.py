"""What the choices share that solve the adjoint equation backwards: Algorithms 1 and 2 of Chen et al. (2018).

The adjoint `a(t) = ∂L/∂z(t)` obeys `da/dt = -aᵀ ∂f/∂z`, jumps by `∂L/∂z(t_i)` at every observation (figure 2 of the
paper), and gives `∂L/∂θ = ∫ aᵀ ∂f/∂θ dt`, `∂L/∂t_i = ∂L/∂z(t_i)ᵀ f(z(t_i), t_i)` and `∂L/∂t_0 = -a(t_0)ᵀ f`
(Algorithm 2 finds that number by integrating `-aᵀ ∂f/∂t`).
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from neural_ode.compiled import integrate_compiled, per_sample_compiled, with_compiled_steps
from neural_ode.control.tolerance import Tolerance
from neural_ode.errors import InvalidArgumentError, SolverError
from neural_ode.gradients.adjoint_options import AdjointOptions, PartNorm
from neural_ode.gradients.augmented import AugmentedSystem, Quadrature
from neural_ode.gradients.differentiable import Autocast, ReverseMode, refuse_transforms
from neural_ode.methods import ExplicitRungeKutta
from neural_ode.problem.dependence import own_parts
from neural_ode.problem.initial_value import InitialValueProblem
from neural_ode.solution import Segment, Statistics
from neural_ode.stepping.integrate import integrate
from neural_ode.stepping.per_sample import Record, Sweep, per_sample
from neural_ode.stepping.settings import SolverSettings, Trajectory

__all__ = ["Adjoint", "BackwardSolve", "Memory"]


class Memory:
    """What a choice keeps of the forward solve besides the states at the output times: here, nothing.

    Attributes:
        record: called with every accepted step, or `None`.
    """

    record: Callable[[Segment], None] | None = None

    def rows(self, known: Sequence[float]) -> tuple[list[float], list[Tensor]]:
        """Times and states that the backward solve restarts from, besides those of the `known` times."""
        return [], []

    def tensors(self) -> list[Tensor]:
        """Whatever else, for autograd to keep."""
        return []


@dataclass(frozen=True)
class Adjoint(AdjointOptions):
    """A choice that solves the adjoint equation backwards; its options are those of `AdjointOptions`."""

    needs_params: ClassVar[bool] = True
    states: ClassVar[int]

    def __call__(self, problem: InitialValueProblem, settings: SolverSettings, stats: Statistics) -> Trajectory:
        refuse_transforms(self.name)
        solve = _Solve(problem, settings, self, self.steps(settings), self.memory(settings), stats)
        rows, path = _AdjointMethod.apply(solve, problem.y0, problem.t, *problem.params)
        t, n = problem.t, path.t.shape[-1]
        if path.event is not None:  # whose time is a number
            t = torch.cat([t[: n - 1], path.t[n - 1 :]])
        return Trajectory(t, rows if len(rows) == n else rows[:n], path.next_step, path.event)

    def memory(self, settings: SolverSettings) -> Memory:
        """What to keep of a forward solve."""
        return Memory()

    @abstractmethod
    def solve_back(self, solve: "BackwardSolve") -> tuple[Tensor, Sequence[Tensor]]:
        """`∂L/∂z(t_0)` and `∂L/∂θ`, without a graph."""

    def further(self) -> Self:
        """The choice for the backward solve, which second derivatives differentiate as they do any solve."""
        norm = self.norm if self.norm == "seminorm" else None
        return replace(self, method=None, rtol=None, atol=None, step_size=None, norm=norm, options={})


@dataclass(frozen=True)
class BackwardSolve:
    """One backward solve: from the last time to the first, restarted at every row.

    Attributes:
        choice: how.
        problem: the forward problem.
        steps: how the solve is made, with the tolerances of the state, see `AdjointOptions.steps`.
        params: what gets gradients besides `y0` and `t`.
        t: times of the rows, in the direction of the forward solve, float64, shape (m,); or, where every sample
            has times of its own, (batch, m).
        y: the states there, shape (m, *state).
        grad_y: `∂L/∂y` of the rows.
        kept: other tensors that the choice keeps.
        memory: what kept them.
        norm: of the parts of the system, as `AdjointOptions.part_norm` makes it.
        stats: counters to add to.
    """

    choice: Adjoint
    problem: InitialValueProblem
    steps: SolverSettings
    params: tuple[Tensor, ...]
    t: Tensor
    y: Tensor
    grad_y: Tensor
    kept: tuple[Tensor, ...]
    memory: Memory
    norm: PartNorm
    stats: Statistics

    def settings(self, system: AugmentedSystem) -> SolverSettings:
        """How the system is solved."""
        norm, tolerance, calls = self.norm, self.steps.tolerance, self.steps.callbacks
        return replace(
            self.steps,
            tolerance=Tolerance(
                system.tolerance(tolerance.rtol),
                system.tolerance(tolerance.atol),
                lambda x: norm((x.new_zeros(()).abs(), *system.unpack(x))),
            ),
            callbacks=system.callbacks(calls),
        )

    def quadrature(self) -> Quadrature | None:
        """Where `∂L/∂θ` is summed up if it is not solved for: with `quadrature=True`, and for rows always."""
        if not (self.choice.quadrature or self.problem.batched):
            return None
        assert isinstance(self.steps.method, ExplicitRungeKutta)
        return Quadrature(self.params, self.steps.method.tableau)

    def by_intervals(self, system: AugmentedSystem, settings: SolverSettings) -> tuple[Tensor, list[Tensor]]:
        """`∂L/∂z(t_0)` and `∂L/∂θ`, by one solve from each row to the one before."""
        t, y, grad_y, quadrature = self.t, self.y, self.grad_y, system.quadrature
        state = system.start(y[-1], grad_y[-1])
        for i in range(len(y) - 1, 0, -1):
            if torch.is_grad_enabled():
                problem = InitialValueProblem(system, state, t[[i, i - 1]], self.params, lambda x: x)
                further = self.choice.further()
                further.check(problem, settings)
                path = further(problem, settings, self.stats)
            elif self.problem.batched:
                path = per_sample(system, state, t[..., [i, i - 1]], settings, self.stats, self._row_steps(system))
            else:
                record = None if quadrature is None else lambda step: quadrature.add(step.h, step.dense)
                path = integrate(system, state, t[[i, i - 1]], settings, self.stats, record)
            state = system.jumped(path.y[1], y[i - 1], grad_y[i - 1])
            if path.next_step:
                settings = replace(settings, first_step=abs(path.next_step))
        gradients = system.gradients(state) if quadrature is None else quadrature.gradients
        return system.adjoint(state), gradients

    def _row_steps(self, system: AugmentedSystem) -> Record:
        """What adds the steps of the rows to the quadrature."""
        quadrature = system.quadrature
        assert quadrature is not None

        def record(sweep: Sweep, start: Tensor, dense: tuple[Tensor, ...]) -> None:
            first, *others = dense
            if not quadrature.knows(first):  # put together from the steps of several attempts
                first = system(torch.from_numpy(sweep.now).to(start.device), start)
                self.stats.nfe += 1
            h = torch.from_numpy(sweep.h * sweep.accepted).to(start.device, start.abs().dtype)
            quadrature.add(h.reshape(-1, *[1] * (self.y.dim() - 2)), (first, *others))

        return record

    def time_gradient(self, row: int, a: Tensor) -> Tensor:
        """`aᵀ f(z, t)`, the gradient of a time (appendix C of the paper): float64, of the shape of a time."""
        z, t = self.y[row], self.t[..., row]
        now = t.expand(z.shape[0]) if self.problem.batched else t
        slope = self.problem.f(now.to(z.device), z)
        self.stats.nfe += 1
        product = (a.conj() * slope).real
        return (product.flatten(1).sum(1) if t.dim() else product.sum()).to(t.device, t.dtype)


class _Solve(NamedTuple):
    """A solve with its gradient: the problem, how it is solved, and how the adjoint equation is.

    Attributes:
        backward: the settings of the backward solve, see `AdjointOptions.steps`.
        stats: counters to add to; `stats.backward` is filled in by the backward pass.
    """

    problem: InitialValueProblem
    settings: SolverSettings
    choice: Adjoint
    backward: SolverSettings
    memory: Memory
    stats: Statistics

    def trajectory(self, y0: Tensor, t: Tensor) -> Trajectory:
        """The forward solve."""
        problem, settings, memory, stats = self.problem, self.settings, self.memory, self.stats
        if problem.batched:
            run = per_sample_compiled if problem.compile else per_sample
            return run(problem.f, y0, t, settings, stats)
        if problem.compile and memory.record is None:
            return integrate_compiled(problem.f, y0, t, settings, stats, event=problem.event)
        if problem.compile:
            reason = f"gradient={self.choice.name!r} keeps something of every step"
            settings = with_compiled_steps(settings, stats, reason)
        return integrate(problem.f, y0, t, settings, stats, memory.record, problem.event)

    def part_norm(self, states: int) -> PartNorm:
        return self.choice.part_norm(self.settings.tolerance.norm, self.problem.restore, states)


class _Rows(NamedTuple):
    """The rows of a forward solve in the order of their times.

    Attributes:
        order: which row comes there, shape (n,).
        place: which observation a row of that order belongs to, shape (n,): an output may lie at the time of the
            event, and is one observation with it to the backward solve.
        begins: the first row of each observation, shape (m,).
    """

    order: Tensor
    place: Tensor
    begins: Tensor

    @classmethod
    def of(cls, times: Tensor, merged: bool) -> "_Rows":
        """
        Args:
            times: of the rows, shape (n,).
            merged: whether rows at the same time are one observation.
        """
        descending = bool(times[0] > times[1]) if len(times) > 1 else False
        order = torch.argsort(times, descending=descending)
        place = torch.arange(len(order))
        if not merged:
            return cls(order, place, order)
        place = torch.cat([place[:1], (times[order].diff() != 0).cumsum(0)])
        return cls(order, place, order[torch.searchsorted(place, torch.arange(int(place[-1]) + 1))])

    def observed(self, grad_y: Tensor) -> Tensor:
        """`∂L/∂z` of each observation."""
        rows = grad_y[self.order.to(grad_y.device)]
        if len(self.begins) == len(self.order):
            return rows
        merged = rows.new_zeros(len(self.begins), *rows.shape[1:])
        return merged.index_add(0, self.place.to(rows.device), rows)

    def observations(self) -> dict[int, int]:
        """The observation that each row belongs to."""
        return dict(zip(self.order.tolist(), self.place.tolist(), strict=True))


class _AdjointMethod(ReverseMode):
    """Forward: a solve that autograd does not see. Backward: the adjoint equation."""

    @staticmethod
    def forward(ctx: Any, solve: _Solve, y0: Tensor, t: Tensor, *params: Tensor) -> tuple[Tensor, Trajectory]:
        """The states, and the trajectory without them."""
        trajectory = solve.trajectory(y0, t)
        ctx.solve = solve
        ctx.end = None if trajectory.event is None else trajectory.t[-1:]
        # The name that users of torchdiffeq know for what the backward solve will use.
        ctx.adjoint_options = {"norm": solve.part_norm(solve.choice.states)}
        ctx.autocast = Autocast(y0.device)
        ctx.further_times, states = solve.memory.rows(trajectory.t.tolist())
        y = torch.cat([trajectory.y, torch.stack(states)]) if states else trajectory.y
        ctx.outputs = len(trajectory.y)
        ctx.save_for_backward(y, t, *params, *solve.memory.tensors())
        return y, trajectory._replace(y=trajectory.t)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, _: None) -> tuple[Tensor | None, ...]:
        solve: _Solve = ctx.solve
        choice, problem = solve.choice, solve.problem
        if torch._C._functorch.is_legacy_batchedtensor(grad_y):
            raise InvalidArgumentError(
                f"gradient={choice.name!r} solves for one cotangent at a time: leave out is_grads_batched=True "
                "and vectorize=True"
            )
        further = torch.is_grad_enabled()
        if further and problem.batched:
            raise InvalidArgumentError(
                f"gradient={choice.name!r} with batched=True is differentiated once: for second derivatives "
                "use gradient='direct' or 'recursive_checkpoint'"
            )
        _, wants_y0, wants_t, *wanted = ctx.needs_input_grad
        y, t, *rest = ctx.saved_tensors
        times = t
        if problem.batched:
            rows = _Rows(*(torch.arange(ctx.outputs),) * 3)
        else:
            times = t if ctx.end is None else torch.cat([t[: ctx.outputs - 1], ctx.end])
            times = torch.cat([times, times.new_tensor(ctx.further_times)])
            rows = _Rows.of(times.detach(), merged=ctx.end is not None)
        backward = BackwardSolve(
            choice=choice,
            problem=problem,
            steps=solve.backward,
            params=tuple(p for p, wants in zip(rest, wanted, strict=False) if wants),
            t=times[..., rows.begins],
            y=y[rows.begins.to(y.device)],
            grad_y=rows.observed(grad_y),
            kept=tuple(rest[len(wanted) :]),
            memory=solve.memory,
            norm=solve.part_norm(AugmentedSystem.states) if further else ctx.adjoint_options["norm"],
            stats=Statistics(),
        )
        solve.stats.backward = backward.stats
        try:
            with ctx.autocast():
                gradients: Sequence[Tensor]
                if further:
                    if problem.compile:
                        backward.stats.not_compiled = "it is differentiated itself"
                    system = AugmentedSystem(problem.f, y[0], backward.params)
                    a, gradients = backward.by_intervals(system, backward.settings(system))
                else:
                    a, gradients = choice.solve_back(backward)
                grad_t = None
                if wants_t:
                    # The time of an event is no argument, and those behind it were not reached.
                    reached = t.shape[-1] if ctx.end is None else ctx.outputs - 1
                    of = rows.observations()
                    own = [backward.time_gradient(of[i], grad_y[i]) for i in range(1, reached)]
                    grad_t = torch.stack([backward.time_gradient(of[0], grad_y[0] - a), *own], dim=-1)
                    unreached = grad_t.new_zeros(*grad_t.shape[:-1], t.shape[-1] - reached)
                    grad_t = torch.cat([grad_t, unreached], dim=-1)
        except SolverError as error:
            error.add_note(f"This was the backward solve of gradient={choice.name!r}; gradient='direct' has none.")
            error.partial = None
            raise
        found = iter(own_parts(backward.params, gradients))
        by_params = [next(found) if wants else None for wants in wanted]
        return None, a if wants_y0 else None, grad_t, *by_params
