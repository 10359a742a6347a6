"""How long the next step is, from the errors of those before.

Hairer, Nørsett & Wanner I, section II.4 (cited as HNW).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neural_ode.errors import InvalidArgumentError, finite_number

__all__ = ["IntegralController", "PIDController"]

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
