"""Operations on single entries, as expressions of C++."""

import math
import re
from collections.abc import Callable
from typing import Any

import torch

from neural_ode.compiled.native.exponential import EXPONENTIAL

__all__ = ["ARITHMETIC", "COMPARISONS", "FLOATING", "PRELUDE", "SLOW", "TYPES", "cast", "literal", "power"]

TYPES = {
    torch.float64: "double",
    torch.float32: "float",
    torch.int64: "int64_t",
    torch.int32: "int32_t",
    torch.bool: "bool",
}
"""The types of C++ for those of tensors that are translated."""

PRELUDE = (
    """
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <memory>
using Heap = std::unique_ptr<char, void (*)(void*)>;
// NaN wins, as in PyTorch.
template <typename T> static inline T largest(T a, T b) { return a != a ? a : (a > b ? a : b); }
template <typename T> static inline T smallest(T a, T b) { return a != a ? a : (a < b ? a : b); }
template <typename T> static inline T modulo(T a, T b) {
  const T rest = std::fmod(a, b);
  return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
}
static inline int64_t row(int64_t index, int64_t size, int64_t& failed) {
  if (index < 0) index += size;
  if (index >= 0 && index < size) return index;
  failed = 1;
  return 0;
}
"""
    + EXPONENTIAL
)

Formula = Callable[..., str]
"""From the type of the result and the operands to an expression."""


def cast(text: str, given: torch.dtype, wanted: torch.dtype) -> str:
    """A value in another type."""
    if given == wanted:
        return text
    return f"({text} != 0)" if wanted == torch.bool else f"({TYPES[wanted]})({text})"


def literal(value: float | bool, dtype: torch.dtype) -> str:
    """A number as C++ writes it."""
    if dtype == torch.bool:
        return "true" if value else "false"
    kind = TYPES[dtype]
    if not dtype.is_floating_point:
        return f"({kind}){int(value)}"
    if math.isnan(value):
        return f"std::numeric_limits<{kind}>::quiet_NaN()"
    if math.isinf(value):
        return f"({'-' if value < 0 else ''}std::numeric_limits<{kind}>::infinity())"
    return f"({kind}){float(value)!r}"


def _function(name: str) -> Formula:
    return lambda kind, a: f"std::{name}({a})"


def _add(kind: str, a: str, b: str, alpha: str = "") -> str:
    return f"{a} + {alpha} * {b}" if alpha else f"{a} + {b}"


def _sub(kind: str, a: str, b: str, alpha: str = "") -> str:
    return f"{a} - {alpha} * {b}" if alpha else f"{a} - {b}"


def _addcmul(kind: str, a: str, b: str, c: str, value: str = "") -> str:
    return f"{a} + {value} * ({b} * {c})" if value else f"{a} + {b} * {c}"


def _clamp(kind: str, a: str, low: str | None = None, high: str | None = None) -> str:
    if low is not None:
        a = f"({_at_least(kind, a, low)})"
    return a if high is None else _at_most(kind, a, high)


def _at_least(kind: str, a: str, low: str) -> str:
    return f"{a} < {low} ? {low} : {a}" if _NUMBER.fullmatch(low) else f"largest<{kind}>({a}, {low})"


def _at_most(kind: str, a: str, high: str) -> str:
    return f"{a} > {high} ? {high} : {a}" if _NUMBER.fullmatch(high) else f"smallest<{kind}>({a}, {high})"


_NUMBER = re.compile(r"\(\w+\)-?[\d.e+-]+")
"""A number as `literal` writes it, but NaN."""


def _copy(kind: str, a: str) -> str:
    return a


_OF_THE_LIBRARY = [
    *("acos", "acosh", "asin", "asinh", "atan", "atanh", "cos", "cosh", "sin", "sinh", "tan"),
    *("erf", "erfc", "exp2", "lgamma", "log", "log10", "log1p", "log2"),
]
_OF_THE_PROCESSOR = ["ceil", "floor", "sqrt", "trunc"]

