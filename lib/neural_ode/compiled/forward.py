"""Whole solves, and their gradients, around the compiled loop.

The loop records up to a number of steps and comes back to Python, which takes the outputs and goes on. The gradient
is that of `gradient="direct"`, by recomputation: kept are the time, the length and the state of every accepted
step, and the backward pass makes the steps again, from the last to the first.
"""

import math
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding_bag

from neural_ode.compiled.backward import march_back
from neural_ode.compiled.compiler import Bounded, CannotCompile, call
from neural_ode.compiled.dynamics import (
    LiftedDynamics,
    compiling,
    depends_on_parameters,
    describe,
    with_parameters,
)
from neural_ode.compiled.loop import PATIENCE, control_of, run_until, tolerance_of
from neural_ode.compiled.steps import with_compiled_steps
from neural_ode.control.controllers import IntegralController
from neural_ode.methods import ExplicitRungeKutta
from neural_ode.problem.callbacks import Callbacks
from neural_ode.problem.dependence import gradients, own_parts
from neural_ode.problem.event import Event
from neural_ode.problem.norms import Norm
from neural_ode.problem.state import Dynamics
from neural_ode.solution import SampleStatistics, Statistics
from neural_ode.stepping.integrate import integrate
from neural_ode.stepping.per_sample import by_rows, per_sample
from neural_ode.stepping.settings import SolverSettings, Trajectory
from neural_ode.stepping.step_records import take_tensors

__all__ = ["check", "compiled_integrate", "integrate_compiled", "per_sample_compiled"]

Array = NDArray[Any]

_jvp: Any = torch.func.jvp  # its stub does not know how many values it returns

_LARGE = 2**16
"""Entries of a state, or of outputs, from which arithmetic takes most of the time: to make steps again for the
gradient, as whole solves do, then costs more than dispatch. Steps compiled one by one make none again."""

_refused: Bounded[Any, bool] = Bounded(1024)
"""Kinds of dynamics that have been found not to compile."""

_inspected: Bounded[Any, bool] = Bounded(1024)
"""Kinds of dynamics that have been found to fit their state."""


def integrate_compiled(
    f: Dynamics, y0: Tensor, t: Tensor, settings: SolverSettings, stats: Statistics, event: Event | None = None
) -> Trajectory:
    """`integrate`, compiled as far as it goes: the whole solve, or else its steps."""
    if event is None:
        try:
            return compiled_integrate(f, y0, t, settings, stats)
        except CannotCompile:
            pass
    return integrate(f, y0, t, with_compiled_steps(settings), stats, event=event)


def per_sample_compiled(
    f: Dynamics, y0: Tensor, t: Tensor, settings: SolverSettings, stats: Statistics
) -> Trajectory:
    """`per_sample`, compiled as far as it goes: the whole solve, or else its steps."""
    try:
        return compiled_integrate(f, y0, t, settings, stats, batched=True)
    except CannotCompile:
        return per_sample(f, y0, t, with_compiled_steps(settings), stats)


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
    reports = params is not None
    if not torch.is_grad_enabled():
        params = ()
    return compiling(f, y0, params, lambda dynamics: _solved(dynamics, y0, t, settings, stats, reports, batched))


def _solved(
    dynamics: LiftedDynamics,
    y0: Tensor,
    t: Tensor,
    settings: SolverSettings,
    stats: Statistics,
    reports: bool,
    batched: bool,
) -> Trajectory:
    kind: type[_Solve] = _PerSample if batched else _Joint
    grad = torch.is_grad_enabled()
    if (kind, dynamics.kind) in _refused:
        raise CannotCompile("it could not be compiled before")
    moving, depends = grad and t.requires_grad, False
    times = kind.own_times(y0, t)
    seen = (kind, dynamics.key, y0.dtype, y0.device, y0.shape[1:])
    if grad or seen not in _inspected:
        depends = depends_on_parameters(dynamics, times.detach()[..., 0].to(y0.device), y0, grad)
        _inspected[seen] = True
    solve = kind(dynamics, settings, times.detach().numpy(), y0, moving)
    try:
        if grad and (depends or y0.requires_grad or moving):
            y: Tensor = _Recomputed.apply(solve, stats if reports else None, y0, times, *dynamics.params)
        else:
            y = solve.run(y0)
    except CannotCompile as error:
        if not error.failed and not dynamics.lifts:
            _refused[kind, dynamics.kind] = True
        raise
    solve.add_to(stats)
    return Trajectory(t, y, solve.next_step)


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
    if y0.numel() > _LARGE:
        raise CannotCompile("the state is large, its arithmetic takes most of the time")
    if torch.is_autocast_enabled(y0.device.type):
        raise CannotCompile("autocast is on")
    if torch.is_inference_mode_enabled() or y0.is_inference():
        raise CannotCompile("inference mode is on; torch.no_grad() does the same")


