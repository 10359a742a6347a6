"""One step of any explicit Runge-Kutta method, from its tableau."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from neural_ode.state import Dynamics
from neural_ode.tableaus import ButcherTableau

__all__ = ["ExplicitRungeKutta", "Step"]


class Step(NamedTuple):
    """What one step produces.

    Attributes:
        y1: the state after the step.
        error: estimate of the local error, or `None` where the method has none.
        stages: the slopes `k_i`; the dense output is made of them.
        carry: `f(t + h, y1)` where the method has it for free (FSAL), else `None`.
        nfe: evaluations of `f` that the step cost.
    """

    y1: Tensor
    error: Tensor | None
    stages: tuple[Tensor, ...]
    carry: Tensor | None
    nfe: int


class ExplicitRungeKutta:
    """Steps of the method that a tableau describes. Has no state: everything goes in and out as tensors."""

    def __init__(self, tableau: ButcherTableau):
        self.tableau = tableau
        self._a = [_floats(row) for row in tableau.a]
        self._b = _floats(tableau.b)
        self._c = _floats(tableau.c)
        self._b_error = None if tableau.b_error is None else _floats(tableau.b_error)
        self._dense = None if tableau.dense is None else [_floats(row) for row in tableau.dense]

    def __repr__(self) -> str:
        return f"ExplicitRungeKutta({self.tableau.name!r})"

    @property
    def name(self) -> str:
        return self.tableau.name

    @property
    def order(self) -> int:
        return self.tableau.order

    @property
    def adaptive(self) -> bool:
        """Whether a step comes with an error estimate."""
        return self.tableau.b_error is not None

    @property
    def has_dense_output(self) -> bool:
        return self.tableau.dense is not None

    def step(self, f: Dynamics, t: Tensor, y: Tensor, h: Tensor | float, carry: Tensor | None) -> Step:
        """Advance `y` from `t` by `h`.

        Args:
            f: the dynamics.
            t: the time, shape () and differentiable where gradients with respect to the times are wanted.
            y: the state, any shape.
            h: the step, negative in reverse time. A number makes the fewest operations and saves nothing for
                the backward pass; a tensor of shape () is differentiated through.
            carry: `f(t, y)` if known.
        """
        nodes = (t + h * torch.tensor(self._c, dtype=t.dtype, device=t.device)).unbind()
        stages = [f(t, y) if carry is None else carry]
        for node, row in zip(nodes[1:], self._a[1:], strict=True):
            y1 = y + _weighted_sum(h, row, stages)
            stages.append(f(node, y1))
        if not self.tableau.fsal:
            y1 = y + _weighted_sum(h, self._b, stages)
        return Step(
            y1=y1,
            error=None if self._b_error is None else _weighted_sum(h, self._b_error, stages),
            stages=tuple(stages),
            carry=stages[-1] if self.tableau.fsal else None,
            nfe=self.tableau.stages - (carry is not None),
        )

    def interpolate(self, y: Tensor, stages: tuple[Tensor, ...], h: Tensor | float, theta: Tensor) -> Tensor:
        """The continuous extension `y + h Σ_i b_i(θ) k_i`.

        Args:
            y: the state at the start of the step.
            stages: the slopes of the step.
            h: its length.
            theta: where in the step, 0 to 1, shape (m,), in the real dtype of `y`.

        Returns:
            Tensor of shape (m, *y.shape).
        """
        if self._dense is None:
            raise ValueError(f"{self.name} has no continuous extension")
        coefficients = torch.tensor(self._dense, dtype=theta.dtype, device=theta.device)
        powers = theta[:, None] ** torch.arange(1, coefficients.shape[1] + 1, device=theta.device)
        weights = (h * (powers @ coefficients.T)).to(y.dtype)
        increments: Tensor = torch.tensordot(weights, torch.stack(stages), dims=1)
        return y + increments


def _floats(row: Sequence[object]) -> list[float]:
    return [float(x) for x in row]  # type: ignore[arg-type]


def _weighted_sum(h: Tensor | float, weights: list[float], stages: list[Tensor]) -> Tensor:
    """`h Σ w_i k_i` without the terms whose weight is zero.

    Summed before it is added to the state, so that it is rounded at its own, smaller, size.
    """
    terms = [(w, k) for w, k in zip(weights, stages, strict=False) if w]
    (first, slope), *rest = terms
    if isinstance(h, Tensor):
        total = slope * first
        for w, k in rest:
            total = torch.add(total, k, alpha=w)
        return total * h
    total = slope * (first * h)
    for w, k in rest:
        total = torch.add(total, k, alpha=w * h)
    return total
