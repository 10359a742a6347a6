"""Continuous normalizing flows over any dynamics.

Theorem 1 of Chen et al. (2018), instantaneous change of variables: along `dz/dt = f(z, t)`,
`d log p(z(t))/dt = -tr(∂f/∂z)`. So the log-density is one more coordinate of the state of an ODE.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from neural_ode.errors import InvalidArgumentError, UnknownNameError
from neural_ode.nn.base_distribution import check_points, draw_base, positive, standard_normal
from neural_ode.nn.forward_mode import jvp
from neural_ode.solution import Statistics
from neural_ode.solve import solve

__all__ = ["TRACES", "Carried", "ContinuousFlow", "Transported", "WithLogDensity"]

Carried = tuple[Tensor, Tensor]
"""The state `(z, log p)`, shapes (n, dim) and (n,)."""

TRACES = ("exact", "autograd", "gaussian", "rademacher")
"""Ways to get the trace; see `ContinuousFlow`."""


class Transported(NamedTuple):
    """Points on their way.

    Attributes:
        z: their positions at the times asked for, shape (times, n, dim).
        change: by how much the log-density has changed since the first time, shape (times, n), in nats.
        stats: what the solve cost.
    """

    z: Tensor
    change: Tensor
    stats: Statistics


class Traced(Protocol):
    """Dynamics that offer their trace in closed form."""

    def with_trace(self, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """The slope and `tr ∂f/∂z`, shapes (n, dim) and (n,), at `z` of shape (n, dim) and `t` of shape ()."""
        ...


class WithLogDensity(nn.Module):
    """The dynamics of `(z, log p)`: `d(z, log p)/dt = (f, -tr ∂f/∂z)`; equation 8 of the paper.

    Args:
        f: the dynamics of `z`, called as `f(t, z)` with `t` of shape () and `z` of shape (n, dim); rows must not
            depend on each other. Where it has a method `with_trace(t, z)`, that gives the slope and the trace, of
            shape (n,), in closed form.
        trace: see `ContinuousFlow`.
        noise: of the estimators, shape (n, dim).
    """

    noise: Tensor | None

    def __init__(self, f: nn.Module, trace: str = "exact", noise: Tensor | None = None):
        super().__init__()
        self.f = f
        self.analytic = trace == "exact" and hasattr(f, "with_trace")
        self.register_buffer("noise", noise, persistent=False)

    def forward(self, t: Tensor, state: Carried) -> Carried:
        """Shapes as in `Carried`."""
        z, _ = state
        if self.analytic:
            slope, trace = cast(Traced, self.f).with_trace(t, z)
        elif self.noise is not None:
            slope, trace = hutchinson_trace(self.f, t, z, self.noise)
        else:
            slope, trace = autograd_trace(self.f, t, z)
        return slope, -trace

    def extra_repr(self) -> str:
        """What `repr` shows of it."""
        return f"analytic={self.analytic}, noise={self.noise is not None}"


def autograd_trace(f: Callable[[Tensor, Tensor], Tensor], t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """The slope and `tr ∂f/∂z` by one Jacobian-vector product for each dimension; shapes (n, dim) and (n,)."""
    unit = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
    pushed = [jvp(lambda z: f(t, z), (z,), (row.expand_as(z),)) for row in unit]
    return pushed[0][0], torch.stack([tangent[:, i] for i, (_, tangent) in enumerate(pushed)]).sum(0)


def hutchinson_trace(
    f: Callable[[Tensor, Tensor], Tensor], t: Tensor, z: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """The slope and `εᵀ (∂f/∂z) ε`, whose mean over `ε` with identity covariance is the trace (Hutchinson 1989).

    Args:
        f: the dynamics.
        t: shape ().
        z: shape (n, dim).
        noise: `ε`, shape (n, dim).

    Returns:
        Shapes (n, dim) and (n,).
    """
    slope, tangent = jvp(lambda z: f(t, z), (z,), (noise,))
    return slope, (tangent * noise).sum(1)


class ContinuousFlow(nn.Module):
    """A density made by carrying the standard normal distribution along `dz/dt = f(z, t)`.

    Args:
        f: the dynamics; see `WithLogDensity`.
        dim: of `z`.
        span: `(t0, t1)`: the base distribution is that at `t0`, the flow's that at `t1`.
        trace: `"exact"`: in closed form where `f` offers it, by autograd otherwise; `"autograd"`: always by
            autograd, `dim` Jacobian-vector products an evaluation; `"gaussian"`, `"rademacher"`: Hutchinson's
            unbiased estimator with one such product, with normal noise or signs. The noise stays the same during a
            solve, so that the solver sees a smooth function (Grathwohl et al. 2019).
        **how: keyword arguments of `neural_ode.solve`: method, tolerances, gradient, compile.

    Attributes:
        stats: what the last solve cost.
        how: may be changed between calls.

    Raises:
        InvalidArgumentError: `dim` is no positive number, or `span` not two different ones.
        UnknownNameError: there is no such `trace`.
    """

    def __init__(
        self, f: nn.Module, dim: int, span: tuple[float, float] = (0.0, 1.0), trace: str = "exact", **how: Any
    ):
        super().__init__()
        if trace not in TRACES:
            raise UnknownNameError("trace", trace, TRACES)
        if len(span) != 2 or span[0] == span[1]:
            raise InvalidArgumentError(f"span must be two different times (t0, t1), got {span!r}")
        self.f, self.dim, self.span, self.trace, self.how = f, positive("dim", dim), span, trace, how
        self.stats = Statistics()

    def transport(
        self, z: Tensor, t: Sequence[float] | Tensor | None = None, generator: torch.Generator | None = None
    ) -> Transported:
        """Carry points, with their log-density, from one time to others.

        Args:
            z: points at the time `t[0]`, shape (n, dim).
            t: times, ascending or descending; from `t0` to `t1` if left out.
            generator: of the noise of Hutchinson's estimator.
        """
        check_points("z", z, self.dim)
        dynamics = WithLogDensity(self.f, self.trace, self._noise(z, generator))
        solution = solve(dynamics, (z, z.new_zeros(len(z))), self.span if t is None else t, **self.how)
        self.stats = solution.stats
        states, change = solution.y
        return Transported(states, change, solution.stats)

    def log_prob(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Log-density at `x`, shape (n, dim), in nats; shape (n,). Solves from `t1` back to `t0`.

        Args:
            x: points at `t1`.
            generator: of the noise of Hutchinson's estimator, with which the result is an unbiased estimate.
        """
        z, change, _ = self.transport(x, self.span[::-1], generator)
        return standard_normal(z[-1]) - change[-1]

    def push_forward(self, z: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Where points `z` of the base distribution, shape (n, dim), go, and the log-density there.

        Returns:
            Shapes (n, dim) and (n,).
        """
        x, change, _ = self.transport(z, generator=generator)
        return x[-1], standard_normal(z) + change[-1]

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """`n` points of the flow's distribution, shape (n, dim), in the dtype of the parameters.

        Solves for `z` alone: sampling needs no trace.

        Raises:
            InvalidArgumentError: `n` is no whole number of at least one.
        """
        like = next(self.parameters(), torch.zeros(()))
        solution = solve(self.f, draw_base(n, like, self.dim, generator), self.span, **self.how)
        self.stats = solution.stats
        assert isinstance(solution.y, Tensor)
        return solution.y[-1]

    def _noise(self, z: Tensor, generator: torch.Generator | None) -> Tensor | None:
        if self.trace not in ("gaussian", "rademacher"):
            return None
        noise = torch.randn(z.shape, dtype=z.dtype, device=z.device, generator=generator)
        return noise if self.trace == "gaussian" else torch.where(noise < 0, -1.0, 1.0).to(z)

    def extra_repr(self) -> str:
        """What `repr` shows of it."""
        how = "".join(f", {k}={v!r}" for k, v in self.how.items())
        return f"dim={self.dim}, span={self.span}, trace={self.trace!r}{how}"
