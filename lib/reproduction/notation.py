"""How numbers are written: significant digits, minus signs, powers of ten, intervals with equal decimals."""

import math

__all__ = ["typeset", "typeset_interval"]

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def typeset(x: float, digits: int = 3) -> str:
    """A number with so many significant digits; small and large ones with a power of ten."""
    if math.isinf(x):
        return "−∞" if x < 0 else "∞"
    if x and not 1e-3 <= abs(float(f"{x:.{digits - 1}e}")) < 1e5:
        mantissa, _, power = f"{x:.{digits - 1}e}".partition("e")
        return _power(f"{float(mantissa):g}", int(power))
    return f"{x:.{digits}g}".replace("-", "−") if abs(x) < 1000 else f"{x:.0f}".replace("-", "−")


def typeset_interval(estimate: float, low: float | None, high: float | None) -> str:
    """An estimate and its interval in brackets, with equal decimals: two digits of the interval's width.

    No more than four digits of the numbers are shown. Where the ends differ by a factor of ten and more, and where
    a number is not finite, each has its own digits.
    """
    if low is None or high is None or low == high:
        return typeset(estimate)
    numbers = (estimate, low, high)
    wide = low > 0 and high / low >= 10
    if wide or not all(map(math.isfinite, numbers)) or not 1e-4 < max(map(abs, numbers)) < 1e5:
        return f"{typeset(estimate)} [{typeset(low)}, {typeset(high)}]"
    largest = math.floor(math.log10(max(map(abs, numbers))))
    decimals = max(0, min(1 - math.floor(math.log10(high - low)), 3 - largest))
    first, *ends = (f"{x:.{decimals}f}".replace("-", "−") for x in numbers)
    return f"{first} [{', '.join(ends)}]"


def _power(mantissa: str, power: int) -> str:
    factor = {"1": "", "-1": "-"}.get(mantissa, f"{mantissa}·")
    return f"{factor.replace('-', '−')}10{str(power).translate(SUPERSCRIPTS)}"
