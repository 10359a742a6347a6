"""One step of any explicit Runge-Kutta method, from its tableau."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from neural_ode.methods.base import Carry, Method, Step
from neural_ode.methods.tableaus.butcher import ButcherTableau
from neural_ode.problem.state import Dynamics, real_dtype

__all__ = ["ExplicitRungeKutta"]


class ExplicitRungeKutta(Method):
    """Steps of the method that a tableau describes. Has no state: everything goes in and out as tensors."""

    has_history = False
    supports_rows = supports_compile = supports_quadrature = supports_reversal = True

    def __init__(self, tableau: ButcherTableau):
        self.tableau = tableau
        self.name = tableau.name
        self.order = tableau.order
        self.adaptive = tableau.b_error is not None
        self.has_dense_output = tableau.dense is not None
        self._a = [_terms(row) for row in tableau.a]
        self._b = _terms(tableau.b)
        self._c = _floats(tableau.c)
        self._nodes: dict[tuple[torch.dtype, torch.device], Tensor] = {}
        self._b_error = None if tableau.b_error is None else _terms(tableau.b_error)
        self.largest_weight = max(1.0, *(abs(w) for row in (*self._a, self._b) for _, w in row))
        self._dense = (
            None
            if tableau.dense is None
            else torch.tensor([_floats(_folded(row)) for row in tableau.dense], dtype=torch.float64)
        )
        self._fsal = tableau.fsal

    def step(self, f: Dynamics, t: Tensor, y: Tensor, h: Tensor | float, carry: Carry) -> Step:
        """`y + h Σ b_i k_i` (HNW I, equation II.1.8); see `Method.step`."""
        assert carry is None or isinstance(carry, Tensor)
        stages, y1 = self._stages(f, t, y, h, carry, self.tableau.stages)
        if not self._fsal:
            y1 = _advance(y, h, self._b, stages)
        return Step(
            y1=y1,
            error=None if self._b_error is None else self._error(h, stages),
            dense=tuple(stages),
            carry=stages[-1] if self._fsal else None,
            nfe=self.tableau.stages - (carry is not None),
        )

    def increment(
        self, f: Dynamics, t: Tensor, y: Tensor, h: Tensor | float, with_error: bool
    ) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        """`h Σ b_i k_i`, the error where it is wanted and there is an estimate, and the slopes of the stages."""
        with_error = with_error and self.adaptive
        # The last stage of a method with FSAL is for the error only.
        count = self.tableau.stages - int(self._fsal and not with_error)
        stages, _ = self._stages(f, t, y, h, None, count)
        if isinstance(h, Tensor):
            increment = _combination(self._b, stages, 1.0) * h
        else:
            increment = _combination(self._b, stages, h)
        return increment, self._error(h, stages) if with_error else None, stages

    def _stages(
        self, f: Dynamics, t: Tensor, y: Tensor, h: Tensor | float, slope: Tensor | None, count: int
    ) -> tuple[list[Tensor], Tensor]:
        """The slopes of the first `count` stages, and the state of the last of them."""
        c = self._nodes_like(t)
        times = t + c * h if t.dim() == 0 else t + c[:, None] * torch.as_tensor(h).reshape(-1)
        nodes = times.to(real_dtype(y)).unbind()  # as the dynamics see them, all at once
        stages, state = [f(t, y) if slope is None else slope], y
        for node, row in zip(nodes[1:count], self._a[1:count], strict=True):
            state = _advance(y, h, row, stages)
            stages.append(f(node, state))
        return stages, state

    def _nodes_like(self, t: Tensor) -> Tensor:
        """The nodes where `t` is. They are kept: to bring them to a GPU is to wait for it. In a graph they are a
        constant."""
        if torch.compiler.is_compiling():
            return torch.tensor(self._c, dtype=t.dtype, device=t.device)
        where = t.dtype, t.device
        if where not in self._nodes:
            with torch.inference_mode(False):  # others may want gradients
                made = torch.tensor(self._c, dtype=t.dtype, device=t.device)
            if isinstance(made, FakeTensor):  # of a mode that ends
                return made
            self._nodes[where] = made
        return self._nodes[where]

    def _error(self, h: Tensor | float, stages: list[Tensor]) -> Tensor:
        assert self._b_error is not None
        if isinstance(h, Tensor):
            return _combination(self._b_error, stages, 1.0) * h
        return _combination(self._b_error, stages, h)

    def interpolate(self, y: Tensor, dense: tuple[Any, ...], h: Tensor | float, theta: Tensor) -> Tensor:
        """`y + h Σ_i b_i(θ) k_i`."""
        weights = (h * self.dense_weights(theta)).to(y.dtype)
        increments: Tensor = torch.tensordot(weights, torch.stack(dense), dims=1)
        return y + increments

    def interpolate_rows(
        self, y: Tensor, dense: tuple[Tensor, ...], h: Tensor, theta: Tensor, rows: Tensor
    ) -> Tensor:
        """The continuous extension where every row of a batch has its own step.

        Args:
            y: the states at the start of the steps, shape (batch, *state).
            dense: slopes of the steps, each of that shape.
            h: lengths, shape (batch,).
            theta: where in the steps, shape (m,).
            rows: of which rows, shape (m,).

        Returns:
            The states there, shape (m, *state).
        """
        weights = (h[rows, None] * self.dense_weights(theta)).to(y.dtype).T
        slopes = torch.stack(dense)[:, rows]
        return y[rows] + (slopes * weights.reshape(*weights.shape, *[1] * (y.dim() - 1))).sum(0)

    def dense_weights(self, theta: Tensor) -> Tensor:
        """`b_i(θ)` of the continuous extension, shape (m, stages), for `theta` of shape (m,)."""
        if self._dense is None:
            raise ValueError(f"{self.name} has no continuous extension")
        coefficients = self._dense.to(theta)
        # θ, s, θs, s², … by products: the second derivative of a power is NaN where its base is zero.
        basis = [theta, theta * (1 - theta)]
        while len(basis) < coefficients.shape[1]:
            basis.append(basis[-2] * basis[1])
        return torch.stack(basis[: coefficients.shape[1]], dim=1) @ coefficients.T


def _floats(row: Sequence[object]) -> list[float]:
    return [float(x) for x in row]  # type: ignore[arg-type]


def _folded(row: Sequence[Fraction]) -> list[Fraction]:
    """Coefficients of θ, θ², θ³, … as those of θ, s, θs, s², θs², … with `s = θ (1-θ)`.

    Powers of θ nearly cancel where the degree is high: in float32 they cost `dopri8` two digits. Powers of `s` are
    small, and vanish at the end of the step.
    """
    rest, folded = list(row), [Fraction(0)] * len(row)
    for n in range(len(row), 0, -1):
        k = n // 2
        folded[n - 1] = (-1) ** k * rest[n - 1]
        for j in range(k + 1):  # θ^(n-2k) s^k = Σ_j C(k, j) (-1)^j θ^(n-k+j)
            rest[n - k + j - 1] -= folded[n - 1] * math.comb(k, j) * (-1) ** j
    return folded


Terms = list[tuple[int, float]]
"""Which stages a sum has, with their weights."""


def _terms(row: Sequence[object]) -> Terms:
    """The weights that are not zero."""
    return [(i, w) for i, w in enumerate(_floats(row)) if w]


def _advance(y: Tensor, h: Tensor | float, weights: Terms, stages: list[Tensor]) -> Tensor:
    """`y + h Σ w_i k_i`; the sum first, so that it is rounded at its own, smaller, size."""
    if isinstance(h, Tensor):
        return torch.addcmul(y, _combination(weights, stages, 1.0), h)
    return y + _combination(weights, stages, h)


def _combination(weights: Terms, stages: list[Tensor], h: float) -> Tensor:
    """`h Σ w_i k_i` without the terms whose weight is zero."""
    first, weight = weights[0]
    total = stages[first] * (weight * h)
    for i, w in weights[1:]:
        total = torch.add(total, stages[i], alpha=w * h)
    return total