ARITHMETIC: dict[str, Formula] = {
    **{f"aten::{name}": _function(name) for name in (*_OF_THE_LIBRARY, *_OF_THE_PROCESSOR)},
    "aten::exp": lambda kind, a: f"exponential<{kind}, false>({a})",
    "aten::expm1": lambda kind, a: f"exponential<{kind}, true>({a})",
    "aten::tanh": lambda kind, a: f"hyperbolic_tangent<{kind}>({a})",
    "aten::abs": _function("abs"),
    "aten::round": _function("nearbyint"),
    "aten::add": _add,
    "aten::sub": _sub,
    "aten::addcmul": _addcmul,
    "aten::clamp": _clamp,
    "aten::rsub": lambda kind, a, b, alpha="1": f"{b} - {alpha} * {a}",
    "aten::mul": lambda kind, a, b: f"{a} * {b}",
    "aten::div": lambda kind, a, b: f"{a} / {b}",
    "aten::neg": lambda kind, a: f"-({a})",
    "aten::reciprocal": lambda kind, a: f"({kind})1 / {a}",
    "aten::rsqrt": lambda kind, a: f"({kind})1 / std::sqrt({a})",
    "aten::sigmoid": lambda kind, a: f"({kind})1 / (({kind})1 + exponential<{kind}, false>(-({a})))",
    "aten::relu": lambda kind, a: f"{a} <= 0 ? ({kind})0 : {a}",
    "aten::sign": lambda kind, a: f"({kind})(({a} > 0) - ({a} < 0))",
    "aten::square": lambda kind, a: f"{a} * {a}",
    "aten::maximum": lambda kind, a, b: f"largest<{kind}>({a}, {b})",
    "aten::minimum": lambda kind, a, b: f"smallest<{kind}>({a}, {b})",
    "aten::clamp_min": _at_least,
    "aten::clamp_max": _at_most,
    "aten::pow": lambda kind, a, b: f"std::pow({a}, {b})",
    "aten::atan2": lambda kind, a, b: f"std::atan2({a}, {b})",
    "aten::copysign": lambda kind, a, b: f"std::copysign({a}, {b})",
    "aten::hypot": lambda kind, a, b: f"std::hypot({a}, {b})",
    "aten::fmod": lambda kind, a, b: f"std::fmod({a}, {b})",
    "aten::remainder": lambda kind, a, b: f"modulo<{kind}>({a}, {b})",
    "aten::where": lambda kind, condition, a, b: f"{condition} ? {a} : {b}",
    "aten::bitwise_and": lambda kind, a, b: f"{a} & {b}",
    "aten::bitwise_or": lambda kind, a, b: f"{a} | {b}",
    "aten::bitwise_xor": lambda kind, a, b: f"{a} ^ {b}",
    "aten::bitwise_not": lambda kind, a: f"!{a}" if kind == "bool" else f"~{a}",
    "prims::convert_element_type": _copy,
    "aten::_to_copy": _copy,
}
"""Operations whose operands are brought to the type of the result."""

FLOATING = {
    *(f"aten::{name}" for name in (*_OF_THE_LIBRARY, *_OF_THE_PROCESSOR)),
    *(f"aten::{name}" for name in ("exp", "expm1", "tanh")),
    *(f"aten::{name}" for name in ("round", "pow", "fmod", "remainder", "reciprocal", "copysign")),
}
"""Those that C++ would bring whole numbers to floating point for."""

SLOW = {f"aten::{name}" for name in (*_OF_THE_LIBRARY, "atan2", "fmod", "hypot", "remainder")}
"""Those that go from entry to entry, where PyTorch's compiler has vectors."""

COMPARISONS: dict[str, Formula] = {
    "aten::eq": lambda kind, a, b: f"{a} == {b}",
    "aten::ne": lambda kind, a, b: f"{a} != {b}",
    "aten::lt": lambda kind, a, b: f"{a} < {b}",
    "aten::le": lambda kind, a, b: f"{a} <= {b}",
    "aten::gt": lambda kind, a, b: f"{a} > {b}",
    "aten::ge": lambda kind, a, b: f"{a} >= {b}",
    "aten::isnan": lambda kind, a: f"{a} != {a}",
    "aten::isinf": lambda kind, a: f"std::isinf({a})",
    "aten::logical_and": lambda kind, a, b: f"({a} != 0) && ({b} != 0)",
    "aten::logical_or": lambda kind, a, b: f"({a} != 0) || ({b} != 0)",
    "aten::logical_not": lambda kind, a: f"!({a} != 0)",
}
"""Operations that give truth values and whose operands are brought to the type that they have in common."""


def power(kind: str, a: str, exponent: Any, dtype: torch.dtype) -> str:
    """A power whose exponent is known."""
    simple = {2: f"{a} * {a}", 1: a, 3: f"{a} * {a} * {a}", 0.5: f"std::sqrt({a})", -1: f"({kind})1 / {a}"}
    return simple.get(exponent) or f"std::pow({a}, {literal(exponent, dtype)})"
