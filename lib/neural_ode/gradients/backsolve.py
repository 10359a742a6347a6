"""The adjoint method: solve the adjoint equation backwards, together with the state.

Chen et al. (2018), section 2 and appendices B and C, Algorithms 1 and 2. Keeps the states at the output times
and nothing else, so memory does not grow with the number of steps. The gradient is that of the continuous
problem, as accurate as the backward solve.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from neural_ode.compiled import CannotCompile, compiled_adjoint, integrate_compiled, with_compiled_steps
from neural_ode.errors import InvalidArgumentError, SolverError, finite_number
from neural_ode.gradients.problem import Problem
from neural_ode.integrate import integrate
from neural_ode.methods import BlackBox, Method, get_method
from neural_ode.scheme import Callbacks, Scheme, Trajectory, stepping
from neural_ode.solution import Statistics
from neural_ode.state import Dynamics, State, TupleState, max_rms_norm
from neural_ode.step_size import Tolerance

__all__ = ["AdjointNorm", "AugmentedSystem", "Backsolve"]

AdjointNorm = Callable[[State, State, tuple[Tensor, ...]], Tensor]
"""Norm of `(z, a, (∂L/∂θ, …))`: state and adjoint in the structure of `y0`, a gradient for each parameter."""

PartNorm = Callable[[tuple[Tensor, ...]], Tensor]


@dataclass(frozen=True)
class Backsolve:
    """`gradient="backsolve"`: the paper's adjoint method.

    What is left out is taken from the forward solve.

    Attributes:
        method: method of the backward solve.
        rtol, atol: its tolerances.
        step_size: a constant step for the backward solve; that of the forward solve if left out, unless the
            backward solve has a method of its own.
        norm: norm of the error control, a function of state, adjoint and the tuple of the parameters' gradients.
            The default measures the first two as the forward solve does and every gradient by its root mean
            square, and takes the largest. `"seminorm"` leaves out the gradients (Kidger et al. 2021): they do not
            feed back into the solve.
        options: further fields of the backward solve's `Scheme`, such as `{"max_step": 0.1}`.
    """

    name: ClassVar[str] = "backsolve"

    method: str | Method | BlackBox | None = None
    rtol: float | Tensor | None = None
    atol: float | Tensor | None = None
    step_size: float | None = None
    norm: AdjointNorm | str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

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

    def __call__(self, problem: Problem, scheme: Scheme, stats: Statistics) -> Trajectory:
        found: list[Trajectory] = []
        y, times = _Backsolve.apply(problem, scheme, self, stats, found, problem.y0, problem.t, *problem.params)
        ended = problem.event is not None
        return found[0]._replace(y=y, t=times if ended else problem.t)

    def scheme(
        self, forward: Scheme, augmented: "AugmentedSystem", norm: Callable[[tuple[Tensor, ...]], Tensor]
    ) -> Scheme:
        """How the backward solve is made."""
        method = forward.method if self.method is None else get_method(self.method)
        tolerance = Tolerance(
            augmented.tolerance(forward.tolerance.rtol if self.rtol is None else self.rtol),
            augmented.tolerance(forward.tolerance.atol if self.atol is None else self.atol),
            lambda x: norm((x.new_zeros(()).abs(), *augmented.unpack(x))),
        )
        own_method = self.method is not None
        scheme = replace(
            forward,
            method=method,
            tolerance=tolerance,
            step_size=forward.step_size if self.step_size is None and not own_method else self.step_size,
            grid=None if own_method or self.step_size is not None else forward.grid,
            first_step=None,
            callbacks=Callbacks(),
        )
        if self.options:
            own = {name: getattr(scheme, name) for name in inspect.signature(stepping).parameters}
            calls = self.options.get("callbacks", scheme.callbacks)
            changed = {name: value for name, value in self.options.items() if name != "callbacks"}
            scheme = replace(scheme, **stepping(**own | changed), callbacks=calls)
        calls = scheme.callbacks
        return replace(
            scheme,
            callbacks=Callbacks(*(augmented.callback(call) for call in (calls.step, calls.accept, calls.reject))),
        )

    def part_norm(self, problem: Problem, scheme: Scheme) -> PartNorm:
        """The norm as a function of `(0, z, a, *∂L/∂θ)`, z and a packed."""
        own = self.norm
        if callable(own):
            return lambda parts: own(problem.restore(parts[1]), problem.restore(parts[2]), parts[3:])
        state_norm = scheme.tolerance.norm

        def default(parts: tuple[Tensor, ...]) -> Tensor:
            time, z, a, *gradients = parts
            # The user's norm may return a number.
            sizes = [torch.as_tensor(state_norm(x)).to(time) for x in (z, a)]
            if own is None and gradients:
                sizes.append(max_rms_norm(gradients))
            return torch.stack([time.abs(), *sizes]).amax()

        return default


class AugmentedSystem:
    """The system of Algorithm 1, `[z, a, ∂L/∂θ]`, packed into one vector of the state's dtype."""

    def __init__(self, f: Dynamics, y: Tensor, params: tuple[Tensor, ...]):
        self.f, self.params, self.dtype = f, params, y.dtype
        # A complex gradient beside a real state is kept as pairs of real numbers.
        self.as_pairs = [p.is_complex() and not y.is_complex() for p in params]
        shapes = [torch.Size((*p.shape, 2)) if pairs else p.shape for p, pairs in self._pairs()]
        self.structure = TupleState((y.shape, y.shape, *shapes))

    def _pairs(self) -> list[tuple[Tensor, bool]]:
        return list(zip(self.params, self.as_pairs, strict=True))

    def pack(self, z: Tensor, a: Tensor, gradients: list[Tensor]) -> Tensor:
        stored = [torch.view_as_real(g) if pairs else g for g, pairs in zip(gradients, self.as_pairs, strict=True)]
        return self.structure.pack([x.to(self.dtype) for x in (z, a, *stored)])

    def unpack(self, state: Tensor) -> tuple[Tensor, ...]:
        return self.structure.unpack(state)

    def gradients(self, state: Tensor) -> list[Tensor]:
        """The part `∂L/∂θ`, in the dtypes of the parameters."""
        found = []
        for g, (p, pairs) in zip(self.unpack(state)[2:], self._pairs(), strict=True):
            if pairs:
                g = torch.view_as_complex(g.contiguous())
            found.append((g.real if g.is_complex() and not p.is_complex() else g).to(p.dtype))
        return found

    def __call__(self, t: Tensor, state: Tensor) -> Tensor:
        """`d/dt [z, a, ∂L/∂θ] = [f, -aᵀ ∂f/∂z, -aᵀ ∂f/∂θ]`."""
        z, a, *_ = self.unpack(state)
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            slope = self.f(t, z)
            inputs = (z, *self.params)
            products: tuple[Tensor | None, ...]
            if slope.requires_grad:
                products = torch.autograd.grad(slope, inputs, -a, allow_unused=True)
            else:  # f depends on neither the state nor the parameters
                products = (None,) * len(inputs)
        rate, *rates = [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, products, strict=True)]
        return self.pack(slope.detach(), rate, rates)

    def tolerance(self, value: float | Tensor) -> float | Tensor:
        """A tolerance for each entry of the state holds for the adjoint too, and its least for the parameters."""
        if not isinstance(value, Tensor):
            return value
        z_shape, _, *rest = self.structure.shapes
        size = sum(shape.numel() for shape in self.structure.shapes)
        if value.shape == (size,) and size != z_shape.numel():
            return value
        entries = value.expand(z_shape).reshape(-1)
        numbers = sum(shape.numel() for shape in rest)
        return torch.cat([entries, entries, value.amin().expand(numbers)])

    def callback(self, call: Callable[..., object] | None) -> Callable[[Tensor, Tensor, Tensor], object] | None:
        if call is None:
            return None
        return lambda t, state, h: call(t, (state.new_zeros(()), *self.unpack(state)), h)


