// Constant-time arithmetic on secret floats. Everything that touches a secret in a non-obvious way is here.
//
// No function below branches, indexes a table, divides, or calls libm: libm's exp and log look at their
// argument and take a slow path for some, and the time of a divide may depend on its operands. A choice
// between two values is a lane select on values that are already computed. Subnormals, whose arithmetic is
// slow on many processors, cannot occur: the caller has set flush-to-zero (denormals.h).

#pragma once

#include "host/simd.h"

namespace dhp::DHP_ISA {

constexpr float kInfinity = __builtin_inff();
constexpr float kLowest = -__FLT_MAX__;

// Lane by lane: condition (0 or -1) ? yes : no.
inline Vec ct_select(IntVec condition, Vec yes, Vec no) {
  return from_bits((bits(yes) & condition) | (bits(no) & ~condition));
}

// NaN in `value` is ignored here; it reaches the result through the exponential of the same score.
inline Vec ct_max(Vec value, Vec current) { return ct_select(ct_less(current, value), value, current); }

// e^x for x <= 0, within 1.2 units in the last place; 0 below -87.3; NaN stays NaN.
// x = n ln2 + r with |r| <= ln2 / 2; e^r by its Taylor series to r^7 / 7!, 2^n through the exponent bits.
inline Vec ct_exp(Vec x) {
  constexpr float kUnderflow = -87.3f;   // e^x is not a normal float below -87.33
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  const IntVec underflows = ct_less(x, splat(kUnderflow));
  const Vec clamped = ct_select(underflows, splat(kUnderflow), x);
  const Vec rounded = clamped * 1.44269504088896341f + kRound;
  const Vec n = rounded - kRound;
  const Vec r = (clamped - n * 0.693145751953125f) - n * 1.42860682030941723212e-6f;
  Vec p = splat(1.0f / 5040);
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const IntVec exponent = (bits(rounded) - bits(splat(kRound))) << 23;
  return ct_select(underflows, Vec{}, from_bits(bits(p) + exponent));
}

// 1 / x for a normal x > 0, within 2 units in the last place, exact for powers of 2; NaN stays NaN. The start
// value comes from negating the exponent (error 12 %); each Newton step squares the error.
inline Vec ct_reciprocal(Vec x) {
  Vec y = from_bits(splat_int(0x7EF311C7) - bits(x));
  for (int step = 0; step < 4; ++step) y = y + y * (1.0f - x * y);
  return y;
}

// ln x for a normal x >= 1, within 2 units in the last place of max(1, ln x); NaN stays NaN.
// x = 2^n m with m in [sqrt(1/2), sqrt(2)); ln m = 2 atanh(u), u = (m - 1) / (m + 1).
inline Vec ct_log(Vec x) {
  constexpr int32_t kSqrtHalf = 0x3F3504F3;
  const IntVec n = (bits(x) - kSqrtHalf) >> 23;
  const Vec m = from_bits(bits(x) - (n << 23));
  const Vec u = (m - 1.0f) * ct_reciprocal(m + 1.0f);
  const Vec u2 = u * u;
  Vec p = splat(2.0f / 11);
  p = p * u2 + 2.0f / 9;
  p = p * u2 + 2.0f / 7;
  p = p * u2 + 2.0f / 5;
  p = p * u2 + 2.0f / 3;
  p = p * u2 + 2.0f;
  const Vec log = p * u + to_float(n) * 0.693147180559945309f;
  return ct_select(ct_is_nan(x), x, log);  // the exponent arithmetic above loses a NaN
}

}  // namespace dhp::DHP_ISA