class _Recorded(NamedTuple):
    """What the backward pass needs of some steps.

    States and slopes are seen as rows, `batch` of them for every step, see `_Solve`: an output is
    `states[source] + Σ_j weights[j] slopes[stages[j]]`.

    Attributes:
        number: how many steps there are.
        log, states: see `run_until`; without the rows that are not used.
        sources, stages: which rows each output comes from, shapes (m,) and (m, stages).
        targets: which rows of the solution they are, shape (m,).
        weights: of the slopes, shape (m, stages).
        rates: the derivatives of the outputs with respect to their times, where those are wanted.
    """

    number: int
    log: Tensor
    states: Tensor
    sources: Tensor
    stages: Tensor
    targets: Tensor
    weights: Tensor
    rates: Tensor | None


class _Solve(ABC):
    """One solve.

    Attributes:
        batch: how many rows have steps of their own: 1 if all have the same.
        next_step: as in `Trajectory`.
        steps_made: how many steps were recorded.
        recorded: what `run` kept for the backward pass.
    """

    def __init__(self, dynamics: LiftedDynamics, settings: SolverSettings, times: Array, y0: Tensor, moving: bool):
        assert isinstance(settings.method, ExplicitRungeKutta)
        self.dynamics, self.settings, self.method, self.times = dynamics, settings, settings.method, times
        self.moving = moving
        self.now, self.end = times[..., 0], times[..., -1]
        self.direction = -1.0 if (self.end < self.now).any() else 1.0
        self.batch = self.now.size
        self.size = y0.numel() // self.batch
        self.capacity = 64 if y0.numel() <= 2**14 else 16
        self.tries = self.steps_made = 0
        self.next_step = 0.0
        self.recorded: list[_Recorded] = []
        self.stats = Statistics()

    @staticmethod
    @abstractmethod
    def own_times(y0: Tensor, t: Tensor) -> Tensor:
        """The output times, each with its own entry."""

    @staticmethod
    @abstractmethod
    def again(f: Dynamics, y0: Tensor, t: Tensor, settings: SolverSettings) -> Tensor:
        """The same solve by the loop in Python, for what the graph of the backward pass does not do."""

    @property
    @abstractmethod
    def norm(self) -> Norm:
        """The norm of the error control."""

    @abstractmethod
    def locate(self, ends: Array, marks: Array) -> tuple[Array, Array, Array]:
        """Which outputs lie in steps that were just made.

        Args:
            ends: where the steps end, shape (count,) or (count, batch).
            marks: the number of tries up to each of them, shape (count,).

        Returns:
            For each output the step, the row of the batch that it lies in (0 if all have the same steps), and which
            output of that row it is.
        """

    def spread(self, chunk: _Recorded, part: Tensor, grad_slopes: Tensor) -> None:
        """Add to the gradients of the slopes what outputs have read off them.

        Args:
            chunk: how the m outputs came about.
            part: their gradients, shape (m, size).
            grad_slopes: those of the slopes as rows, see `_rows`; changed in place.
        """
        weighted = (chunk.weights[:, :, None] * part[:, None]).flatten(0, 1)
        grad_slopes.index_add_(0, chunk.stages.reshape(-1), weighted)

    @abstractmethod
    def begin(self, evaluations: int) -> None:
        """Add to the statistics what is evaluated before the first step."""

    @abstractmethod
    def count(self, lengths: Array, accepted: Array, tried: Array, tries: int) -> None:
        """Add to the statistics the lengths of the recorded steps and what `run_until` counted."""

    def run(self, y0: Tensor, keep: bool = False) -> Tensor:
        """The states at the output times, shape (n, *state)."""
        with torch.no_grad():
            return self._run(y0.detach(), keep)

    def _run(self, y: Tensor, keep: bool) -> Tensor:
        h: Array = np.full_like(self.now, math.nan)  # the loop chooses it
        if self.settings.first_step is not None:
            h = self.direction * np.minimum(np.abs(self.end - self.now), self.settings.first_step)
        self.begin(1 + (self.settings.first_step is None))
        carry: Tensor | None = None
        found = y.new_empty((self.times.shape[-1], *y.shape))
        found[0] = y
        capacity, shape = self.capacity, self.now.shape
        norm = self.norm
        control, (rtol, atol) = control_of(self.settings, self.direction, y), tolerance_of(self.settings, y)
        key = (self.dynamics.key, self.method, describe(norm, {}), capacity, len(shape))
        while (self.now != self.end).any():
            span = torch.from_numpy(np.stack([self.now, h, self.end])).to(y.device)
            functions = (self.dynamics, self.method, norm, capacity)
            status, y, carry, log, states, slopes = call(
                run_until,
                (*key, carry is None),
                y,
                *functions,
                y,
                carry,
                span,
                control,
                rtol,
                atol,
                fuse_products=True,
            )
            numbers = status.cpu().numpy()
            self.now, h, accepted, tried = numbers[:-2].reshape(4, *shape)
            count, tries = map(int, numbers[-2:])
            starts, lengths, before = (log[:count].transpose(0, 1)).cpu().numpy()
            ends = np.concatenate([starts[1:], self.now[None]])[:count]
            outputs = self.locate(ends, self.tries + before.reshape(count, -1)[:, :1].ravel() + 1)
            self.tries += tries
            self.steps_made += count
            self.count(lengths, accepted, tried, tries)
            recorded = (log[:count], states[: count + 1], slopes)
            chunk, values = self._outputs(outputs, (starts, lengths, ends), recorded)
            self._rows(found)[chunk.targets] = values
            if keep:
                # The backward pass needs what was recorded, not all that there was room for.
                self.recorded.append(chunk._replace(log=chunk.log.clone(), states=chunk.states.clone()))
            if (self.now != self.end).any() and count < capacity and tries < PATIENCE:
                raise CannotCompile("the solve fails", failed=True)
        self.next_step = float(np.ravel(h)[0])
        return found

    def _rows(self, x: Tensor) -> Tensor:
        """States or slopes, shape (…, *state), as rows that have steps of their own, shape (m, size)."""
        return x.view(-1, self.size)

    def _outputs(
        self,
        outputs: tuple[Array, Array, Array],
        steps: tuple[Array, Array, Array],
        recorded: tuple[Tensor, Tensor, Tensor],
    ) -> tuple[_Recorded, Tensor]:
        """How the states at times inside recorded steps come about, and what they are."""
        (step, row, column), (log, states, slopes) = outputs, recorded
        batch, number = self.batch, self.method.tableau.stages
        place = step * batch + row
        times = self.times.reshape(batch, -1)[row, column]
        starts, lengths, ends = (x.reshape(-1)[place] for x in steps)
        # An output at the end of a step is the state there, unless its time is moved.
        exact = (ends == times) & (not self.moving)
        theta = torch.from_numpy(np.where(exact, 0.0, (times - starts) / lengths))
        h = torch.from_numpy(np.where(exact, 0.0, lengths))[:, None]

        def weights_at(theta: Tensor) -> Tensor:
            return h * self.method.dense_weights(theta)

        def index(x: Array) -> Tensor:
            return torch.from_numpy(x).to(states.device)

        def combined(weights: Tensor) -> Tensor:
            # One kernel that gathers rows and adds them up.
            return embedding_bag(stages, self._rows(slopes), per_sample_weights=weights.to(states), mode="sum")

        stages = index((place + (number - 1) * batch * step)[:, None] + batch * np.arange(number))
        sources = index(place + batch * exact)
        weights = weights_at(theta).to(states)
        values = self._rows(states)[sources] + combined(weights)
        rates = None
        if self.moving:
            _, derivative = _jvp(weights_at, (theta,), (1 / h[:, 0],))
            rates = combined(derivative)
        return _Recorded(
            len(log), log, states, sources, stages, index(column * batch + row), weights, rates
        ), values

    def pull(
        self, recorded: list[_Recorded], y0: Tensor, grad: Tensor, params: tuple[Tensor, ...]
    ) -> tuple[Tensor | None, ...]:
        """Gradients with respect to `y0`, the times and the parameters, from those of the outputs."""
        grad_y, grad_t = torch.zeros_like(grad[0]), None
        summed = tuple(torch.zeros_like(p) for p in params)
        if self.moving:
            grad_t = torch.zeros(self.times.size, dtype=torch.float64, device=grad.device)
            summed = (torch.zeros(self.end.shape, dtype=torch.float64, device=grad.device), *summed)
        capacity, method, dynamics = self.capacity, self.method, self.dynamics
        number = method.tableau.stages
        key = (dynamics.key, tuple(dynamics.names), method, self.moving, self.end.ndim)
        for chunk in reversed(recorded):
            log = chunk.log.new_zeros((capacity, *chunk.log.shape[1:]))
            log[: chunk.number] = chunk.log
            states = grad.new_zeros((capacity + 1, *y0.shape))
            states[: chunk.number + 1] = chunk.states
            part = self._rows(grad)[chunk.targets]
            grad_states, grad_slopes = torch.zeros_like(states), grad.new_zeros((capacity, number, *y0.shape))
            self._rows(grad_states).index_add_(0, chunk.sources, part)
            self.spread(chunk, part, self._rows(grad_slopes))
            if grad_t is not None:
                assert chunk.rates is not None
                grad_t[chunk.targets] = (part * chunk.rates).sum(1).to(grad_t)
            count = torch.tensor(chunk.number, device=grad.device)
            fixed = (dynamics, method, self.moving, count, log, states, grad_states, grad_slopes)
            gradients = (grad_y + grad_states[chunk.number], *summed)
            grad_y, *rest = call(march_back, key, y0, *fixed, gradients, params)
            summed = tuple(rest)
        if grad_t is not None:
            # Moving the start moves all steps, and the outputs the other way along them.
            grad_t = grad_t.view(-1, self.batch)
            grad_t[0] = summed[0] - grad_t.sum(0)
            grad_t = grad_t.T.reshape(self.times.shape).cpu()
        return grad_y + grad[0], grad_t, *summed[self.moving :]

    def add_to(self, stats: Statistics) -> None:
        """Add what the solve cost."""
        own = self.stats
        stats.nfe += own.nfe
        stats.accepted += own.accepted
        stats.rejected += own.rejected
        stats.step_sizes += own.step_sizes
        stats.per_sample = own.per_sample

    def _check_gaps(self, marks: Array) -> None:
        """The tries between output times must not be too many."""
        if len(marks) and np.diff(marks).max(initial=0) > self.settings.max_steps:
            raise CannotCompile("the solve takes too many steps", failed=True)


