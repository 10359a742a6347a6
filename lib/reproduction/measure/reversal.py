"""Whether a continuous flow finds its way back (section 6)."""

from typing import Any

import torch
from torch import Tensor

from neural_ode.nn import ContinuousFlow

__all__ = ["base_points", "reversal_error", "solved"]


class solved:  # noqa: N801 (used like a function)
    """The flow solved in another way for the time of a block."""

    def __init__(self, flow: ContinuousFlow, **how: Any):
        self.flow, self.how, self.before = flow, how, flow.how

    def __enter__(self) -> None:
        self.flow.how = {**self.before, **self.how}

    def __exit__(self, *_: object) -> None:
        self.flow.how = self.before


def base_points() -> Tensor:
    """The points of the base distribution that flows carry to the data and back, shape (256, 2)."""
    return torch.randn(256, 2, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def reversal_error(flow: ContinuousFlow, z: Tensor, tolerance: float) -> float:
    """`‖z0 - ẑ0‖ / ‖z0‖`, with `ẑ0` from solving from base to data and back.

    Args:
        flow: in the dtype of `z`.
        z: points of the base distribution, shape (n, dim).
        tolerance: of both solves.
    """
    with solved(flow, rtol=tolerance, atol=tolerance, compile=False):
        there = flow.transport(z).z[-1]
        back = flow.transport(there, flow.span[::-1]).z[-1]
    return float((back - z).norm() / z.norm())
