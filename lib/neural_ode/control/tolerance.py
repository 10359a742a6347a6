"""What error a step may have: Hairer, Nørsett & Wanner I, section II.4 (cited as HNW)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from neural_ode.problem.norms import Norm

__all__ = ["Tolerance"]


@dataclass(frozen=True)
class Tolerance:
    """What error a step may have: `atol + rtol · |y|`, measured in a norm (HNW, equation II.4.11).

    Attributes:
        rtol, atol: relative and absolute tolerance; a tensor has one for each entry of the state, or broadcasts.
        norm: maps errors over their tolerances to one number; at most 1 is within tolerance.
    """

    rtol: float | Tensor
    atol: float | Tensor
    norm: Norm

    def scale(self, size: Tensor) -> Tensor:
        """The tolerated error of entries of this absolute size.

        Never zero, so that an error of zero is always within it.
        """
        return (size * self.rtol + self.atol).to(size.dtype).clamp_min_(torch.finfo(size.dtype).tiny)

    def ratio(self, error: Tensor, y0: Tensor, y1: Tensor) -> float:
        """The size of an error over the tolerance for the larger of `|y0|` and `|y1|`."""
        with torch.no_grad():
            return abs(float(self.norm(error / self.scale(torch.maximum(y0.abs(), y1.abs())))))
