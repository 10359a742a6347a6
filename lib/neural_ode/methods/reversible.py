"""Explicit Runge-Kutta methods made reversible.

McCallum & Foster (2024), *Efficient, accurate and stable gradients for neural ODEs* (arXiv 2410.11648): with
`Ψ_h(t, x)` the increment that a method adds to `x` in a step `h`, a companion `z` comes along, `z_0 = y_0`, and

    y_{n+1} = λ y_n + (1 - λ) z_n + Ψ_h(t_n, z_n)
    z_{n+1} = z_n - Ψ_{-h}(t_{n+1}, y_{n+1}).

Both lines can be solved for what they start from, so that a step can be undone without equations:

    z_n = z_{n+1} + Ψ_{-h}(t_{n+1}, y_{n+1})
    y_n = (y_{n+1} - (1 - λ) z_n - Ψ_h(t_n, z_n)) / λ.

The order is that of the method, the cost twice its evaluations.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from neural_ode.methods.base import Carry, Method, Step
from neural_ode.methods.runge_kutta import ExplicitRungeKutta
from neural_ode.problem.state import Dynamics

__all__ = ["Companion", "ReversibleRungeKutta"]


class Companion(NamedTuple):
    """The second state `z`, shaped like the first."""

    z: Tensor


class ReversibleRungeKutta(Method):
    """The reversible form of a method. Has states at the ends of its steps only, and no dense output.

    Attributes:
        base: the method.
        coupling: λ, in (0, 1].
    """

    has_dense_output = False

    def __init__(self, base: ExplicitRungeKutta, coupling: float):
        self.base, self.coupling = base, coupling
        self.name = f"reversible {base.name}"
        self.order = base.order
        self.adaptive = base.adaptive
        self.largest_weight = base.largest_weight

    def begin(self, slope: Tensor) -> None:
        """Nothing: the companion starts as the state."""
        return None

    def step(self, f: Dynamics, t: Tensor, y: Tensor, h: Tensor | float, carry: Carry) -> Step:
        """Both lines of the scheme above, with the error of the first; see `Method.step`."""
        assert carry is None or isinstance(carry, Companion)
        z = y if carry is None else carry.z
        increment, error, forth = self.base.increment(f, t, z, h, with_error=True)
        y1 = self.coupling * y + (1 - self.coupling) * z + increment
        decrement, _, back = self.base.increment(f, t + h, y1, -h, with_error=False)
        return Step(
            y1=y1,
            error=error,
            dense=(forth[0], y1, back[0]),
            carry=Companion(z - decrement),
            nfe=len(forth) + len(back),
        )

    def undo(
        self, f: Dynamics, t: Tensor, y1: Tensor, h: Tensor | float, carry: Companion
    ) -> tuple[Tensor, Companion, int]:
        """What a step from `t` started from, given where it ended: state, companion, and the evaluations spent."""
        decrement, _, back = self.base.increment(f, t + h, y1, -h, with_error=False)
        z = carry.z + decrement
        increment, _, forth = self.base.increment(f, t, z, h, with_error=False)
        y = (y1 - (1 - self.coupling) * z - increment) / self.coupling
        return y, Companion(z), len(forth) + len(back)

    def interpolate(self, y: Tensor, dense: tuple[Any, ...], h: Tensor | float, theta: Tensor) -> Tensor:
        """The tangent at the end of the step: how the state there moves with its time."""
        _, y1, slope = dense
        return torch.stack([y1 + (x - 1) * h * slope for x in theta])
