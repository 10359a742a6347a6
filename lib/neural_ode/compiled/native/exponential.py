"""The exponential function and its like, in C++ that compilers turn into vectors, unlike calls of the C library.

`exp x = 2ⁿ exp r` with `n` the whole number nearest to `x / ln 2`, so that `|r| ≤ ln 2 / 2` (Muller, *Elementary
Functions*, section 11.1): `exp r - 1` is a Taylor polynomial, and `2ⁿ` is made of bits. `n ln 2` is subtracted in
two parts, the first of which has zeros at its end (Cody & Waite 1980). Errors are at most two units in the last
place, of tanh three.
"""

import math

__all__ = ["EXPONENTIAL"]


def _taylor(terms: int) -> str:
    """`(exp r - 1)` by Horner's rule."""
    text = f"(T){1 / math.factorial(terms)!r}"
    for k in range(terms - 1, 0, -1):
        text = f"({text} * r + (T){1 / math.factorial(k)!r})"
    return f"r * {text}"


EXPONENTIAL = f"""
#include <cstring>
template <typename T> struct Format;
template <> struct Format<double> {{
  using Bits = uint64_t;
  static constexpr int digits = 52, bias = 1023;
  // To add `big` and take it away again rounds to whole numbers, which the last bits of the sum are, too.
  static constexpr double big = 0x1.8p52, least = -750, most = 720;
  static constexpr double high = 0x1.62e42fee00000p-1, low = 0x1.a39ef35793c76p-33;
  static inline double less_one(double r) {{ using T = double; return {_taylor(13)}; }}
}};
template <> struct Format<float> {{
  using Bits = uint32_t;
  static constexpr int digits = 23, bias = 127;
  static constexpr float big = 0x1.8p23f, least = -110, most = 92;
  static constexpr float high = 0x1.63p-1f, low = -0x1.bd0106p-13f;
  static inline float less_one(float r) {{ using T = float; return {_taylor(7)}; }}
}};
template <typename T> static inline typename Format<T>::Bits bits(T x) {{
  typename Format<T>::Bits found;
  std::memcpy(&found, &x, sizeof x);
  return found;
}}
template <typename T> static inline T two_to(typename Format<T>::Bits n) {{
  const typename Format<T>::Bits made = (n + Format<T>::bias) << Format<T>::digits;
  T found;
  std::memcpy(&found, &made, sizeof found);
  return found;
}}
// exp(x) - less. 2 to the n in two factors: for the largest and smallest results it is no number of the format.
template <typename T, bool less> static inline T exponential(T x) {{
  using F = Format<T>;
  x = x < F::least ? F::least : x;
  x = x > F::most ? F::most : x;
  const T sum = x * (T)1.4426950408889634 + F::big, n = sum - F::big;
  const T rest = F::less_one((x - n * F::high) - n * F::low);
  const T half = n * (T)0.5 + F::big;
  const typename F::Bits first = bits(half) - bits(F::big), second = bits(sum) - bits(F::big) - first;
  const T a = two_to<T>(first), b = two_to<T>(second);
  return (rest * a + (less ? a - two_to<T>(-second) : a)) * b;
}}
template <typename T> static inline T hyperbolic_tangent(T x) {{
  const T size = std::abs(x), e = exponential<T, true>(size > 20 ? (T)40 : size + size);
  return std::copysign(e / (e + 2), x);
}}
"""
"""Templates: `exponential<T, less>` for `exp(x) - less`, and `hyperbolic_tangent<T>`."""
