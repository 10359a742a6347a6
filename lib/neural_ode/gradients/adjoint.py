"""What the choices share that solve the adjoint equation backwards: Algorithms 1 and 2 of Chen et al. (2018).

The adjoint `a(t) = ∂L/∂z(t)` obeys `da/dt = -aᵀ ∂f/∂z`, jumps by `∂L/∂z(t_i)` at every observation (figure 2 of the
paper), and gives `∂L/∂θ = ∫ aᵀ ∂f/∂θ dt`, `∂L/∂t_i = ∂L/∂z(t_i)ᵀ f(z(t_i), t_i)` and `∂L/∂t_0 = -a(t_0)ᵀ f`
(Algorithm 2 finds that number by integrating `-aᵀ ∂f/∂t`).
"""

import inspect
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from neural_ode.compiled import integrate_compiled, per_sample_compiled, with_compiled_steps
from neural_ode.control.tolerance import Tolerance
from neural_ode.errors import InvalidArgumentError, SolverError, finite_number
from neural_ode.gradients.augmented import AugmentedSystem, Quadrature
from neural_ode.gradients.differentiable import Autocast, ReverseMode, refuse_transforms
from neural_ode.methods import BlackBox, ExplicitRungeKutta, Method, Solver, get_method
from neural_ode.problem.callbacks import Callbacks
from neural_ode.problem.dependence import own_parts
from neural_ode.problem.initial_value import InitialValueProblem
from neural_ode.problem.norms import max_rms_norm
from neural_ode.problem.state import Dynamics, State
from neural_ode.solution import Segment, Statistics
from neural_ode.stepping.integrate import integrate
from neural_ode.stepping.per_sample import Record, Sweep, per_sample
from neural_ode.stepping.settings import SolverSettings, Trajectory, stepping

__all__ = ["Adjoint", "AdjointNorm", "BackwardSolve", "Memory", "PartNorm"]

AdjointNorm = Callable[[State, State, tuple[Tensor, ...]], Tensor]
"""Norm of `(z, a, (∂L/∂θ, …))`: state and adjoint in the structure of `y0`, a gradient for each parameter."""

