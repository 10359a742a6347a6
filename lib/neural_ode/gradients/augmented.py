"""The adjoint equation as a system that the solvers can solve."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from neural_ode.methods.tableaus.butcher import ButcherTableau
from neural_ode.problem.dependence import GraphKeeping
from neural_ode.problem.state import Dynamics, TupleState

__all__ = ["AdjointSystem", "AugmentedSystem", "Quadrature"]


class AugmentedSystem:
    """The system of Algorithm 1, `[z, a, ∂L/∂θ]`, packed into one vector of the state's dtype.

    Where every row of a batch has steps of its own, a vector for each row; `∂L/∂θ` belongs to no row, so it needs
    a quadrature.

    Attributes:
        states: how many of its parts are shaped like the state.
        quadrature: integrates `∂L/∂θ` instead, which then is no part of the system; `None` if it is one.
    """

    states = 2

    def __init__(
        self,
        f: Dynamics,
        y: Tensor,
        params: Sequence[Tensor],
        quadrature: "Quadrature | None" = None,
        batched: bool = False,
    ):
        self.f, self.dtype, self.quadrature = f, y.dtype, quadrature
        self.graphs = GraphKeeping()
        self.leading = y.shape[: int(batched)]
        self.params = () if quadrature is not None else tuple(params)
        # A complex gradient beside a real state is kept as pairs of real numbers.
        self.as_pairs = [p.is_complex() and not y.is_complex() for p in self.params]
        shapes = [torch.Size((*p.shape, 2)) if pairs else p.shape for p, pairs in self._pairs()]
        self.layout = TupleState((*(y.shape[int(batched) :],) * self.states, *shapes), int(batched))

    def _pairs(self) -> list[tuple[Tensor, bool]]:
        return list(zip(self.params, self.as_pairs, strict=True))

    def pack(self, z: Tensor, a: Tensor, gradients: Sequence[Tensor]) -> Tensor:
        stored = [torch.view_as_real(g) if pairs else g for g, pairs in zip(gradients, self.as_pairs, strict=True)]
        return self.layout.pack([x.to(self.dtype) for x in (*(z, a)[-self.states :], *stored)])

    def unpack(self, state: Tensor) -> tuple[Tensor, ...]:
        return self.layout.unpack(state)

    def adjoint(self, state: Tensor) -> Tensor:
        """The part `a`."""
        return self.unpack(state)[self.states - 1]

    def gradients(self, state: Tensor) -> list[Tensor]:
        """The part `∂L/∂θ`, in the dtypes of the parameters."""
        found = []
        for g, (p, pairs) in zip(self.unpack(state)[self.states :], self._pairs(), strict=True):
            if pairs:
                g = torch.view_as_complex(g.contiguous())
            found.append((g.real if g.is_complex() and not p.is_complex() else g).to(p.dtype))
        return found

    def z(self, t: Tensor, state: Tensor) -> Tensor:
        """The state `z` at the time `t`."""
        return self.unpack(state)[0]

    def __call__(self, t: Tensor, state: Tensor) -> Tensor:
        """`d/dt [z, a, ∂L/∂θ] = [f, -aᵀ ∂f/∂z, -aᵀ ∂f/∂θ]`."""
        z, a = self.z(t, state), self.adjoint(state)
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            z = z if again and z.requires_grad else z.detach().requires_grad_()
            slope = self.f(t, z)
            products = self.graphs.gradients([slope], (z, *self.params), [-a], create_graph=again)
        rates = self.pack(slope, products[0], products[1:])
        if self.quadrature is not None:
            self.quadrature.evaluated(rates, slope, a)
        return rates

    def tolerance(self, value: float | Tensor) -> float | Tensor:
        """A tolerance for each entry of the state holds for the adjoint too, and its least for the parameters."""
        if not isinstance(value, Tensor):
            return value
        z_shape, *_ = self.layout.shapes
        size = sum(shape.numel() for shape in self.layout.shapes)
        if value.shape == (size,) and size != z_shape.numel():
            return value
        entries = value.expand(self.leading + z_shape).reshape(*self.leading, z_shape.numel())
        numbers = size - self.states * z_shape.numel()
        least = value.amin().expand(*self.leading, numbers)
        return torch.cat([*(entries,) * self.states, least], dim=-1)

    def callback(self, call: Callable[..., object] | None) -> Callable[[Tensor, Tensor, Tensor], object] | None:
        if call is None:
            return None
        return lambda t, state, h: call(t, (state.new_zeros(()), *self.unpack(state)), h)


class AdjointSystem(AugmentedSystem):
    """`[a, ∂L/∂θ]` along a known trajectory `z(t)`."""

    states = 1

    def __init__(
        self,
        f: Dynamics,
        y: Tensor,
        params: Sequence[Tensor],
        quadrature: "Quadrature | None",
        trajectory: Callable[[float], Tensor],
    ):
        super().__init__(f, y, params, quadrature)
        self.trajectory = trajectory

    def z(self, t: Tensor, state: Tensor) -> Tensor:
        return self.trajectory(t.item())


class Quadrature:
    """`∂L/∂θ` as what it is, an integral of `-aᵀ ∂f/∂θ` along the solution.

    A Runge-Kutta method adds `-h Σ b_i a_iᵀ ∂f/∂θ (t_i, z_i)` for a step, over its stages. This is done once a step
    is accepted, in one backward pass through the evaluations of `f` in all its stages, whose graphs are kept until
    then.

    Attributes:
        gradients: the integrals so far.
    """

    def __init__(self, params: Sequence[Tensor], tableau: ButcherTableau):
        self.params = tuple(params)
        self.graphs = GraphKeeping()
        self.weights = [float(b) for b in tableau.b]
        self.gradients = [torch.zeros_like(p) for p in params]
        # By the rates that an evaluation returned: gone when the step is that used them.
        self._evaluations: Any = WeakTensorKeyDictionary()

    def evaluated(self, rates: Tensor, slope: Tensor, a: Tensor) -> None:
        """Remember an evaluation of `f`, with its graph, and the adjoint there."""
        self._evaluations[rates] = slope, a

    def knows(self, rates: Tensor) -> bool:
        """Whether an evaluation returned `rates` itself, not numbers from several."""
        return rates in self._evaluations

    def add(self, h: float | Tensor, rates: Sequence[Tensor]) -> None:
        """Add the integral over an accepted step of length `h`, from what its evaluations returned.

        With steps for each row, `h` broadcasts to the state, and is zero for rows that do not move on.
        """
        stages = [(b, *self._evaluations[k]) for b, k in zip(self.weights, rates, strict=True) if b]
        along = [a * (-h * b) for b, _, a in stages]
        found = self.graphs.gradients([slope for _, slope, _ in stages], self.params, along)
        for total, gradient in zip(self.gradients, found, strict=True):
            total.add_(gradient)
