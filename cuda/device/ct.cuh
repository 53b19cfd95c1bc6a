// Arithmetic that may touch secrets: one fixed sequence of instructions, whatever the values.
//
// Plain C++ does not promise that. Float division and square root branch to a slow path for extreme operands,
// and ptxas turns `claim ? loaded : other` into a load that is issued only where the claim holds: no branch
// remains, the leak does. The check of the compiled kernel (dhp_jax/verify) has the last word.

#pragma once

#include <cstdint>

#include "device/ptx.cuh"

namespace dhp {

// A secret claim as a word: all ones where it holds, zero elsewhere.
//
// A bool invites ptxas to guard the load or the ex2 whose result it chooses. A word that masks one value at a
// time has at most become a SEL between values already there.
struct CtMask {
  uint32_t bits;
};

__device__ inline CtMask operator&(CtMask a, CtMask b) { return {a.bits & b.bits}; }
__device__ inline CtMask operator~(CtMask a) { return {~a.bits}; }

__device__ inline CtMask ct_less(int32_t a, int32_t b) { return {ptx::set_less(a, b)}; }

__device__ inline CtMask ct_nonzero(uint32_t a) { return {ptx::set_nonzero(a)}; }

// False for NaN.
__device__ inline CtMask ct_equal(float a, float b) { return {ptx::set_equal(a, b)}; }

__device__ inline float ct_select(CtMask mask, float yes, float no) {
  return __uint_as_float((__float_as_uint(yes) & mask.bits) | (__float_as_uint(no) & ~mask.bits));
}

// `value` where the claim holds, else +0, also where `value` is NaN.
__device__ inline float ct_keep(CtMask mask, float value) {
  return __uint_as_float(__float_as_uint(value) & mask.bits);
}

// 2^x, relative error about 2^-22 (PTX ISA); 0 for x = -inf and for results below 2^-126; NaN for NaN. One
// instruction, as the two below.
__device__ inline float ct_exp2(float x) { return ptx::ex2(x); }

// Base-2 logarithm; -inf for 0.
__device__ inline float ct_log2(float x) { return ptx::lg2(x); }

// 1 / x to 1 ulp; +inf for 0.
__device__ inline float ct_reciprocal(float x) { return ptx::rcp(x); }

inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr float kLn2 = 0.6931471805599453f;

// e^x. The caller has subtracted the row's maximum or log-sum-exp, so |x| is small wherever the result
// matters: rounding x * log2(e) costs a relative error of at most |x| * 2^-23.
__device__ inline float ct_exp(float x) { return ct_exp2(x * kLog2E); }

__device__ inline float ct_log(float x) { return ct_log2(x) * kLn2; }

}  // namespace dhp