PartNorm = Callable[[tuple[Tensor, ...]], Tensor]


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
class Adjoint:
    """Options of the backward solve. What is left out is taken from the forward solve.

    Attributes:
        method: method of the backward solve.
        rtol, atol: its tolerances.
        step_size: a constant step for the backward solve; that of the forward solve if left out, unless the
            backward solve has a method of its own.
        norm: norm of the error control, a function of what is solved: state (not with `interpolating`), adjoint,
            and the tuple of the parameters' gradients (empty with a quadrature). The default measures the first
            two as the forward solve does and every gradient by its root mean square, and takes the largest.
            `"seminorm"` leaves out the gradients (Kidger et al. 2021): they do not feed back into the solve.
        options: further fields of the backward solve's `SolverSettings`, such as `{"max_step": 0.1}`.
        quadrature: take the parameters' gradients out of the system altogether, and sum them over the stages of
            each accepted step. For explicit Runge-Kutta methods. Needs no memory of their size in each stage and,
            as with the seminorm, no error control. Second derivatives are found with them in the system.
    """

    name: ClassVar[str]
    needs_params: ClassVar[bool] = True
    states: ClassVar[int]

    method: str | Method | BlackBox | Solver | None = None
    rtol: float | Tensor | None = None
    atol: float | Tensor | None = None
    step_size: float | None = None
    norm: Callable[..., Tensor] | str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    quadrature: bool = False

    def __post_init__(self) -> None:
        for name in ("rtol", "atol", "step_size"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, Tensor) and value.numel() != 1):
                number = finite_number(f"{name} of the backward solve", value)
                if number < 0 or (name == "step_size" and number == 0):
                    raise InvalidArgumentError(f"{name} of the backward solve must be positive, got {number!r}")
                object.__setattr__(self, name, number)
        if not (self.norm is None or self.norm == "seminorm" or callable(self.norm)):
            raise InvalidArgumentError(
                f"norm of the backward solve must be a function or 'seminorm', got {self.norm!r}"
            )
        if self.method is not None:
            object.__setattr__(self, "method", get_method(self.method))

    def check(self, problem: InitialValueProblem, settings: SolverSettings) -> None:
        """Whether a problem can be differentiated so, solved with these settings.

        Raises:
            InvalidArgumentError: it cannot; the message names what to use instead.
        """
        method = settings.method if self.method is None else get_method(self.method)
        if self.quadrature and not method.supports_quadrature:
            raise InvalidArgumentError(
                f"quadrature=True is for explicit Runge-Kutta methods, such as dopri5; the backward solve has "
                f"{method.name}: leave it out or pass method='dopri5'"
            )

    def __call__(self, problem: InitialValueProblem, settings: SolverSettings, stats: Statistics) -> Trajectory:
        refuse_transforms(self.name)
        memory = self.memory(settings)
        found: list[Trajectory] = []
        rows = _Adjoint.apply(problem, settings, self, memory, stats, found, problem.y0, problem.t, *problem.params)
        trajectory, t = found[0], problem.t
        n = len(trajectory.y)
        if trajectory.event is not None:  # whose time is a number
            t = torch.cat([t[: n - 1], trajectory.t[n - 1 :]])
        return trajectory._replace(t=t, y=rows if len(rows) == n else rows[:n])

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

    def settings(
        self, forward: SolverSettings, augmented: AugmentedSystem, norm: Callable[[tuple[Tensor, ...]], Tensor]
    ) -> SolverSettings:
        """How the backward solve is made."""
        method = forward.method if self.method is None else get_method(self.method)
        tolerance = Tolerance(
            augmented.tolerance(forward.tolerance.rtol if self.rtol is None else self.rtol),
            augmented.tolerance(forward.tolerance.atol if self.atol is None else self.atol),
            lambda x: norm((x.new_zeros(()).abs(), *augmented.unpack(x))),
        )
        own_method = self.method is not None
        settings = replace(
            forward,
            method=method,
            tolerance=tolerance,
            step_size=forward.step_size if self.step_size is None and not own_method else self.step_size,
            grid=None if own_method or self.step_size is not None else forward.grid,
            first_step=None,
            callbacks=Callbacks(),
        )
        if self.options:
            own = {name: getattr(settings, name) for name in inspect.signature(stepping).parameters}
            calls = self.options.get("callbacks", settings.callbacks)
            changed = {name: value for name, value in self.options.items() if name != "callbacks"}
            settings = replace(settings, **stepping(**own | changed), callbacks=calls)
        calls = settings.callbacks
        return replace(
            settings,
            callbacks=Callbacks(*(augmented.callback(call) for call in (calls.step, calls.accept, calls.reject))),
        )

    def part_norm(self, problem: InitialValueProblem, settings: SolverSettings, states: int) -> PartNorm:
        """The norm as a function of `(0, z, a, *∂L/∂θ)`, with `states` parts, z and a, packed."""
        own = self.norm
        if callable(own):
            return lambda parts: own(*map(problem.restore, parts[1 : states + 1]), parts[states + 1 :])
        state_norm = settings.tolerance.norm

        def default(parts: tuple[Tensor, ...]) -> Tensor:
            time, gradients = parts[0], parts[states + 1 :]
            # The user's norm may return a number.
            sizes = [torch.as_tensor(state_norm(x)).to(time) for x in parts[1 : states + 1]]
            if own is None and gradients:
                sizes.append(max_rms_norm(list(gradients)))
            return torch.stack([time.abs(), *sizes]).amax()

        return default


