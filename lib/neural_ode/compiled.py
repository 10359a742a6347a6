"""Whole solves in one compiled graph.

For small states most of the time of a solve is not arithmetic but the way there: Python, and the dispatch of some
hundred small operations a step. Here the loop of `adaptive`, error control included, is one graph of
`torch.compile`: it runs up to a number of accepted steps, comes back to Python, which takes the outputs, and goes
on. The steps themselves are those of `Method.step`; times, tolerances and limits are tensors, so that changing
them, or the values of parameters, compiles nothing.

The gradient is that of `gradient="direct"`, by recomputation: kept are the state and the first slope of every
accepted step, and the backward pass, one graph too, goes back through the steps and multiplies with the Jacobian
of each (Griewank & Walther 2008, *Evaluating Derivatives*, chapter 12, with a checkpoint at every step).

What cannot be compiled as a whole is made with compiled steps (`CompiledRungeKutta`).
"""

import contextlib
import functools
import itertools
import math
import types
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from neural_ode.adaptive import check_start
from neural_ode.errors import SolverError
from neural_ode.events import EventFunction
from neural_ode.integrate import integrate
from neural_ode.methods import CompiledRungeKutta, ExplicitRungeKutta
from neural_ode.scheme import Callbacks, Scheme, Trajectory
from neural_ode.solution import Statistics
from neural_ode.state import Dynamics, Norm, TupleState
from neural_ode.step_size import IntegralController, initial_step

__all__ = ["CannotCompile", "compiled_adjoint", "compiled_integrate", "integrate_compiled", "with_compiled_steps"]

# Their stubs do not know how many values they return.
_vjp: Any = torch.func.vjp
_jvp: Any = torch.func.jvp


def _while_loop(*arguments: Any) -> Any:
    """The loop inside a graph; imported late, for it brings the compiler with it."""
    from torch._higher_order_ops.while_loop import while_loop

    loop: Any = while_loop
    return loop(*arguments)


_refused: set[Any] = set()
"""Kinds of dynamics that have been found not to compile."""


class CannotCompile(Exception):  # noqa: N818 (a way to say "do it yourself", which no user sees)
    """The solve has to be made by the loops in Python.

    Attributes:
        failed: the compiled solve ran and could not be finished, so there is nothing to warn of: the loop in
            Python will find the same error, and says what it is.
    """

    def __init__(self, reason: str, failed: bool = False):
        super().__init__(reason)
        self.failed = failed


def integrate_compiled(
    f: Dynamics, y0: Tensor, t: Tensor, scheme: Scheme, stats: Statistics, event: EventFunction | None = None
) -> Trajectory:
    """`integrate`, compiled as far as it goes: the whole solve, or else its steps."""
    if event is None:
        try:
            return compiled_integrate(f, y0, t, scheme, stats)
        except CannotCompile:
            pass
    return integrate(f, y0, t, with_compiled_steps(scheme), stats, event=event)


def with_compiled_steps(scheme: Scheme) -> Scheme:
    """The scheme with the compiled form of its method, where there is one."""
    if not isinstance(scheme.method, ExplicitRungeKutta):
        return scheme
    return replace(scheme, method=CompiledRungeKutta(scheme.method.tableau))


def compiled_integrate(f: Dynamics, y0: Tensor, t: Tensor, scheme: Scheme, stats: Statistics) -> Trajectory:
    """`integrate` with the steps compiled, and the gradient of `gradient="direct"`, once differentiable.

    Raises:
        CannotCompile: use `integrate`.
    """
    _check(y0, t, scheme)
    dynamics = _Lifted(f)
    if dynamics.key in _refused:
        raise CannotCompile("it could not be compiled before")
    grad = torch.is_grad_enabled()
    moving = grad and t.requires_grad
    rng = torch.get_rng_state()
    slope, depends = _first_slope(dynamics, y0, t, grad)
    if not torch.equal(rng, torch.get_rng_state()):
        raise CannotCompile("f draws random numbers")
    solve = _Solve(dynamics, scheme, t.tolist(), slope, moving)
    if grad and (depends or y0.requires_grad or moving):
        y = _remembering(dynamics, lambda start: _Recomputed.apply(solve, start, t, *dynamics.params), y0)
    else:
        y = _remembering(dynamics, solve.run, y0)
    solve.add_to(stats)
    return Trajectory(t, y, solve.next_step)


def _remembering(dynamics: "_Lifted", run: Callable[[Tensor], Tensor], y0: Tensor) -> Tensor:
    try:
        return run(y0)
    except CannotCompile as error:
        if not error.failed:
            _refused.add(dynamics.key)
        raise


