// Conversion of a row of values to float32 and back, branch-free for every bit pattern.
//
// The compiler's own half conversion is a library call on older processors, and that call branches on its
// operand.

#pragma once

#include "host/ct.h"
#include "params.h"

namespace dhp::DHP_ISA {

typedef uint16_t HalfVec __attribute__((vector_size(2 * kWidth), aligned(2), may_alias));
constexpr int32_t kInfinityBits = 0x7F800000;

inline IntVec load_half_bits(const uint16_t* source) {
  return __builtin_convertvector(*reinterpret_cast<const HalfVec*>(source), IntVec);
}
inline void store_half_bits(uint16_t* target, IntVec value) {
  *reinterpret_cast<HalfVec*>(target) = __builtin_convertvector(value, HalfVec);
}
inline IntVec select_bits(IntVec condition, IntVec yes, IntVec no) {
  return (yes & condition) | (no & ~condition);
}

struct Float32 {
  using Storage = float;
  static Vec load(const float* source) { return DHP_ISA::load(source); }
  static void store(float* target, Vec value) { DHP_ISA::store(target, value); }
};

struct BFloat16 {
  using Storage = uint16_t;
  static Vec load(const uint16_t* source) { return from_bits(load_half_bits(source) << 16); }
  static void store(uint16_t* target, Vec value) {  // to nearest, ties to even
    const IntVec v = bits(value);
    const IntVec rounded = ((v + 0x7FFF + ((v >> 16) & 1)) >> 16) & 0xFFFF;
    store_half_bits(target, select_bits(ct_is_nan(value), splat_int(0x7FC0), rounded));
  }
};

struct Float16 {
  using Storage = uint16_t;
  static Vec load(const uint16_t* source) {
    const IntVec h = load_half_bits(source);
    const IntVec sign = (h & 0x8000) << 16, magnitude = h & 0x7FFF;
    const IntVec normal = (magnitude << 13) + (112 << 23);  // exponent bias 15 -> 127
    const IntVec special = (magnitude << 13) | kInfinityBits;
    // A half subnormal is magnitude * 2^-24, a normal float32: flush-to-zero does not touch it.
    const IntVec subnormal = bits(to_float(magnitude) * 0x1p-24f);
    const IntVec finite = select_bits(ct_less(magnitude, splat_int(0x0400)), subnormal, normal);
    return from_bits(sign | select_bits(ct_less(magnitude, splat_int(0x7C00)), finite, special));
  }
  static void store(uint16_t* target, Vec value) {  // to nearest, ties to even
    const IntVec v = bits(value), sign = (v >> 16) & 0x8000, magnitude = v & 0x7FFFFFFF;
    const IntVec normal = (magnitude - (112 << 23) + 0xFFF + ((magnitude >> 13) & 1)) >> 13;
    // Adding 0.5 puts the unit of the last place at 2^-24, that of a half subnormal; the adder rounds.
    const IntVec subnormal = bits(from_bits(magnitude) + 0.5f) - bits(splat(0.5f));
    IntVec half = select_bits(ct_less(magnitude, splat_int((127 - 14) << 23)), subnormal, normal);
    half = select_bits(ct_less(from_bits(magnitude), splat(65520.0f)), half, splat_int(0x7C00));
    half = select_bits(ct_is_nan(value), splat_int(0x7E00), half);
    store_half_bits(target, sign | half);
  }
};

// Calls body(Type{}) with the storage type of a public dtype.
template <typename Body>
inline void with_dtype(DType dtype, Body body) {
  switch (dtype) {
    case DType::kFloat32: return body(Float32{});
    case DType::kBFloat16: return body(BFloat16{});
    case DType::kFloat16: return body(Float16{});
  }
}

// Reads up to kWidth values; lanes at and past `count` (public) are 0.
template <typename Type>
inline Vec load_part(const typename Type::Storage* source, int64_t count) {
  if (count >= kWidth) return Type::load(source);
  typename Type::Storage padded[kWidth] = {};
  for (int64_t i = 0; i < count; ++i) padded[i] = source[i];
  return Type::load(padded);
}

template <typename Type>
inline void store_part(typename Type::Storage* target, Vec value, int64_t count) {
  if (count >= kWidth) return Type::store(target, value);
  typename Type::Storage padded[kWidth];
  Type::store(padded, value);
  for (int64_t i = 0; i < count; ++i) target[i] = padded[i];
}

}  // namespace dhp::DHP_ISA
