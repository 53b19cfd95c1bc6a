// One vector of floats, as wide as the instruction set this file is compiled for.
//
// The host kernels are compiled once for each instruction set; DHP_ISA names the namespace so that the copies
// never meet at link time. For the same reason nothing here or above may use an inline function of the
// standard library: the linker could keep the copy that an older processor cannot run.

#pragma once

#include <stdint.h>

#ifndef DHP_ISA
#error "compile host kernels with -DDHP_ISA=<namespace of this instruction set>"
#endif

namespace dhp::DHP_ISA {

#if defined(__AVX512F__)
constexpr int kWidth = 16;       // floats in one vector
constexpr int kTileVectors = 4;  // vectors along a matmul tile: 6 x 4 accumulators fit 32 registers
#elif defined(__AVX2__)
constexpr int kWidth = 8;
constexpr int kTileVectors = 2;
#elif defined(__aarch64__)
constexpr int kWidth = 4;
constexpr int kTileVectors = 4;
#else
constexpr int kWidth = 4;
constexpr int kTileVectors = 2;
#endif

typedef float Vec __attribute__((vector_size(4 * kWidth)));
typedef int32_t IntVec __attribute__((vector_size(4 * kWidth)));  // also a lane mask: 0 or -1
typedef float UnalignedVec __attribute__((vector_size(4 * kWidth), aligned(4), may_alias));

inline Vec load(const float* source) { return *reinterpret_cast<const UnalignedVec*>(source); }
inline void store(float* target, Vec value) { *reinterpret_cast<UnalignedVec*>(target) = value; }
inline Vec splat(float value) { return Vec{} + value; }
inline IntVec splat_int(int32_t value) { return IntVec{} + value; }
inline IntVec bits(Vec value) { return (IntVec)value; }
inline Vec from_bits(IntVec value) { return (Vec)value; }
inline Vec to_float(IntVec value) { return __builtin_convertvector(value, Vec); }

inline IntVec lane_index() {
  IntVec lanes;
  for (int i = 0; i < kWidth; ++i) lanes[i] = i;
  return lanes;
}

inline float sum_lanes(Vec value) {
  float sum = 0.0f;
  for (int i = 0; i < kWidth; ++i) sum += value[i];  // a fixed order: the same bits in every run
  return sum;
}

inline float max_lanes(Vec value) {
  float max = value[0];
  for (int i = 1; i < kWidth; ++i) max = value[i] > max ? value[i] : max;
  return max;
}

}  // namespace dhp::DHP_ISA
