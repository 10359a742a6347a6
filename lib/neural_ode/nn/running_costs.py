"""Costs that are integrated along the path of a solve, by the same solve: what regularises a neural ODE.

    dz/dt = f(t, z),    dc/dt = r(t, z),    c(t0) = 0

Of all dynamics that lead to the same place, those with a small cost are easier to solve. Each of the costs here is
the square of something that vanishes where paths are simple:

* `kinetic_energy`: the speed (Finlay et al. 2020, *How to train your neural ODE*, section 3);
* `jacobian_norm`: how the speed changes from point to point (ibid.);
* `total_derivative(order)`: a derivative of the path in time; that of order K + 1 decides how long steps of order K
  can be (Kelly et al. 2020, *Learning differential equations that are easy to solve*, section 3).

Any other function of `OnPath` will do as well. `RegularizedBlock` and `RegularizedFlow` are an `OdeBlock` and a
`ContinuousFlow` with costs; `WithRunningCosts` is for models of one's own.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from neural_ode.errors import InvalidArgumentError, SolverError
from neural_ode.nn.base_distribution import check_points, positive
from neural_ode.nn.continuous_flow import ContinuousFlow, Transported, WithLogDensity
from neural_ode.nn.forward_mode import jvp
from neural_ode.nn.ode_block import OdeBlock
from neural_ode.problem.event import Event
from neural_ode.solution import Solution
from neural_ode.solve import solve

__all__ = [
    "OnPath",
    "RegularizedBlock",
    "RegularizedFlow",
    "RunningCost",
    "WithRunningCosts",
    "jacobian_norm",
    "kinetic_energy",
    "total_derivative",
]


FREE = 1e30
"""A tolerance that every error keeps."""

DEFAULTS = {name: inspect.signature(solve).parameters[name].default for name in ("rtol", "atol")}


class OnPath(NamedTuple):
    """Where a cost is asked for.

    Attributes:
        f: the dynamics of `z`, called as `f(t, z)`; rows do not depend on each other.
        t: the time, shape ().
        z: the states, shape (n, ...).
        slope: `f(t, z)`, shape (n, ...).
        noise: standard normal numbers, shape (n, ...), the same ones during a solve, so that the solver sees
            a smooth function.
    """

    f: Callable[[Tensor, Tensor], Tensor]
    t: Tensor
    z: Tensor
    slope: Tensor
    noise: Tensor


RunningCost: TypeAlias = Callable[[OnPath], Tensor]
"""What is integrated: a number for each row, shape (n,)."""


def kinetic_energy(at: OnPath) -> Tensor:
    """`‖f(t, z)‖²`, shape (n,). Its integral is at least the squared distance of the ends over the time."""
    return _squared_norm(at.slope)


def jacobian_norm(at: OnPath) -> Tensor:
    """`‖εᵀ ∂f/∂z‖²`, shape (n,), whose mean over the noise `ε` is the squared Frobenius norm `‖∂f/∂z‖²_F`.

    Costs one vector-Jacobian product.

    Raises:
        SolverError: hooks on saved tensors are active, as in `torch.utils.checkpoint`, which
            `torch.func.vjp` cannot do with.
    """
    try:
        pull: Any = torch.func.vjp(lambda z: at.f(at.t, z), at.z)[1]
    except RuntimeError as error:
        if "saved tensor hooks" not in str(error):
            raise
        raise SolverError(
            "jacobian_norm cannot be computed under hooks on saved tensors, such as those of "
            'torch.utils.checkpoint: solve with gradient="recursive_checkpoint" instead'
        ) from error
    return _squared_norm(pull(at.noise)[0])


def total_derivative(order: int) -> RunningCost:
    """The cost `‖d^K z/dt^K‖²` of order K = 1, 2, ...: that of K = 1 is `kinetic_energy`.

    Along a path `d/dt = ∂/∂t + f · ∂/∂z`, one Jacobian-vector product. K - 1 of them are nested, so the work
    doubles with each order.

    Raises:
        InvalidArgumentError: `order` is no whole number of at least 1.
    """
    return partial(_squared_derivative, positive("order", order))


def _squared_derivative(order: int, at: OnPath) -> Tensor:
    derivative = at.f
    for _ in range(order - 1):
        derivative = _along_the_path(derivative, at.f)
    return _squared_norm(derivative(at.t, at.z) if order > 1 else at.slope)


def _along_the_path(
    g: Callable[[Tensor, Tensor], Tensor], f: Callable[[Tensor, Tensor], Tensor]
) -> Callable[[Tensor, Tensor], Tensor]:
    """`dg(t, z(t))/dt` where `dz/dt = f(t, z)`."""
    return lambda t, z: jvp(g, (t, z), (torch.ones_like(t), f(t, z)))[1]


def _squared_norm(x: Tensor) -> Tensor:
    return x[..., None].flatten(1).square().sum(1)  # a state may be a number


class WithRunningCosts(nn.Module):
    """The dynamics of a state and of its costs, which come last: `(z, c)`, or `(z, ..., c)`.

    Costs are rougher than states: if the error control looked at them, a solve would take several times as many
    steps. The method `solve` spares that.

    Args:
        dynamics: of the state, as `solve` takes them.
        costs: what is integrated. Modules among them are trained with the dynamics.
        noise: see `OnPath`.
        f: the dynamics of `z` alone, where the state is a tuple that begins with it.

    Raises:
        InvalidArgumentError: there is no cost, or something among them is none.
    """

    noise: Tensor

    def __init__(
        self, dynamics: nn.Module, costs: Sequence[RunningCost], noise: Tensor, f: nn.Module | None = None
    ):
        super().__init__()
        self.dynamics = dynamics
        self.costs = _checked(costs)
        self.trained = nn.ModuleList(cost for cost in self.costs if isinstance(cost, nn.Module))
        self.f = dynamics if f is None else f
        self.register_buffer("noise", noise, persistent=False)

    def forward(self, t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Shapes: `t` (), of `z` and its slope (n, ...), of the costs (n, number of costs).

        Raises:
            InvalidArgumentError: a cost is no tensor of shape (n,).
        """
        z, *others, _ = state
        found = self.dynamics(t, (z, *others)) if others else (self.dynamics(t, z),)
        at = OnPath(self.f, t, z, found[0], self.noise)
        costs = [cost(at) for cost in self.costs]
        for cost, value in zip(self.costs, costs, strict=True):
            if not isinstance(value, Tensor) or value.shape != z.shape[:1]:
                shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise InvalidArgumentError(
                    f"the cost {_name(cost)} must be a number for each row, shape ({len(z)},), got {shape}"
                )
        return *found, torch.stack(costs, 1)

    def solve(self, state: tuple[Tensor, ...], t: Sequence[float] | Tensor, **how: Any) -> Solution:
        """`neural_ode.solve` from a state without costs, whose steps are those of a solve without costs.

        Args:
            state: at `t[0]`: `(z,)`, or `(z, ...)`.
            t: times.
            **how: further arguments of `neural_ode.solve`, for the state without costs. (Callbacks see the costs
                too, and so do an adjoint solve with tolerances of its own and SciPy's solvers.)

        Returns:
            A solution whose `y` ends in the costs, shape (times, n, number of costs). They are integrated over
            `|dt|`, so that they do not depend on the direction of the solve.

        Raises:
            InvalidArgumentError: `z` is complex.
        """
        z = state[0]
        if z.is_complex():
            raise InvalidArgumentError("running costs are for real states: put torch.view_as_real(z) in its place")
        alone = len(state) == 1
        start = (*state, z.new_zeros(len(z), len(self.costs)))
        for name in ("rtol", "atol"):
            how[name] = (*_for_each(how.get(name, DEFAULTS[name]), len(state)), FREE)
        if how.get("norm") is not None:
            how["norm"] = partial(_without_costs, how["norm"], alone)
        if how.get("event") is not None:
            event = Event.of(how["event"])
            how["event"] = replace(event, function=partial(_event_without_costs, event.function, alone))
        solution = solve(self, start, t, **how)
        *states, costs = solution.y
        first, last = torch.as_tensor(t).flatten()[[0, -1]]
        return replace(solution, y=(*states, costs if last >= first else -costs))

    def extra_repr(self) -> str:
        """What `repr` shows of it."""
        return f"costs=({', '.join(map(_name, self.costs))})"


