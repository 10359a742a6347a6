"""How long the next step is: error control and the first step.

Hairer, Nørsett & Wanner I, section II.4 (cited as HNW).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neural_ode.errors import InvalidArgumentError, finite_number
from neural_ode.problem.state import Dynamics, Norm

__all__ = ["IntegralController", "PIDController", "Tolerance", "column", "initial_step"]

Array = NDArray[Any]


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

    def factor(self, err: float, order: int, earlier: Sequence[float] = ()) -> float:
        """By how much to multiply the step.

        Args:
            err: error ratio of the step just made.
            order: the error is proportional to this power of the step.
            earlier: error ratios of the steps before, the last one first; infinite if it was rejected.
        """
        if not math.isfinite(err):
            return self.dfactor
        if err == 0:
            return self.ifactor
        lowest = 1.0 if err <= 1 else self.dfactor
        return min(self.ifactor, max(lowest, self.safety * math.pow(err, -1 / order)))

    def factors(self, err: Array, order: int, earlier: Sequence[Array] = ()) -> Array:
        """`factor` for many error ratios at once."""
        with np.errstate(all="ignore"):
            factor = np.minimum(np.maximum(self.safety * err ** (-1 / order), self.dfactor), self.ifactor)
            return np.where(err <= 1, np.maximum(factor, 1.0), np.where(np.isfinite(err), factor, self.dfactor))


@dataclass(frozen=True)
class PIDController(IntegralController):
    """Step control that looks at up to three error ratios (Söderlind 2003, *Digital filters in adaptive
    time-stepping*, equation 31).

    With `ε_n = 1 / err_n` and `q` the order, the step is multiplied by

        safety · ε_n^((kI + kP + kD)/q) · ε_{n-1}^(-(kP + 2 kD)/q) · ε_{n-2}^(kD/q).

    The default is the PI controller PI.3.4 of Gustafsson (HNW II, section IV.2), which is smoother than the
    integral one where stability limits the step. An accepted step may shrink; one after a rejection does not grow.

    Attributes:
        kI, kP, kD: integral, proportional and derivative gain.
    """

    kI: float = 0.3  # noqa: N815 (as in the literature)
    kP: float = 0.4  # noqa: N815
    kD: float = 0.0  # noqa: N815

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("kI", "kP", "kD"):
            object.__setattr__(self, name, finite_number(name, getattr(self, name)))
        if not self.kI > 0:
            raise InvalidArgumentError(f"kI must be positive, or the error is not controlled; got {self.kI!r}")

    def factor(self, err: float, order: int, earlier: Sequence[float] = ()) -> float:
        if not math.isfinite(err):
            return self.dfactor
        rejected_before = bool(earlier) and not earlier[0] <= 1
        past = [1.0 if not 0 < e <= 1 else e for e in (*earlier, 1.0, 1.0)[:2]]
        gains = (self.kI + self.kP + self.kD, -(self.kP + 2 * self.kD), self.kD)
        if err > 1:  # a rejected step: the error alone decides
            return min(1.0, max(self.dfactor, self.safety * math.pow(err, -1 / order)))
        floor = 1e-10  # an error of zero says: as long as allowed
        product = math.prod(
            math.pow(max(e, floor), -gain / order) for e, gain in zip((err, *past), gains, strict=True)
        )
        return min(1.0 if rejected_before else self.ifactor, max(self.dfactor, self.safety * product))

    def factors(self, err: Array, order: int, earlier: Sequence[Array] = ()) -> Array:
        columns = zip(*(e.tolist() for e in (err, *earlier)), strict=True)
        return np.array([self.factor(e, order, past) for e, *past in columns])


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


def column(x: Tensor, y: Tensor) -> Tensor:
    """A number for each row of `y`, shaped to be multiplied with it; a single one as it is."""
    return x if x.dim() == 0 else x.reshape(-1, *[1] * (y.dim() - 1))
