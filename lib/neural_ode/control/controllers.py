"""How long the next step is, from the errors of those before.

Hairer, Nørsett & Wanner I, section II.4 (cited as HNW).
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from neural_ode.control.arithmetic import Array, Number, namespace
from neural_ode.errors import InvalidArgumentError, finite_number

__all__ = ["IntegralController", "PIDController", "factor_for_rows", "integral_factor"]

_TINY = sys.float_info.min
"""An error ratio whose powers are finite, instead of zero."""

_FLOOR = 1e-10
"""The least error ratio that `PIDController` sees; one of zero would say that the step may be of any length."""


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

    def factor(self, err: Number, order: int, earlier: Sequence[Number] = ()) -> Number:
        """By how much to multiply the step.

        Args:
            err: error ratio of the step just made; in an array of NumPy, those of many.
            order: the error is proportional to this power of the step.
            earlier: error ratios of the steps before, the last one first; infinite if it was rejected.
        """
        return integral_factor(err, order, self.safety, self.ifactor, self.dfactor)


def integral_factor(err: Number, order: int, safety: Any, ifactor: Any, dfactor: Any) -> Number:
    """The formula of `IntegralController`; for tensors its attributes are tensors too."""
    xp = namespace(err)
    wanted = safety * xp.where(err > _TINY, err, _TINY) ** (-1 / order)
    factor: Number = xp.minimum(ifactor, xp.maximum(xp.where(err <= 1, 1.0, dfactor), wanted))
    factor = xp.where(xp.isfinite(err), factor, dfactor)
    return factor


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
    kP: float = 0.4  # noqa: N815 (the same)
    kD: float = 0.0  # noqa: N815 (the same)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("kI", "kP", "kD"):
            object.__setattr__(self, name, finite_number(name, getattr(self, name)))
        if not self.kI > 0:
            raise InvalidArgumentError(f"kI must be positive, or the error is not controlled; got {self.kI!r}")

    def factor(self, err: Number, order: int, earlier: Sequence[Number] = ()) -> Number:
        """The product above, within the limits; see `IntegralController.factor`."""
        xp = namespace(err)
        product = _trend(err) ** (-(self.kI + self.kP + self.kD) / order)
        for e, gain in zip(earlier, (self.kP + 2 * self.kD, -self.kD), strict=False):
            product = product * _trend(xp.where(e > 0, e, 1.0)) ** (gain / order)
        most = xp.where(earlier[0] <= 1, self.ifactor, 1.0) if earlier else self.ifactor
        factor: Number = xp.minimum(most, xp.maximum(self.dfactor, self.safety * product))
        # After a step that did not pass the error alone decides.
        factor = xp.where(err <= 1, factor, super().factor(err, order))
        return factor


def _trend(err: Number) -> Number:
    """An error ratio as far as it says where the errors go: 1 if the step did not pass."""
    xp = namespace(err)
    trend: Number = xp.where(err <= 1, xp.where(err > _FLOOR, err, _FLOOR), 1.0)
    return trend


def factor_for_rows(controller: IntegralController) -> Callable[[Array, int, Sequence[Array]], Array]:
    """The controller's `factor` for arrays; one of the user's, which knows numbers, is asked row by row."""
    if type(controller).factor in (IntegralController.factor, PIDController.factor):
        return controller.factor

    def factor(err: Array, order: int, earlier: Sequence[Array]) -> Array:
        columns = zip(*(e.tolist() for e in (err, *earlier)), strict=True)
        return np.array([controller.factor(e, order, tuple(past)) for e, *past in columns], dtype=np.float64)

    return factor