def _for_each(tolerance: Any, parts: int) -> list[Any]:
    """A tolerance for each part of a state, which may be one for all of them."""
    several = isinstance(tolerance, list | tuple) or (isinstance(tolerance, Tensor) and tolerance.dim() == 1)
    if parts > 1:
        return list(tolerance) if several else [tolerance] * parts
    return [torch.tensor(tolerance, dtype=torch.float64) if isinstance(tolerance, list | tuple) else tolerance]


def _without_costs(norm: Callable[[Any], Tensor], alone: bool, state: tuple[Tensor, ...]) -> Tensor:
    return norm(state[0] if alone else state[:-1])


def _event_without_costs(
    function: Callable[[Tensor, Any], Tensor], alone: bool, t: Tensor, state: tuple[Tensor, ...]
) -> Tensor:
    return function(t, state[0] if alone else state[:-1])


class _HasCosts(nn.Module):
    """What blocks and flows with costs have in common: costs by name, those of the last solve in training mode."""

    def set_costs(self, costs: Mapping[str, RunningCost]) -> None:
        """Take the costs over, modules among them as parts.

        Raises:
            InvalidArgumentError: they are no costs by name, or there is none.
        """
        if not isinstance(costs, Mapping):
            raise InvalidArgumentError(f"costs must be functions by name, such as {EXAMPLE}, got {costs!r}")
        _checked(list(costs.values()))
        self.integrands = dict(costs)
        self.trained = nn.ModuleList(cost for cost in costs.values() if isinstance(cost, nn.Module))
        self.costs: dict[str, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "costs": {}}  # those of a solve hang on its graph

    def keep(self, costs: Tensor) -> None:
        """Remember the last of the costs, shape (times, n, number of costs), by name."""
        self.costs = dict(zip(self.integrands, costs[-1].unbind(1), strict=True))


