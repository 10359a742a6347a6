"""How long the next step is: error control and the first step.

Hairer, Nørsett & Wanner I, section II.4 (cited as HNW).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from neural_ode.errors import InvalidArgumentError, finite_number
from neural_ode.state import Dynamics, Norm

__all__ = ["IntegralController", "error_ratio", "initial_step"]


@dataclass(frozen=True)
class IntegralController:
    """The elementary controller `h ← h · clip(safety · err^(-1/q))` (HNW, equation II.4.13).

    `err` is the norm of the local error over its tolerance; a step is accepted where `err ≤ 1`.

    Attributes:
        safety: keeps the next step a little below the one expected to just pass.
        ifactor: the most a step may grow.
        dfactor: the most it may shrink; an accepted step never shrinks.
    """

    safety: float = 0.9
    ifactor: float = 10.0
    dfactor: float = 0.2

    def __post_init__(self) -> None:
        for name in ("safety", "ifactor", "dfactor"):
            object.__setattr__(self, name, finite_number(name, getattr(self, name)))
        if not 0 < self.safety <= 1:
            raise InvalidArgumentError(f"safety must lie in (0, 1], got {self.safety!r}")
        if not 0 < self.dfactor < 1 <= self.ifactor:
            raise InvalidArgumentError(
                f"dfactor must lie in (0, 1) and ifactor be at least 1, got {self.dfactor!r} and {self.ifactor!r}"
            )

    def factor(self, err: float, order: int) -> float:
        """By how much to multiply the step, given the error ratio `err` of a method of `order`."""
        if not math.isfinite(err):
            return self.dfactor
        if err == 0:
            return self.ifactor
        lowest = 1.0 if err <= 1 else self.dfactor
        return min(self.ifactor, max(lowest, self.safety * math.pow(err, -1 / order)))


def error_ratio(error: Tensor, y0: Tensor, y1: Tensor, rtol: float, atol: float, norm: Norm) -> float:
    """The local error over `atol + rtol · max(|y0|, |y1|)`, in the given norm (HNW, equation II.4.11)."""
    with torch.no_grad():
        return float(norm(error / _scale(torch.maximum(y0.abs(), y1.abs()), rtol, atol)))


def _scale(size: Tensor, rtol: float, atol: float) -> Tensor:
    """The tolerated error; never zero, so that an error of zero is always within it."""
    return (size * rtol).add_(atol).clamp_min_(torch.finfo(size.dtype).tiny)


def initial_step(
    f: Dynamics,
    t0: float,
    y0: Tensor,
    f0: Tensor,
    span: float,
    order: int,
    rtol: float,
    atol: float,
    norm: Norm,
) -> float:
    """A first step from the sizes of y, y' and a difference quotient for y'' (HNW, section II.4).

    Args:
        f: the dynamics; evaluated once.
        t0: where the solve starts.
        y0: the state there.
        f0: `f(t0, y0)`.
        span: `t1 - t0`, negative for a solve in reverse time; the step has its sign and is not longer.
        order: order of the method.
        rtol: relative tolerance.
        atol: absolute tolerance.
        norm: the norm of the error control.
    """
    with torch.no_grad():
        scale = _scale(y0.abs(), rtol, atol)
        size_y = norm(y0 / scale).item()
        size_f = norm(f0 / scale).item()
        comparable = 1e-5 <= size_y < math.inf and 1e-5 <= size_f < math.inf
        h = 0.01 * size_y / size_f if comparable else 1e-6
        h = min(h, abs(span))
        direction = math.copysign(1.0, span)
        t = torch.tensor(t0 + direction * h, dtype=y0.abs().dtype, device=y0.device)
        f1 = f(t, torch.add(y0, f0, alpha=direction * h))
        curvature = norm((f1 - f0) / scale).item() / h
    largest = max(size_f, curvature)
    if not math.isfinite(largest):
        return direction * h  # too far already: let the error control shorten it
    refined = max(1e-6, 1e-3 * h) if largest <= 1e-15 else (0.01 / largest) ** (1 / order)
    return direction * min(100 * h, refined, abs(span))