@dataclass(frozen=True)
class BackwardSolve:
    """One backward solve: from the last time to the first, restarted at every row.

    Attributes:
        choice: how.
        problem: the forward problem.
        forward: the settings of the forward solve.
        params: what gets gradients besides `y0` and `t`.
        t: times of the rows, in the direction of the forward solve, float64, shape (m,); or, where every sample
            has times of its own, (batch, m).
        y: the states there, shape (m, *state).
        grad_y: `∂L/∂y` of the rows.
        kept: other tensors that the choice keeps.
        memory: what kept them.
        norm: of the parts of the system, as `Adjoint.part_norm` makes it.
        stats: counters to add to.
    """

    choice: Adjoint
    problem: InitialValueProblem
    forward: SolverSettings
    params: tuple[Tensor, ...]
    t: Tensor
    y: Tensor
    grad_y: Tensor
    kept: tuple[Tensor, ...]
    memory: Memory
    norm: PartNorm
    stats: Statistics

    def settings(self, system: AugmentedSystem) -> SolverSettings:
        return self.choice.settings(self.forward, system, self.norm)

    def quadrature(self) -> Quadrature | None:
        if not (self.choice.quadrature or self.problem.batched):
            return None
        method = self.forward.method if self.choice.method is None else get_method(self.choice.method)
        assert isinstance(method, ExplicitRungeKutta)
        return Quadrature(self.params, method.tableau)

    def by_intervals(self, system: AugmentedSystem, settings: SolverSettings) -> tuple[Tensor, list[Tensor]]:
        """`∂L/∂z(t_0)` and `∂L/∂θ`, by one solve from each row to the one before."""
        t, y, grad_y, quadrature = self.t, self.y, self.grad_y, system.quadrature
        a = grad_y[-1]
        gradients = [torch.zeros_like(p) for p in system.params]
        for i in range(len(y) - 1, 0, -1):
            start = system.pack(y[i], a, gradients)
            if torch.is_grad_enabled():
                problem = InitialValueProblem(system, start, t[[i, i - 1]], self.params, lambda x: x)
                path = self.choice.further()(problem, settings, self.stats)
            elif self.problem.batched:
                path = per_sample(system, start, t[..., [i, i - 1]], settings, self.stats, self._row_steps(system))
            else:
                record = None if quadrature is None else lambda step: quadrature.add(step.h, step.dense)
                path = integrate(system, start, t[[i, i - 1]], settings, self.stats, record)
            a = system.adjoint(path.y[1]) + grad_y[i - 1]
            gradients = system.gradients(path.y[1])
            if path.next_step:
                settings = replace(settings, first_step=abs(path.next_step))
        return a, gradients if quadrature is None else quadrature.gradients

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
        f: Dynamics = self.problem.f
        now = t.expand(z.shape[0]) if self.problem.batched else t
        slope = f(now.to(z.device), z)
        self.stats.nfe += 1
        product = (a.conj() * slope).real
        return (product.flatten(1).sum(1) if t.dim() else product.sum()).to(t.device, t.dtype)