def compiled_adjoint(
    f: Dynamics,
    params: tuple[Tensor, ...],
    y: Tensor,
    t: Tensor,
    grad_y: Tensor,
    scheme: Scheme,
    norm: Callable[[tuple[Tensor, ...]], Tensor],
    stats: Statistics,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The backward pass of `backsolve`: Algorithm 1 of Chen et al. (2018), a compiled solve for each interval.

    Args:
        f: the dynamics.
        params: what gets gradients besides the initial state, parameters of modules that `f` is or refers to.
        y: the states at the times `t`, shape (n, *state).
        t: the times.
        grad_y: `∂L/∂y`.
        scheme: of the backward solve; its tolerance is one for all of `(z, a, ∂L/∂θ)`.
        norm: of `(0, z, a, *∂L/∂θ)`.
        stats: counters to add to.

    Returns:
        `∂L/∂y0` and `∂L/∂θ`.

    Raises:
        CannotCompile: use `integrate` for the augmented system.
    """
    _check(y[0], t, scheme)
    if any(p.dtype != y.dtype for p in params):
        raise CannotCompile("parameters have another dtype than the state")
    dynamics = _Lifted(f, params)
    method = scheme.method
    assert isinstance(method, ExplicitRungeKutta)
    structure = TupleState((y[0].shape, y[0].shape, *(p.shape for p in params)))

    def augmented(t: Tensor, state: Tensor) -> Tensor:
        """`d/dt [z, a, ∂L/∂θ] = [f, -aᵀ ∂f/∂z, -aᵀ ∂f/∂θ]`."""
        z, a, *_ = structure.unpack(state)
        slope, pull = _vjp(lambda z, *params: _with(dynamics, params)(t, z), z, *params)
        return structure.pack([slope, *pull(-a)])

    def packed_norm(x: Tensor) -> Tensor:
        return norm((x.new_zeros(()), *structure.unpack(x)))

    times = t.tolist()
    size = y[0].numel()
    state = structure.pack([y[-1], grad_y[-1], *(torch.zeros_like(p) for p in params)])
    now, before = times[-1], times[-2]
    if scheme.first_step is None:
        slope = augmented(torch.tensor(now, dtype=y.dtype, device=y.device), state)
        h = initial_step(augmented, now, state, slope, before - now, method.order, scheme.tolerance)
    else:
        h = scheme.first_step
    cost = method.tableau.stages - method.tableau.fsal
    tries, accepted, slopes = 0, 0, 2 * (scheme.first_step is None)
    key = (dynamics.key, tuple(dynamics.names), structure.shapes)
    for i in range(len(times) - 1, 0, -1):
        now, end, since = times[i], times[i - 1], 0
        h = math.copysign(min(abs(h), abs(end - now)), end - now)
        while now != end:
            status, state = _march_on(augmented, scheme, key, 2**20, state, None, (now, h, end), packed_norm)
            now, h, passed, tried, _ = status.tolist()
            tries, accepted, since, slopes = (
                tries + int(tried),
                accepted + int(passed),
                since + int(tried),
                slopes + 1,
            )
            if since > scheme.max_steps or (now != end and tried < _PATIENCE):
                raise CannotCompile("the backward solve fails", failed=True)
        # The adjoint jumps by ∂L/∂z(t_i) at every observation (figure 2 of the paper).
        state = torch.cat(
            [y[i - 1].reshape(-1), state[size : 2 * size] + grad_y[i - 1].reshape(-1), state[2 * size :]]
        )
    stats.nfe += slopes + tries * cost
    stats.accepted += accepted
    stats.rejected += tries - accepted
    _, a, *gradients = structure.unpack(state)
    return a, tuple(gradients)


def _check(y0: Tensor, t: Tensor, scheme: Scheme) -> None:
    """What the compiled loop does not do.

    Raises:
        CannotCompile: it would have to.
    """
    if not isinstance(scheme.method, ExplicitRungeKutta) or not scheme.controls_error:
        raise CannotCompile(f"{scheme.method.name} is not an explicit method with error control")
    if not scheme.method.has_dense_output:
        raise CannotCompile(f"{scheme.method.name} has no dense output")
    if type(scheme.controller) is not IntegralController:
        raise CannotCompile(f"the controller is {type(scheme.controller).__name__}")
    if scheme.step_t or scheme.jump_t:
        raise CannotCompile("step_t and jump_t cut the steps")
    if scheme.callbacks != Callbacks():
        raise CannotCompile("there are callbacks")
    if y0.is_complex() or y0.numel() == 0 or t.dim() != 1 or len(t) < 2:
        raise CannotCompile("the state is complex or empty, or there is nothing to solve")
    if torch.is_autocast_enabled(y0.device.type):
        raise CannotCompile("autocast is on")
    if torch.is_inference_mode_enabled() or y0.is_inference():
        raise CannotCompile("inference mode is on; torch.no_grad() does the same")


class _Lifted(nn.Module):
    """Dynamics as a function of time, state and parameters.

    Attributes:
        params: those that get gradients: by default all that require them, of the modules that `f` is or refers to.
        key: what the graph depends on, up to what the guards of `torch.compile` look after.
    """

    def __init__(self, f: Dynamics, params: tuple[Tensor, ...] | None = None):
        super().__init__()
        found: dict[int, nn.Module] = {}
        self.key = _describe(f, found)
        self.parts = nn.ModuleList(found.values())
        self.f = None if isinstance(f, nn.Module) else f
        named = {id(p): (name, p) for name, p in self.named_parameters()}
        if params is None:
            params = tuple(p for _, p in named.values() if p.requires_grad)
        if any(id(p) not in named for p in params):
            raise CannotCompile("params holds tensors that are no parameters of a module that f uses")
        self.names = [named[id(p)][0] for p in params]
        self.params = params

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        slope: Tensor = self.parts[0](t, y) if self.f is None else self.f(t, y)
        return slope


_structures: "WeakKeyDictionary[nn.Module, str]" = WeakKeyDictionary()


def _describe(f: Any, modules: dict[int, nn.Module], seen: tuple[int, ...] = ()) -> tuple[Any, ...]:
    """A key for the code that `f` runs; gathers the modules that it refers to."""
    if isinstance(f, nn.Module):
        modules[id(f)] = f
        if f not in _structures:
            _structures[f] = repr(f)
        return type(f), _structures[f]
    if isinstance(f, functools.partial):
        return "partial", *(_describe(x, modules, seen) for x in (f.func, *f.args, *f.keywords.values()))
    if isinstance(f, types.MethodType):
        return _describe(f.__func__, modules, seen), _describe(f.__self__, modules, seen)
    if isinstance(f, types.FunctionType):
        if id(f) in seen:  # a function that calls itself
            return (f.__code__,)
        cells = []
        for cell in f.__closure__ or ():
            with contextlib.suppress(ValueError):  # it is still empty
                cells.append(cell.cell_contents)
        known = f.__globals__
        cells += [known[name] for name in f.__code__.co_names if isinstance(known.get(name), nn.Module)]
        return f.__code__, *(_describe(x, modules, (*seen, id(f))) for x in cells)
    if isinstance(f, TupleState):
        return (f,)
    return (type(f),)


def _with(dynamics: _Lifted, params: tuple[Tensor, ...]) -> Dynamics:
    """The dynamics with other values of the parameters."""
    if not params:
        return dynamics
    values = dict(zip(dynamics.names, params, strict=True))
    return lambda t, y: torch.func.functional_call(dynamics, values, (t, y))


def _first_slope(dynamics: _Lifted, y0: Tensor, t: Tensor, grad: bool) -> tuple[Tensor, bool]:
    """`f` at the start, and whether it depends on parameters.

    Raises:
        CannotCompile: it depends on other tensors that require gradients, which the backward pass would miss.
    """
    time = t.detach()[0].to(y0)
    with torch.set_grad_enabled(grad):
        fresh = tuple(p.detach().requires_grad_() for p in dynamics.params) if grad else ()
        slope = _with(dynamics, fresh)(time, y0.detach())
    try:
        check_start(slope, y0, float(time))
    except SolverError as error:
        raise CannotCompile(str(error), failed=True) from error
    leaves = {id(leaf) for leaf in _leaves(slope)}
    if not leaves <= {id(p) for p in fresh}:
        raise CannotCompile(
            "f uses tensors that require gradients and are no parameters of a module: make f a torch.nn.Module"
        )
    return slope.detach(), bool(leaves)


def _leaves(x: Tensor) -> Iterator[Tensor]:
    """The leaves of the graph of autograd that `x` depends on."""
    waiting: list[Any] = [x.grad_fn]
    seen: set[Any] = {None}
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        waiting += [following for following, _ in node.next_functions]


# The graphs. These functions are only run by `torch.compile`.


def _march(
    f: Dynamics,
    method: ExplicitRungeKutta,
    norm: Norm,
    capacity: int,
    y: Tensor,
    slope: Tensor | None,
    settings: Tensor,
    rtol: Tensor,
    atol: Tensor,
) -> tuple[Tensor, ...]:
    """The loop of `adaptive`, for up to `capacity` accepted steps, which it records if `slope`, `f` at the start,
    is given.

    Returns:
        status: the time reached, the next step, accepted steps, tries, the error ratio of the last try.
        y: the state there.

        If steps are recorded, also

        carry: the slope there, if the method is first same as last.
        log: start, length and number of tries before it of each step, shape (capacity, 3).
        states: where they start and, in the next row, where the last one ended.
        slopes: their stages, shape (capacity, stages, *state).
    """
    now, h = settings[0].clone(), settings[1].clone()
    recorded = slope is not None
    fsal = method.tableau.fsal
    carry = slope if slope is not None else f(now.to(y.dtype), y)
    count = torch.zeros((), dtype=torch.int64, device=y.device)
    if recorded:
        log = settings.new_empty((capacity, 3))
        states = y.new_empty((capacity + 1, *y.shape))
        slopes = y.new_empty((capacity, method.tableau.stages, *y.shape))

    def proposed(now: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        _, _, end, direction, _, _, _, shortest, longest, stretch, _ = settings.unbind()
        planned = direction * torch.minimum(torch.maximum(h.abs(), shortest), longest)
        reaches = (now + stretch * planned - end) * direction >= 0
        return planned, reaches, torch.where(reaches, end - now, planned), torch.where(reaches, end, now + planned)

    def goes_on(now: Tensor, h: Tensor, accepted: Tensor, tries: Tensor, err: Tensor, *state: Tensor) -> Tensor:
        end, direction, patience = settings[2], settings[3], settings[10]
        after = proposed(now, h)[3]
        unfinished = ((end - now) * direction > 0) & ((after - now).abs() > 0)
        return unfinished & (accepted < capacity) & (tries < patience)

    def attempt(
        now: Tensor, h: Tensor, accepted: Tensor, tries: Tensor, err: Tensor, y: Tensor, *carry: Tensor
    ) -> tuple[Tensor, ...]:
        planned, reaches, h, after = proposed(now, h)
        direction, safety, ifactor, dfactor, shortest = settings[3:8].unbind()
        one = torch.ones_like(now)
        step = method.step(f, now.to(y.dtype), y, h.to(y.dtype), carry[0] if fsal else None)
        size = torch.maximum(y.abs(), step.y1.abs())
        scale = (size * rtol + atol).to(y.dtype).clamp_min(torch.finfo(y.dtype).tiny)
        err = torch.as_tensor(norm(_known(step.error) / scale)).abs().to(now)
        finite = err.isfinite()
        err = torch.where((h.abs() <= shortest) & finite, torch.minimum(err, one), err)
        passed = err <= 1
        least = torch.where(passed, one, dfactor)
        factor = torch.minimum(ifactor, torch.maximum(least, safety * err ** (-1 / method.order)))
        factor = torch.where(finite, factor, dfactor)
        if recorded:
            row = accepted.reshape(1)
            log.index_copy_(0, row, torch.stack([now, h, tries.to(now)])[None])
            states.index_copy_(0, row, y[None])
            slopes.index_copy_(0, row, torch.stack(step.dense)[None])
        following = h * factor
        # A step cut short says little about the next.
        kept = direction * torch.maximum(following.abs(), planned.abs())
        chosen = (torch.where(passed, step.carry, carry[0]),) if fsal else ()
        return (
            torch.where(passed, after, now),
            torch.where(passed & reaches, kept, following),
            accepted + passed,
            tries + 1,
            err,
            torch.where(passed, step.y1, y),
            *chosen,
        )

    start = (now, h, count, count.clone(), torch.zeros_like(now), y.clone())
    now, h, accepted, tries, err, y, *rest = _while_loop(
        goes_on, attempt, (*start, *((_known(carry).clone(),) * fsal))
    )
    status = torch.stack([now, h, accepted.to(now), tries.to(now), err])
    if not recorded:
        return status, y
    states.index_copy_(0, accepted.reshape(1), y[None])
    return status, y, (rest[0] if fsal else _known(slope).clone()), log, states, slopes


def _pull_step(
    dynamics: _Lifted,
    method: ExplicitRungeKutta,
    moving: bool,
    log: Tensor,
    y: Tensor,
    carry: Tensor | None,
    grad_y1: Tensor,
    grad_slopes: Tensor,
    params: tuple[Tensor, ...],
) -> tuple[Tensor, ...]:
    """One step backwards: gradients of `y`, then, where they exist, of `carry` and the time, then of `params`."""
    now, h = log[0].to(y.dtype), log[1].to(y.dtype)

    def advance(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        y, *rest = inputs
        own = rest.pop(0) if carry is not None else None
        time = rest.pop(0) if moving else now
        step = method.step(_with(dynamics, tuple(rest)), time, y, h, own)
        return step.y1, torch.stack(step.dense)

    inputs = (y, *(() if carry is None else (carry,)), *((now,) * moving), *params)
    _, pull = _vjp(advance, *inputs)
    gradients: tuple[Tensor, ...] = pull((grad_y1, grad_slopes))
    return gradients


def _march_back(
    dynamics: _Lifted,
    method: ExplicitRungeKutta,
    moving: bool,
    count: Tensor,
    log: Tensor,
    states: Tensor,
    firsts: Tensor | None,
    grad_states: Tensor,
    grad_slopes: Tensor,
    gradients: tuple[Tensor, ...],
    params: tuple[Tensor, ...],
) -> tuple[Tensor, ...]:
    """Back through the steps of a chunk.

    Args:
        dynamics, method, moving, params: as for `_pull_step`.
        count: how many steps the chunk has.
        log, states: of the `_Chunk`.
        firsts: the first slope of every step, if it is the last of the step before.
        grad_states, grad_slopes: gradients of outputs with respect to `states` and the slopes.
        gradients: with respect to the state at the end of the chunk, then as `_pull_step` returns them; the
            parameters' so far are in the same graph.
    """

    def goes_on(left: Tensor, *gradients: Tensor) -> Tensor:
        return left > 0

    def pull(left: Tensor, grad_y: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        row = (left - 1).reshape(1)
        slopes = grad_slopes.index_select(0, row)[0]
        carry = None
        if firsts is not None:
            carry = firsts.index_select(0, row)[0]
            slopes = torch.cat([slopes[:-1], slopes[-1:] + rest[0][None]])
        found = _pull_step(
            dynamics,
            method,
            moving,
            log.index_select(0, row)[0],
            states.index_select(0, row)[0],
            carry,
            grad_y,
            slopes,
            params,
        )
        replaced = found[: 1 + (firsts is not None)]
        summed = [x + y for x, y in zip(rest[len(replaced) - 1 :], found[len(replaced) :], strict=True)]
        y = replaced[0] + grad_states.index_select(0, row)[0]
        return (left - 1, y, *(x.clone() for x in replaced[1:]), *summed)

    _, *found = _while_loop(goes_on, pull, (count, *(x.clone() for x in gradients)))
    return tuple(found)


# What calls them.


_PATIENCE = 256
"""Tries after which a chunk comes back, so that the loop in Python can be interrupted."""


class _Steps(NamedTuple):
    """What the backward pass needs of a chunk.

    Attributes:
        number: how many steps it has.
        log, states: of the `_Chunk`.
        firsts: the first slope of every step, if it is the last of the step before.
        rows, weights: where its outputs come from, see `_Solve._outputs`.
        rates: the derivatives of the outputs with respect to their times, where those are wanted.
    """

    number: int
    log: Tensor
    states: Tensor
    firsts: Tensor | None
    rows: Tensor
    weights: Tensor
    rates: Tensor | None


class _Solve:
    """One solve.

    Attributes:
        next_step: as in `Trajectory`.
        steps: what `run` kept for the backward pass.
    """

    def __init__(self, dynamics: _Lifted, scheme: Scheme, times: list[float], slope: Tensor, moving: bool):
        assert isinstance(scheme.method, ExplicitRungeKutta)
        self.dynamics, self.scheme, self.method, self.times = dynamics, scheme, scheme.method, times
        self.slope, self.moving = slope, moving
        self.direction = math.copysign(1.0, times[-1] - times[0])
        self.capacity = 64 if slope.numel() <= 2**14 else 16
        self.next_step = 0.0
        self.steps: list[_Steps] = []
        self.stats = Statistics()

    def run(self, y: Tensor, keep: bool = False) -> Tensor:
        """The states at the output times, shape (n, *state)."""
        with torch.no_grad():
            return self._run(y.detach(), keep)

    def _run(self, y: Tensor, keep: bool) -> Tensor:
        scheme, times, stats, capacity = self.scheme, self.times, self.stats, self.capacity
        now, end = times[0], times[-1]
        if scheme.first_step is not None:
            h = math.copysign(min(scheme.first_step, abs(end - now)), end - now)
        else:
            h = initial_step(self.dynamics, now, y, self.slope, end - now, self.method.order, scheme.tolerance)
        stats.nfe += 1 + (scheme.first_step is None)
        carry = self.slope
        found, tries, tries_before = [y[None]], 0, 0
        outputs = 1
        while outputs < len(times):
            status, y, carry, log, states, slopes = _march_on(
                self.dynamics, scheme, (self.dynamics.key, capacity), capacity, y, carry, (now, h, end)
            )
            now, h, accepted, tried, _ = status.tolist()
            count = int(accepted)
            starts, lengths, tried_before = log[:count].T.tolist() if count else ([], [], [])
            ends = [*starts[1:], now][:count]
            first = outputs
            for at, before in zip(ends, tried_before, strict=True):
                self._check_steps(tries + int(before) + 1 - tries_before)
                while outputs < len(times) and (times[outputs] - at) * self.direction <= 0:
                    outputs += 1
                    tries_before = tries + int(before) + 1
            tries += int(tried)
            self._check_steps(tries - tries_before)
            stats.step_sizes += lengths
            states_there, kept = self._outputs(times[first:outputs], starts, lengths, ends, states, slopes)
            found.append(states_there)
            if keep:
                firsts = None
                if self.method.tableau.fsal:
                    firsts = torch.empty_like(states[1:])
                    firsts[:count] = slopes[:count, 0]
                self.steps.append(_Steps(count, log, states, firsts, *kept))
            if now != end and count < capacity and tried < _PATIENCE:
                raise CannotCompile("the solve fails", failed=True)
        self.next_step = h
        stats.accepted = len(stats.step_sizes)
        stats.rejected = tries - stats.accepted
        stats.nfe += tries * (self.method.tableau.stages - self.method.tableau.fsal)
        return torch.cat(found)

    def _check_steps(self, steps: int) -> None:
        if steps > self.scheme.max_steps:
            raise CannotCompile("the solve takes too many steps", failed=True)

    def _outputs(
        self,
        times: list[float],
        starts: list[float],
        lengths: list[float],
        ends: list[float],
        states: Tensor,
        slopes: Tensor,
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor | None]]:
        """The states at times inside a chunk, and how they come about.

        Returns:
            The states, shape (m, *state), and `rows`, `weights` and `rates`: the state `i` is
            `states[rows[i]] + Σ_j weights[i, j] slopes[rows[i], j]`, and has the derivative `rates[i]`.
        """
        direction, stages = self.direction, self.method.tableau.stages
        keys = [direction * end for end in ends]
        rows, fractions = [], []
        for time in times:
            row = bisect_left(keys, direction * time)
            exact = ends[row] == time and not self.moving  # then it is the state at the end of the step
            rows.append(row + exact)
            fractions.append(0.0 if exact else (time - starts[row]) / lengths[row])
        index = torch.tensor(rows, dtype=torch.int64, device=states.device)
        theta = torch.tensor(fractions, dtype=states.dtype, device=states.device)
        step = [min(row, len(ends) - 1) for row in rows]
        h = torch.tensor([lengths[row] for row in step], dtype=states.dtype, device=states.device)
        unit = torch.eye(stages, dtype=states.dtype, device=states.device)

        def weights_at(theta: Tensor) -> Tensor:
            return h[:, None] * self.method.interpolate(torch.zeros_like(unit[0]), unit.unbind(), 1.0, theta)

        weights = weights_at(theta)
        chosen = slopes[torch.tensor(step, dtype=torch.int64, device=states.device)].flatten(2)
        found = states[index] + (weights[:, None] @ chosen).reshape(-1, *states.shape[1:])
        rates = None
        if self.moving:
            _, derivative = _jvp(weights_at, (theta,), (1 / h,))
            rates = (derivative[:, None] @ chosen).reshape(found.shape)
        return found, (index, weights, rates)

    def pull(self, y0: Tensor, grad: Tensor, params: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
        """Gradients with respect to `y0`, the times and the parameters, from those of the outputs."""
        fsal = self.method.tableau.fsal
        zero = grad.new_zeros(())
        grad_y, last = torch.zeros_like(grad[0]), len(grad)
        carried = (torch.zeros_like(grad_y),) * fsal
        summed = (*((zero,) * self.moving), *(torch.zeros_like(p) for p in params))
        grad_t = torch.zeros(len(grad), dtype=torch.float64, device=grad.device) if self.moving else None
        for steps in reversed(self.steps):
            first = last - len(steps.rows)
            part = grad[first:last].flatten(1)
            states = torch.zeros_like(steps.states).flatten(1).index_add_(0, steps.rows, part)
            slopes = grad.new_zeros((len(steps.log) + 1, steps.weights.shape[1], part.shape[1]))
            slopes.index_add_(0, steps.rows, steps.weights[:, :, None] * part[:, None])
            states = states.view_as(steps.states)
            slopes = slopes[:-1].view(-1, steps.weights.shape[1], *grad_y.shape)
            if grad_t is not None:
                grad_t[first:last] = (part * _known(steps.rates).flatten(1)).sum(1)
            grad_y = grad_y + states[steps.number]
            grad_y, *rest = _march_back_on(
                self.dynamics, self.method, self.moving, steps, states, slopes, (grad_y, *carried, *summed), params
            )
            carried, summed = tuple(rest[:fsal]), tuple(rest[fsal:])
            last = first
        if fsal:  # the slope that the first step started from
            time = torch.tensor(self.times[0], dtype=y0.dtype, device=y0.device)

            def slope(y: Tensor, time: Tensor, *params: Tensor) -> Tensor:
                return _with(self.dynamics, params)(time, y)

            _, pull = _vjp(slope, y0, time, *params)
            own, time_part, *parts = pull(carried[0])
            grad_y = grad_y + own
            parts = [*((time_part,) * self.moving), *parts]
            summed = tuple(x + y for x, y in zip(summed, parts, strict=True))
        if grad_t is not None:
            grad_t[0] = summed[0] - grad_t.sum()
            grad_t = grad_t.cpu()
        return grad_y + grad[0], grad_t, *summed[self.moving :]

    def add_to(self, stats: Statistics) -> None:
        own = self.stats
        stats.nfe += own.nfe
        stats.accepted += own.accepted
        stats.rejected += own.rejected
        stats.step_sizes += own.step_sizes


class _Recomputed(torch.autograd.Function):
    """The solve, with a backward pass that makes its steps again, from the last to the first."""

    @staticmethod
    def forward(ctx: Any, solve: _Solve, y0: Tensor, t: Tensor, *params: Tensor) -> Tensor:
        ctx.solve = solve
        ctx.save_for_backward(y0, *params)
        return solve.run(y0, keep=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y0, *params = ctx.saved_tensors
        try:
            with torch.no_grad(), torch.autocast(grad.device.type, enabled=False):
                return None, *ctx.solve.pull(y0, grad.contiguous(), tuple(params))
        except CannotCompile:
            return None, *_pull_in_python(ctx.solve, y0, grad, tuple(params))


def _pull_in_python(
    solve: _Solve, y0: Tensor, grad: Tensor, params: tuple[Tensor, ...]
) -> tuple[Tensor | None, ...]:
    """The gradients where the backward pass does not compile: solve again, with the steps recorded by autograd."""
    with torch.enable_grad():
        y0 = y0.detach().requires_grad_()
        t = torch.tensor(solve.times, dtype=torch.float64, requires_grad=solve.moving)
        fresh = tuple(p.detach().requires_grad_() for p in params)
        y = integrate(_with(solve.dynamics, fresh), y0, t, solve.scheme, Statistics()).y
    by_y0, *rest = torch.autograd.grad(y, (y0, *((t,) * solve.moving), *fresh), grad, allow_unused=True)
    return by_y0, rest.pop(0) if solve.moving else None, *rest


def _march_on(
    f: Dynamics,
    scheme: Scheme,
    key: tuple[Any, ...],
    capacity: int,
    y: Tensor,
    carry: Tensor | None,
    span: tuple[float, float, float],
    norm: Norm | None = None,
) -> tuple[Tensor, ...]:
    """Call `_march` from `now` with the step `h` towards `end`, where `span` holds these three."""
    now, h, end = span
    control, tolerance = scheme.controller, scheme.tolerance
    settings = torch.tensor(
        [
            now,
            h,
            end,
            math.copysign(1.0, end - now),
            control.safety,
            control.ifactor,
            control.dfactor,
            scheme.min_step,
            scheme.max_step,
            1.01 if scheme.max_step == math.inf else 1.0,
            _PATIENCE,
        ],
        dtype=torch.float64,
        device=y.device,
    )
    norm = norm or tolerance.norm
    rtol, atol = (
        x if isinstance(x, Tensor) else torch.tensor(x, dtype=torch.float64, device=y.device)
        for x in (tolerance.rtol, tolerance.atol)
    )
    found: tuple[Tensor, ...] = _call(
        _march,
        (*key, scheme.method, _describe(norm, {})),
        *(y, f, scheme.method, norm, capacity, y, carry, settings, rtol, atol),
    )
    return found


def _march_back_on(
    dynamics: _Lifted,
    method: ExplicitRungeKutta,
    moving: bool,
    steps: _Steps,
    grad_states: Tensor,
    grad_slopes: Tensor,
    gradients: tuple[Tensor, ...],
    params: tuple[Tensor, ...],
) -> tuple[Tensor, ...]:
    """Call `_march_back`, compiled."""
    count = torch.tensor(steps.number, device=grad_states.device)
    fixed = (dynamics, method, moving, count, steps.log, steps.states, steps.firsts, grad_states, grad_slopes)
    key = (dynamics.key, tuple(dynamics.names), method, moving)
    found: tuple[Tensor, ...] = _call(_march_back, key, grad_states, *fixed, gradients, params)
    return found


# Compilation.

_graphs: dict[Any, Callable[..., Any] | str] = {}
_numbers = itertools.count()


def _call(function: Callable[..., Any], key: tuple[Any, ...], like: Tensor, *args: Any) -> Any:
    """Run a function compiled.

    Every key gets a code object of its own, because `torch.compile` counts the graphs of each and gives up at a
    limit. What failed once is not tried again.

    Raises:
        CannotCompile: it failed.
    """
    key = (function, key, like.dtype, like.device, like.shape[1:], torch.get_num_threads())
    graph = _graphs.get(key)
    if graph is None:
        code = function.__code__.replace(co_name=f"{function.__name__}_{next(_numbers)}")
        copy = types.FunctionType(code, function.__globals__, code.co_name, function.__defaults__)
        graph = torch.compile(copy, fullgraph=True, backend=_inductor)
        _graphs[key] = graph
    if isinstance(graph, str):
        raise CannotCompile(graph)
    try:
        # Numbers are constants of the graph: as its inputs, inside a `while_loop`, they lose all but float32.
        with torch.no_grad(), torch._dynamo.config.patch(specialize_float=True):
            return graph(*args)
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        _graphs[key] = reason
        raise CannotCompile(reason) from error


def _inductor(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
    """The default backend of `torch.compile`, set up for graphs of many small operations."""
    from torch._inductor.compile_fx import compile_fx
    from torch._inductor.decomposition import select_decomp_table

    on_cpu = all(x.device.type == "cpu" for x in inputs if isinstance(x, Tensor))
    options = {
        # The code that calls the kernels in C++ too.
        "cpp_wrapper": on_cpu,
        # Entries from which threads share a loop: to start them costs about as much as this many.
        "cpp.min_chunk_size": 8192,
        # Fused multiplication and addition, which rounds once instead of twice.
        "cpp.enable_floating_point_contract_flag": "fast",
    }
    decompositions = {**select_decomp_table(), torch.ops.aten.tanh.default: _tanh}
    return compile_fx(graph, inputs, config_patches=options, decompositions=decompositions)


def _known(x: Tensor | None) -> Tensor:
    assert x is not None
    return x


def _tanh(x: Tensor) -> Any:
    """tanh in float32, to 3 units in the last place; in a compiled loop half the time of the exact one.

    With `x/2 P/Q` the eighth convergent of Lambert's continued fraction for `tanh(x/2)` (Lambert 1768; Abramowitz &
    Stegun 4.5.70) it is `x P Q / (x² P² / 4 + Q²)`, the formula for twice the argument.
    """
    if x.dtype != torch.float32:
        return NotImplemented
    x = x.clamp(-9.2, 9.2)  # where it is 1 in float32
    square = x * x
    numerators, denominators = _LAMBERT
    p, q = x * _polynomial(numerators, square), _polynomial(denominators, square)
    return p * q / (0.25 * p * p + q * q)


def _polynomial(coefficients: list[float], x: Tensor) -> Tensor:
    value = torch.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        value = value * x + c
    return value


def _lambert(depth: int) -> tuple[list[float], list[float]]:
    """Coefficients of `P(x²)` and `Q(x²)` in `tanh(x/2) ≈ x/2 P/Q`, `Q/P = 1 + u/(3 + u/(5 + …))`, `u = x²/4`."""
    upper, lower = [Fraction(2 * depth - 1)], [Fraction(1)]
    for k in range(2 * depth - 3, 0, -2):
        rest = [Fraction(0), *lower]
        size = max(len(upper), len(rest))
        padded = [[*row, *[Fraction(0)] * (size - len(row))] for row in (upper, rest)]
        upper, lower = [k * a + b for a, b in zip(*padded, strict=True)], upper
    p, q = ([float(c / upper[0] / 4**i) for i, c in enumerate(row)] for row in (lower, upper))
    return p, q


_LAMBERT = _lambert(8)
