"""Backpropagation through the steps of the solver.

Exact for the discrete solve, and keeps what every evaluation of the dynamics saves: memory O(NFE). This is the
gradient of the paper's RK-Net (Chen et al. 2018, section 3).
"""

from dataclasses import dataclass

from torch import Tensor

from neural_ode.integrate import Scheme, integrate
from neural_ode.solution import Statistics
from neural_ode.state import Dynamics

__all__ = ["Direct"]


@dataclass(frozen=True)
class Direct:
    """`gradient="direct"`: autograd records the solver's operations."""

    def __call__(
        self,
        f: Dynamics,
        y0: Tensor,
        t: Tensor,
        scheme: Scheme,
        stats: Statistics,
        params: tuple[Tensor, ...],
    ) -> Tensor:
        return integrate(f, y0, t, scheme, stats).y