class _Adjoint(ReverseMode):
    """Forward: a solve that autograd does not see. Backward: the adjoint equation."""

    @staticmethod
    def forward(
        ctx: Any,
        problem: InitialValueProblem,
        settings: SolverSettings,
        choice: Adjoint,
        memory: Memory,
        stats: Statistics,
        found: list[Trajectory],
        y0: Tensor,
        t: Tensor,
        *params: Tensor,
    ) -> Tensor:
        if problem.batched:
            run = per_sample_compiled if problem.compile else per_sample
            trajectory = run(problem.f, y0, t, settings, stats)
        elif problem.compile and memory.record is None:
            trajectory = integrate_compiled(problem.f, y0, t, settings, stats, event=problem.event)
        else:
            steps = with_compiled_steps(settings) if problem.compile else settings
            trajectory = integrate(problem.f, y0, t, steps, stats, memory.record, problem.event)
        found.append(trajectory)
        ended = trajectory.event is not None
        ctx.end = trajectory.t[-1:] if ended else None
        ctx.problem, ctx.settings, ctx.choice, ctx.memory, ctx.stats = problem, settings, choice, memory, stats
        # The name that users of torchdiffeq know for what the backward solve will use.
        ctx.adjoint_options = {"norm": choice.part_norm(problem, settings, choice.states)}
        ctx.autocast = Autocast(y0.device)
        ctx.further_times, states = memory.rows(trajectory.t.tolist())
        y = torch.cat([trajectory.y, torch.stack(states)]) if states else trajectory.y
        ctx.outputs = len(trajectory.y)
        ctx.save_for_backward(y, t, *params, *memory.tensors())
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        if torch._C._functorch.is_legacy_batchedtensor(grad_y):
            raise InvalidArgumentError(
                f"gradient={ctx.choice.name!r} solves for one cotangent at a time: leave out is_grads_batched=True "
                "and vectorize=True"
            )
        needed = ctx.needs_input_grad[8:]
        y, t, *rest = ctx.saved_tensors
        params = tuple(p for p, wanted in zip(rest, needed, strict=False) if wanted)
        outputs, wanted_times = ctx.outputs, ctx.needs_input_grad[7]
        times, order = t, torch.arange(outputs)
        if not ctx.problem.batched:
            times = t if ctx.end is None else torch.cat([t[: outputs - 1], ctx.end])
            times = torch.cat([times, times.new_tensor(ctx.further_times)])
            order = torch.argsort(times.detach(), descending=bool(times[0] > times[1]) if len(times) > 1 else False)
        place, begins = torch.arange(len(order)), order
        observed = grad_y[order.to(y.device)]
        if ctx.end is not None:  # an output may lie at the time of the event: one observation to the backward solve
            place = torch.cat([place[:1], (times[order].detach().diff() != 0).cumsum(0)])
            begins = order[torch.searchsorted(place, torch.arange(int(place[-1]) + 1))]
            merged = observed.new_zeros(len(begins), *observed.shape[1:])
            observed = merged.index_add(0, place.to(y.device), observed)
        solve = BackwardSolve(
            choice=ctx.choice,
            problem=ctx.problem,
            forward=ctx.settings,
            params=params,
            t=times[..., begins],
            y=y[begins.to(y.device)],
            grad_y=observed,
            kept=tuple(rest[len(needed) :]),
            memory=ctx.memory,
            norm=lambda parts: ctx.adjoint_options["norm"](parts),
            stats=Statistics(),
        )
        ctx.stats.backward = solve.stats
        further = torch.is_grad_enabled()
        if further and ctx.problem.batched:
            raise InvalidArgumentError(
                f"gradient={ctx.choice.name!r} with batched=True is differentiated once: for second derivatives "
                "use gradient='direct' or 'recursive_checkpoint'"
            )
        try:
            with ctx.autocast():
                if further:
                    norm = ctx.choice.part_norm(ctx.problem, ctx.settings, AugmentedSystem.states)
                    solve = replace(solve, norm=norm)
                    system = AugmentedSystem(ctx.problem.f, y[0], params)
                    a, gradients = solve.by_intervals(system, solve.settings(system))
                else:
                    a, gradients = ctx.choice.solve_back(solve)
                grad_t = None
                if wanted_times:
                    of = dict(zip(order.tolist(), place.tolist(), strict=True))
                    last = t.shape[-1] if ctx.end is None else outputs - 1  # the time of the event is no argument
                    own = [solve.time_gradient(of[i], grad_y[i]) for i in range(1, last)]
                    first = solve.time_gradient(0, grad_y[0] - a)
                    grad_t = torch.stack([first, *own], dim=-1)
                    unreached = t.shape[-1] - grad_t.shape[-1]
                    grad_t = torch.cat([grad_t, grad_t.new_zeros(*grad_t.shape[:-1], unreached)], dim=-1)
        except SolverError as error:
            error.add_note(
                f"This was the backward solve of gradient={ctx.choice.name!r}; gradient='direct' has none."
            )
            error.partial = None
            raise
        remaining = iter(own_parts(params, gradients))
        by_params = [next(remaining) if wanted else None for wanted in needed]
        return *(None,) * 6, a if ctx.needs_input_grad[6] else None, grad_t, *by_params