class _Joint(_Solve):
    """A solve in which the whole state has the same steps."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.done = 1
        self.last_mark = 0

    @staticmethod
    def own_times(y0: Tensor, t: Tensor) -> Tensor:
        return t

    @staticmethod
    def again(f: Dynamics, y0: Tensor, t: Tensor, settings: SolverSettings) -> Tensor:
        return integrate(f, y0, t, settings, Statistics()).y

    @property
    def norm(self) -> Norm:
        return self.settings.tolerance.norm

    def spread(self, chunk: _Recorded, part: Tensor, grad_slopes: Tensor) -> None:
        if part.numel() < _LARGE:
            super().spread(chunk, part, grad_slopes)
            return
        # The outputs of a step are consecutive: one product for each step, not a row for each output and stage.
        number = self.method.tableau.stages
        rows, begins = np.unique(chunk.stages[:, 0].cpu().numpy(), return_index=True)
        for row, begin, end in zip(rows, begins, [*begins[1:], len(part)], strict=True):
            grad_slopes[row : row + number].addmm_(chunk.weights[begin:end].T, part[begin:end])

    def begin(self, evaluations: int) -> None:
        self.stats.nfe += evaluations

    def locate(self, ends: Array, marks: Array) -> tuple[Array, Array, Array]:
        direction, first = self.direction, self.done
        self.done = int(np.searchsorted(direction * self.times, direction * self.now, side="right"))
        times = self.times[first : self.done]
        steps = np.searchsorted(direction * ends, direction * times)
        self._check_gaps(np.array([self.last_mark, *np.unique(marks[steps])]))
        if len(steps):
            self.last_mark = marks[steps[-1]]
        return steps, np.zeros_like(steps), np.arange(first, self.done)

    def count(self, lengths: Array, accepted: Array, tried: Array, tries: int) -> None:
        self._check_gaps(np.array([self.last_mark, self.tries]))
        stats = self.stats
        stats.step_sizes += lengths.tolist()
        stats.accepted += int(accepted)
        stats.rejected += int(tried - accepted)
        stats.nfe += int(tried) * (self.method.tableau.stages - self.method.tableau.fsal)


class _PerSample(_Solve):
    """A solve in which every row of a batch has its own steps."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        batch = len(self.now)
        self.done = np.ones(batch, dtype=np.int64)
        zeros = [torch.zeros(batch, dtype=torch.int64) for _ in SampleStatistics._fields]
        self.stats.per_sample = SampleStatistics(*zeros)

    @staticmethod
    def own_times(y0: Tensor, t: Tensor) -> Tensor:
        return t.expand(len(y0), t.shape[-1])

    @staticmethod
    def again(f: Dynamics, y0: Tensor, t: Tensor, settings: SolverSettings) -> Tensor:
        return per_sample(f, y0, t, settings, Statistics()).y

    @property
    def norm(self) -> Norm:
        return by_rows(self.settings.tolerance).norm

    def begin(self, evaluations: int) -> None:
        self.stats.nfe += evaluations
        self._add(evaluations, np.ones(self.batch))

    def locate(self, ends: Array, marks: Array) -> tuple[Array, Array, Array]:
        # How many outputs lie before the end of each step, and from that how many in it.
        times, keys = self.direction * self.times, self.direction * ends
        if self.times.strides[0] == 0:  # all rows have the same times
            passed = np.searchsorted(times[0], keys, side="right")
        else:
            found = [np.searchsorted(own, key, side="right") for own, key in zip(times, keys.T, strict=True)]
            passed = np.stack(found, axis=1)
        passed = np.concatenate([self.done[None], passed])
        inside = np.diff(passed, axis=0).ravel()
        some = inside.nonzero()[0]
        many = inside[some]
        place = np.repeat(some, many)
        # Those of a step are consecutive.
        columns = np.repeat(passed[:-1].ravel()[some] - np.cumsum(many) + many, many) + np.arange(len(place))
        steps, rows = np.divmod(place, self.batch)
        self.done = passed[-1]
        return steps, rows, columns

    def count(self, lengths: Array, accepted: Array, tried: Array, tries: int) -> None:
        self._check_gaps(np.array([0, self.tries]))
        stats, evaluations = self.stats, self.method.tableau.stages - self.method.tableau.fsal
        assert stats.per_sample is not None
        self._add(evaluations, tried)
        stats.nfe += evaluations * tries
        stats.accepted += int(accepted.sum())
        stats.rejected += int((tried - accepted).sum())
        stats.per_sample.accepted.add_(torch.from_numpy(accepted).long())
        stats.per_sample.rejected.add_(torch.from_numpy(tried - accepted).long())

    def _add(self, evaluations: int, times: Array) -> None:
        assert self.stats.per_sample is not None
        self.stats.per_sample.nfe.add_(torch.from_numpy(evaluations * times).long())