class RegularizedBlock(OdeBlock, _HasCosts):
    """An `OdeBlock` whose paths have costs.

    In training mode they are computed with the state, and can be added to the loss:
    `loss + 0.1 * block.costs["kinetic energy"].mean()`. In eval mode the block is an `OdeBlock`.

    Args:
        f: the dynamics, a module called as `f(t, z)`; rows must not depend on each other.
        costs: by a name of your choice. Modules among them are trained too.
        span: `(t0, t1)`.
        **how: keyword arguments of `neural_ode.solve`, whose error control does not look at the costs.

    Attributes:
        costs: of the last forward pass, by name, shape (n,); none in eval mode.
        stats, how: see `OdeBlock`.

    Raises:
        InvalidArgumentError: there is no cost, or something among them is none.
    """

    def __init__(
        self, f: nn.Module, costs: Mapping[str, RunningCost], span: tuple[float, float] = (0.0, 1.0), **how: Any
    ):
        super().__init__(f, span, **how)
        self.set_costs(costs)

    def forward(self, z: Tensor) -> Tensor:
        """The state at `t1`, in the shape of `z`, the state at `t0`."""
        if not self.training:
            self.costs = {}
            return super().forward(z)
        dynamics = WithRunningCosts(self.f, list(self.integrands.values()), torch.randn_like(z))
        solution = dynamics.solve((z,), self.span, **self.how)
        self.stats = solution.stats
        states, costs = solution.y
        self.keep(costs)
        end: Tensor = states[-1]
        return end


class RegularizedFlow(ContinuousFlow, _HasCosts):
    """A `ContinuousFlow` whose paths have costs.

    In training mode `log_prob`, `push_forward` and `transport` find them; in eval mode it is a `ContinuousFlow`.

    Args:
        f: the dynamics; see `WithLogDensity`.
        dim: of `z`.
        costs: by a name of your choice. Modules among them are trained too.
        span, trace: see `ContinuousFlow`.
        **how: keyword arguments of `neural_ode.solve`, whose error control does not look at the costs.

    Attributes:
        costs: of the last solve, by name, shape (n,); none in eval mode.
        stats, how: see `ContinuousFlow`.

    Raises:
        InvalidArgumentError: there is no cost; and see `ContinuousFlow`.
    """

    def __init__(
        self,
        f: nn.Module,
        dim: int,
        costs: Mapping[str, RunningCost],
        span: tuple[float, float] = (0.0, 1.0),
        trace: str = "exact",
        **how: Any,
    ):
        super().__init__(f, dim, span, trace, **how)
        self.set_costs(costs)

    def transport(
        self, z: Tensor, t: Sequence[float] | Tensor | None = None, generator: torch.Generator | None = None
    ) -> Transported:
        """As `ContinuousFlow.transport`; in training mode with the costs."""
        if not self.training:
            self.costs = {}
            return super().transport(z, t, generator)
        check_points("z", z, self.dim)
        density = WithLogDensity(self.f, self.trace, self._noise(z, generator))
        noise = torch.randn(z.shape, dtype=z.dtype, device=z.device, generator=generator)
        dynamics = WithRunningCosts(density, list(self.integrands.values()), noise, self.f)
        solution = dynamics.solve((z, z.new_zeros(len(z))), self.span if t is None else t, **self.how)
        self.stats = solution.stats
        states, change, costs = solution.y
        self.keep(costs)
        return Transported(states, change, solution.stats)


EXAMPLE = '{"energy": kinetic_energy}'


def _checked(costs: Sequence[RunningCost]) -> tuple[RunningCost, ...]:
    if not costs:
        raise InvalidArgumentError(f"costs must name one cost or more, such as {EXAMPLE}")
    for cost in costs:
        if getattr(cost, "__name__", "") == total_derivative.__name__:
            raise InvalidArgumentError("total_derivative makes a cost of an order: total_derivative(2)")
        if not callable(cost):
            raise InvalidArgumentError(f"a cost must be a function of OnPath, got {cost!r}")
    return tuple(costs)


def _name(cost: RunningCost) -> str:
    if isinstance(cost, partial):
        return f"{cost.func.__name__}{cost.args}"
    return getattr(cost, "__qualname__", type(cost).__name__)
