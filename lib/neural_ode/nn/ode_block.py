"""A layer whose output is the solution of an ordinary differential equation."""

from typing import Any

from torch import Tensor, nn

from neural_ode.solution import Statistics
from neural_ode.solve import solve

__all__ = ["OdeBlock"]


class OdeBlock(nn.Module):
    """`z(t1) = ODESolve(z(t0), f, t0, t1, θ)`; Chen et al. (2018), section 2.

    Args:
        f: the dynamics, a module called as `f(t, z)`.
        span: `(t0, t1)`.
        **how: keyword arguments of `neural_ode.solve`: method, tolerances, gradient.

    Attributes:
        stats: what the last forward pass cost and, once it has run, its backward pass.
        how: may be changed between calls, for instance to evaluate at another tolerance.
    """

    def __init__(self, f: nn.Module, span: tuple[float, float] = (0.0, 1.0), **how: Any):
        super().__init__()
        self.f = f
        self.span = span
        self.how = how
        self.stats = Statistics()

    def forward(self, z: Tensor) -> Tensor:
        """The state at `t1`, in the shape of `z`, the state at `t0`."""
        solution = solve(self.f, z, self.span, **self.how)
        self.stats = solution.stats
        assert isinstance(solution.y, Tensor)
        return solution.y[-1]

    def extra_repr(self) -> str:
        """What `repr` shows of it."""
        return f"span={self.span}, " + ", ".join(f"{k}={v!r}" for k, v in self.how.items())