class _Backsolve(torch.autograd.Function):
    """Forward: a solve that autograd does not see. Backward: one solve of the augmented system per interval."""

    @staticmethod
    def forward(
        ctx: Any,
        problem: Problem,
        scheme: Scheme,
        options: Backsolve,
        stats: Statistics,
        found: list[Trajectory],
        y0: Tensor,
        t: Tensor,
        *params: Tensor,
    ) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            solve = integrate_compiled if problem.compile else integrate
            trajectory = solve(problem.f, y0, t, scheme, stats, event=problem.event)
        found.append(trajectory)
        ctx.ended = trajectory.event is not None
        ctx.problem, ctx.scheme, ctx.options, ctx.stats = problem, scheme, options, stats
        # The name that users of torchdiffeq know for what the backward solve will use.
        ctx.adjoint_options = {"norm": options.part_norm(problem, scheme)}
        kind = y0.device.type
        ctx.autocast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        times = trajectory.t.clone() if trajectory.t is t else trajectory.t
        y = trajectory.y
        ctx.save_for_backward(y, times, *params)
        return y, times

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, grad_times: Tensor) -> tuple[Tensor | None, ...]:
        y, t, *params = ctx.saved_tensors
        wanted = ctx.needs_input_grad[7:]
        active = tuple(p for p, needed in zip(params, wanted, strict=True) if needed)
        kind, dtype, enabled = ctx.autocast
        try:
            # f has to be the function that it was in the forward pass.
            with torch.no_grad(), torch.autocast(kind, dtype, enabled):
                a, grad_t, gradients = _solve_back(ctx, y, t, active, grad_y)
        except SolverError as error:
            error.add_note("This was the backward solve of gradient='backsolve'; gradient='direct' has none.")
            error.partial = None
            raise
        if grad_t is not None and ctx.ended:  # the time of the event is no argument, nor do later ones matter
            n = len(ctx.problem.t)
            grad_t = torch.cat([grad_t[:-1], grad_t.new_zeros(n)])[:n]
        rest = iter(gradients)
        found = [
            a if ctx.needs_input_grad[5] else None,
            grad_t,
            *(next(rest) if needed else None for needed in wanted),
        ]
        if torch.is_grad_enabled():  # create_graph=True
            found = [None if g is None else _OnceDifferentiable.apply(y, g) for g in found]
        return *(None,) * 5, *found


