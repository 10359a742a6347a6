"""How long the first step is: Hairer, Nørsett & Wanner I, section II.4 (cited as HNW)."""

import torch
from torch import Tensor

from neural_ode.control.tolerance import Tolerance
from neural_ode.problem.state import Dynamics, column

__all__ = ["initial_step"]


def initial_step(
    f: Dynamics, t0: Tensor, y0: Tensor, f0: Tensor, span: Tensor, order: int, tolerance: Tolerance
) -> Tensor:
    """A first step from the sizes of y, y' and a difference quotient for y'' (HNW, section II.4).

    Args:
        f: the dynamics; evaluated once.
        t0: where the solve starts, float64, shape (), or (batch,) with a step for each row.
        y0: the state there.
        f0: `f(t0, y0)`.
        span: how far there is to go, of the shape of `t0`, negative in reverse time; the step has its sign and is
            not longer.
        order: order of the method.
        tolerance: of the error control; its norm returns the shape of `t0`.

    Returns:
        The step, of the dtype and shape of `span`.
    """
    with torch.no_grad():
        scale = tolerance.scale(y0.abs())

        def size(x: Tensor) -> Tensor:
            return torch.as_tensor(tolerance.norm(x / scale)).abs().to(span)

        size_y, size_f = size(y0), size(f0)
        longest = span.abs()
        comparable = (size_y >= 1e-5) & (size_f >= 1e-5) & size_y.isfinite() & size_f.isfinite()
        h = torch.minimum(torch.where(comparable, 0.01 * size_y / size_f, 1e-6), longest)
        forward = torch.copysign(h, span)
        f1 = f(t0 + forward, torch.addcmul(y0, f0, column(forward.to(scale.dtype), y0)))
        largest = torch.maximum(size_f, size(f1 - f0) / h)
        cautious = (1e-3 * h).clamp_min(1e-6)
        refined = torch.where(largest <= 1e-15, cautious, (0.01 / largest) ** (1 / order))
        # Not finite, it is too far already: let the error control shorten it.
        h = torch.where(largest.isfinite(), torch.minimum(100 * h, refined), h)
        return torch.copysign(torch.minimum(h, longest), span)
