"""The adjoint equation as a system that the solvers can solve."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from neural_ode.methods.tableaus.butcher import ButcherTableau
from neural_ode.problem.augmented import AdjointEquation
from neural_ode.problem.callbacks import Callbacks
from neural_ode.problem.dependence import GraphKeeping
from neural_ode.problem.state import Dynamics

__all__ = ["AdjointSystem", "AugmentedSystem", "Quadrature"]


class AugmentedSystem(AdjointEquation):
    """The augmented system for the loops in Python, which find the products by autograd.

    Attributes:
        f: the dynamics.
        quadrature: integrates `∂L/∂θ` instead, which then is no part of the system; `None` if it is one. Needed
            where every row of a batch has steps of its own, because `∂L/∂θ` belongs to no row.
    """

    def __init__(
        self,
        f: Dynamics,
        y: Tensor,
        params: Sequence[Tensor],
        quadrature: "Quadrature | None" = None,
        batched: bool = False,
    ):
        super().__init__(y, () if quadrature is not None else params, int(batched))
        self.f, self.quadrature = f, quadrature
        self.watch = None if quadrature is None else quadrature.evaluated
        self.graphs = GraphKeeping()

    def products(self, t: Tensor, z: Tensor, vector: Tensor) -> tuple[Tensor, list[Tensor]]:
        """By autograd, whose graph of `f` may be kept for a quadrature; see `AdjointEquation.products`."""
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            z = z if again and z.requires_grad else z.detach().requires_grad_()
            slope = self.f(t, z)
            found = self.graphs.gradients([slope], (z, *self.params), [vector], create_graph=again)
        return slope, found

    def tolerance(self, value: float | Tensor) -> float | Tensor:
        """A tolerance for each entry of the state holds for the adjoint too, and its least for the parameters."""
        if not isinstance(value, Tensor):
            return value
        size, own = sum(self.sizes), self.sizes[0]
        if value.shape == (size,) and size != own:
            return value
        entries = value.expand(self.leading + self.shapes[0]).reshape(*self.leading, own)
        least = value.amin().expand(*self.leading, size - self.states * own)
        return torch.cat([*(entries,) * self.states, least], dim=-1)

    def callbacks(self, calls: Callbacks) -> Callbacks:
        """Functions of `(0, z, a, ∂L/∂θ, …)` as functions of the packed state."""
        if calls == Callbacks():
            return calls

        def packed(call: Callable[..., object] | None) -> Callable[[Tensor, Tensor, Tensor], object] | None:
            if call is None:
                return None
            return lambda t, state, h: call(t, (state.new_zeros(()), *self.unpack(state)), h)

        return Callbacks(packed(calls.step), packed(calls.accept), packed(calls.reject))


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

    def states_at(self, t: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """`z` from the trajectory, and the part `a`."""
        return self.trajectory(t.item()), self.adjoint(state)


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