class _OnceDifferentiable(torch.autograd.Function):
    """Lets a gradient pass, and refuses to differentiate it again instead of taking it for a constant."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, gradient: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        raise InvalidArgumentError(
            "gradient='backsolve' does not give second derivatives; use gradient='direct' for them"
        )


def _solve_back(
    ctx: Any, y: Tensor, t: Tensor, params: tuple[Tensor, ...], grad_y: Tensor
) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """`∂L/∂z(t_0)`, `∂L/∂t` where wanted, and `∂L/∂θ`."""
    f: Dynamics = ctx.problem.f
    augmented = AugmentedSystem(f, y[0], params)
    scheme = ctx.options.scheme(ctx.scheme, augmented, lambda parts: ctx.adjoint_options["norm"](parts))
    stats = ctx.stats.backward = Statistics()
    times_wanted = ctx.needs_input_grad[6]

    solved: tuple[Tensor, Sequence[Tensor]]
    if ctx.problem.compile:
        try:
            solved = compiled_adjoint(f, params, y, t, grad_y, scheme, ctx.adjoint_options["norm"], stats)
        except CannotCompile:
            solved = _by_intervals(augmented, y, t, grad_y, with_compiled_steps(scheme), stats)
    else:
        solved = _by_intervals(augmented, y, t, grad_y, scheme, stats)
    a, gradients = solved
    grad_t: list[Tensor] = []
    if times_wanted:
        grad_t = [_time_gradient(f, t[i], y[i], grad_y[i], stats) for i in range(1, len(t))]
        # ∂L/∂t0 = -a(t0)ᵀ f(z(t0), t0). Algorithm 2 reaches the same number by integrating -aᵀ ∂f/∂t.
        grad_t.insert(0, _time_gradient(f, t[0], y[0], grad_y[0] - a, stats))
    return a, torch.stack(grad_t) if times_wanted else None, list(gradients)


def _by_intervals(
    augmented: AugmentedSystem, y: Tensor, t: Tensor, grad_y: Tensor, scheme: Scheme, stats: Statistics
) -> tuple[Tensor, list[Tensor]]:
    """`∂L/∂z(t_0)` and `∂L/∂θ`, by one solve from each output time to the one before."""
    a = grad_y[-1]
    gradients = [torch.zeros_like(p) for p in augmented.params]
    for i in range(len(t) - 1, 0, -1):
        path = integrate(augmented, augmented.pack(y[i], a, gradients), t[[i, i - 1]], scheme, stats)
        # The adjoint jumps by ∂L/∂z(t_i) at every observation (figure 2 of the paper).
        a = augmented.unpack(path.y[1])[1] + grad_y[i - 1]
        gradients = augmented.gradients(path.y[1])
        if path.next_step:
            scheme = replace(scheme, first_step=abs(path.next_step))
    return a, gradients


def _time_gradient(f: Dynamics, t: Tensor, z: Tensor, a: Tensor, stats: Statistics) -> Tensor:
    """`aᵀ f(z, t)`, the gradient of a time (appendix C of the paper), as a float64 tensor of shape ()."""
    with torch.no_grad():
        slope = f(t.to(z.device, z.abs().dtype), z)
        stats.nfe += 1
        return torch.sum((a.conj() * slope).real).to(t.device, t.dtype)
