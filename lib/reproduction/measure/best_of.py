"""What one gets who trains several models and keeps the best one."""

import math
from collections.abc import Sequence

from neural_ode.errors import InvalidArgumentError
from reproduction.measure.fits import CONFIDENCE, Interval

__all__ = ["best_of"]


def best_of(validation: Sequence[float], test: Sequence[float], size: int) -> Interval:
    """The test error of the model with the lowest validation error among `size`, taken at random from those given.

    The distribution is exact: in order of validation errors, the k-th of n models is the best of a group in
    `C(n - k, size - 1)` of all `C(n, size)` groups.

    Args:
        validation, test: errors of each model.
        size: of a group.

    Returns:
        Median of the distribution, with what holds 95 % of it; `None` for the ends where all models are one group.

    Raises:
        InvalidArgumentError: there are fewer models than a group has.
    """
    n = len(validation)
    if not 0 < size <= n == len(test):
        raise InvalidArgumentError(f"groups of {size} need as many models, got {n} and {len(test)}")
    order = sorted(range(n), key=validation.__getitem__)
    chances = {k: math.comb(n - 1 - place, size - 1) / math.comb(n, size) for place, k in enumerate(order)}
    by_test = sorted((test[k], chance) for k, chance in chances.items() if chance)

    def quantile(share: float) -> float:
        total = 0.0
        for value, chance in by_test:
            total += chance
            if total >= share - 1e-12:
                return value
        return by_test[-1][0]

    outside = (1 - CONFIDENCE) / 2
    low, high = (quantile(outside), quantile(1 - outside)) if n > size else (None, None)
    return Interval(quantile(0.5), low, high, n, f"best of {size}")
