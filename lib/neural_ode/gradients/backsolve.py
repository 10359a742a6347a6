"""The adjoint method: solve the adjoint equation backwards, together with the state.

Chen et al. (2018), section 2 and appendices B and C, Algorithms 1 and 2. Keeps the states at the output times
and nothing else, so memory does not grow with the number of steps. The gradient is that of the continuous
problem, as accurate as the backward solve.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from neural_ode.errors import InvalidArgumentError, finite_number
from neural_ode.integrate import Scheme, integrate
from neural_ode.methods import ExplicitRungeKutta, get_method
from neural_ode.solution import Statistics
from neural_ode.state import Dynamics, Norm, TupleState, max_rms_norm

__all__ = ["Backsolve"]


@dataclass(frozen=True)
class Backsolve:
    """`gradient="backsolve"`: the paper's adjoint method.

    What is left out is taken from the forward solve.

    Attributes:
        method: method of the backward solve.
        rtol, atol: its tolerances.
        step_size: a constant step for the backward solve; that of the forward solve if left out, unless the
            backward solve has a method of its own.
        norm: norm of the error control; gets the tuple `(z, a, *∂L/∂θ)` of tensors in their own shapes and
            returns a tensor of shape (). The default is the largest root mean square among them.
    """

    method: str | ExplicitRungeKutta | None = None
    rtol: float | None = None
    atol: float | None = None
    step_size: float | None = None
    norm: Callable[[tuple[Tensor, ...]], Tensor] | None = None

    def __post_init__(self) -> None:
        for name in ("rtol", "atol", "step_size"):
            if getattr(self, name) is not None:
                number = finite_number(f"{name} of the backward solve", getattr(self, name))
                if number < 0 or (name == "step_size" and number == 0):
                    raise InvalidArgumentError(f"{name} of the backward solve must be positive, got {number!r}")
                object.__setattr__(self, name, number)

    def __call__(
        self,
        f: Dynamics,
        y0: Tensor,
        t: Tensor,
        scheme: Scheme,
        stats: Statistics,
        params: tuple[Tensor, ...],
    ) -> Tensor:
        y: Tensor = _Backsolve.apply(f, scheme, self, stats, y0, t, *params)
        return y

    def scheme(self, forward: Scheme, structure: TupleState) -> Scheme:
        """The scheme of the backward solve, whose state `(z, a, *∂L/∂θ)` is packed as `structure` says."""
        method = forward.method if self.method is None else get_method(self.method)
        own = self.norm
        if own is None:
            # The user's norm measures z and a; every parameter's gradient has a norm of its own.
            def norm(x: Tensor) -> Tensor:
                z, a, *gradients = structure.unpack(x)
                state = torch.maximum(forward.norm(z), forward.norm(a))
                return torch.maximum(state, max_rms_norm(gradients)) if gradients else state
        else:

            def norm(x: Tensor) -> Tensor:
                return own(structure.unpack(x))

        packed_norm: Norm = norm
        return replace(
            forward,
            method=method,
            rtol=forward.rtol if self.rtol is None else self.rtol,
            atol=forward.atol if self.atol is None else self.atol,
            step_size=forward.step_size if self.step_size is None and self.method is None else self.step_size,
            norm=packed_norm,
            first_step=None,
        )


def augmented_dynamics(f: Dynamics, params: tuple[Tensor, ...], structure: TupleState) -> Dynamics:
    """The right-hand side of Algorithm 1: `d/dt [z, a, ∂L/∂θ] = [f, -aᵀ ∂f/∂z, -aᵀ ∂f/∂θ]`."""

    def augmented(t: Tensor, state: Tensor) -> Tensor:
        z, a, *_ = structure.unpack(state)
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            slope = f(t, z)
            inputs = (z, *params)
            products: tuple[Tensor | None, ...]
            if slope.requires_grad:
                products = torch.autograd.grad(slope, inputs, -a, allow_unused=True)
            else:  # f depends on neither the state nor the parameters
                products = (None,) * len(inputs)
        rates = [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, products, strict=True)]
        return structure.pack((slope.detach(), *rates))

    return augmented


class _Backsolve(torch.autograd.Function):
    """Forward: a solve that autograd does not see. Backward: one solve of the augmented system per interval."""

    @staticmethod
    def forward(
        ctx: Any,
        f: Dynamics,
        scheme: Scheme,
        options: Backsolve,
        stats: Statistics,
        y0: Tensor,
        t: Tensor,
        *params: Tensor,
    ) -> Tensor:
        with torch.no_grad():
            y = integrate(f, y0, t, scheme, stats).y
        ctx.f, ctx.scheme, ctx.options, ctx.stats = f, scheme, options, stats
        kind = y0.device.type
        ctx.autocast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        ctx.save_for_backward(y, t, *params)
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise InvalidArgumentError(
                "create_graph=True: backsolve does not give second derivatives; use gradient='direct' for them"
            )
        y, t, *params = ctx.saved_tensors
        f: Dynamics = ctx.f
        wanted = ctx.needs_input_grad[6:]
        active = tuple(p for p, needed in zip(params, wanted, strict=True) if needed)
        structure = TupleState((y[0].shape, y[0].shape, *(p.shape for p in active)))
        kind, dtype, enabled = ctx.autocast
        with torch.autocast(kind, dtype, enabled):  # f has to be the function that it was in the forward pass
            return _Backsolve._solve_back(ctx, f, y, t, active, structure, grad_y)

    @staticmethod
    def _solve_back(
        ctx: Any,
        f: Dynamics,
        y: Tensor,
        t: Tensor,
        active: tuple[Tensor, ...],
        structure: TupleState,
        grad_y: Tensor,
    ) -> tuple[Tensor | None, ...]:
        augmented = augmented_dynamics(f, active, structure)
        scheme = ctx.options.scheme(ctx.scheme, structure)
        stats = ctx.stats.backward = Statistics()

        a = torch.zeros_like(y[0])
        gradients = tuple(torch.zeros_like(p) for p in active)
        grad_t: list[Tensor] = []
        for i in range(len(t) - 1, 0, -1):
            # The adjoint jumps by ∂L/∂z(t_i) at every observation (figure 2 of the paper).
            a = a + grad_y[i]
            if ctx.needs_input_grad[5]:
                grad_t.append(_time_gradient(f, t[i], y[i], grad_y[i], stats))
            state = structure.pack((y[i], a, *gradients))
            path = integrate(augmented, state, t[[i, i - 1]], scheme, stats)
            _, a, *rest = structure.unpack(path.y[1])
            gradients = tuple(rest)
            if path.next_step:
                scheme = replace(scheme, first_step=abs(path.next_step))
        if ctx.needs_input_grad[5]:
            # ∂L/∂t0 = -a(t0)ᵀ f(z(t0), t0). Algorithm 2 reaches the same number by integrating -aᵀ ∂f/∂t.
            grad_t.append(_time_gradient(f, t[0], y[0], -a, stats))
        a = a + grad_y[0]

        found = iter(g.to(p.dtype) for g, p in zip(gradients, active, strict=True))
        return (
            *(None,) * 4,
            a if ctx.needs_input_grad[4] else None,
            torch.stack(grad_t[::-1]) if grad_t else None,
            *(next(found) if needed else None for needed in ctx.needs_input_grad[6:]),
        )


def _time_gradient(f: Dynamics, t: Tensor, z: Tensor, a: Tensor, stats: Statistics) -> Tensor:
    """`aᵀ f(z, t)`, the gradient of a time (appendix C of the paper), as a float64 tensor of shape ()."""
    with torch.no_grad():
        slope = f(t.to(z.device, z.abs().dtype), z)
        stats.nfe += 1
        return torch.sum(a * slope).to(t.device, t.dtype)