class _Recomputed(torch.autograd.Function):
    """The solve, with a backward pass that makes its steps again, from the last to the first."""

    @staticmethod
    def forward(
        ctx: Any, solve: _Solve, report: Statistics | None, y0: Tensor, t: Tensor, *params: Tensor
    ) -> Tensor:
        y = solve.run(y0, keep=True)
        tensors, ctx.put_back = take_tensors(solve.recorded)
        solve.recorded = []
        ctx.solve, ctx.report, ctx.count = solve, report, len(params)
        ctx.save_for_backward(y0, t, *params, *tensors)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y0, t, *rest = ctx.saved_tensors
        params, solve = tuple(rest[: ctx.count]), ctx.solve
        if ctx.report is not None:
            steps = solve.steps_made
            ctx.report.backward = Statistics(nfe=steps * solve.method.tableau.stages, accepted=steps)
        if not torch.is_grad_enabled():
            try:
                with torch.autocast(grad.device.type, enabled=False):
                    recorded = ctx.put_back(rest[ctx.count :])
                    return None, None, *solve.pull(recorded, y0, grad.contiguous(), params)
            except CannotCompile:
                pass
        return None, None, *_pull_in_python(solve, y0, t, params, grad)


def _pull_in_python(
    solve: _Solve, y0: Tensor, t: Tensor, params: tuple[Tensor, ...], grad: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradients where the backward pass does not compile, or is to be differentiated itself: solve again, with
    the steps recorded by autograd."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        inputs = [
            x if x.requires_grad and create_graph else x.detach().requires_grad_()
            for x in (y0, *((t,) * solve.moving), *params)
        ]
        y0, *rest = inputs
        if solve.moving:
            t = rest.pop(0)
        y = solve.again(with_parameters(solve.dynamics, tuple(rest)), y0, t, solve.settings)
        totals = gradients([y], inputs, [grad], create_graph=create_graph)
        by_y0, *found = own_parts(inputs, totals) if create_graph else totals
    return by_y0, found.pop(0) if solve.moving else None, *found
