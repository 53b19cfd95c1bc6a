// One vector of floats, as wide as the instruction set this file is compiled for.
//
// The host kernels are compiled once for each instruction set; DHP_ISA names the namespace so that the copies
// never meet at link time. For the same reason nothing here or above may use an inline function of the
// standard library: the linker could keep the copy that an older processor cannot run.

#pragma once

#include <stdint.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

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

// Comparisons, lane by lane: -1 where they hold, else 0.
//
// AVX-512 compares into mask registers. The compiler must not see that the lanes come from one: it would let
// the mask govern the load of what is selected, and a secret mask on memory is an access that depends on a
// secret.
#if defined(__AVX512F__)
inline IntVec lanes_of(__mmask16 mask) {
  IntVec lanes;
  __asm__("vpmovm2d %1, %0" : "=v"(lanes) : "Yk"(mask));
  return lanes;
}
inline IntVec ct_less(Vec a, Vec b) { return lanes_of(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ)); }
inline IntVec ct_equal(Vec a, Vec b) { return lanes_of(_mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ)); }
inline IntVec ct_less(IntVec a, IntVec b) {
  return lanes_of(_mm512_cmplt_epi32_mask((__m512i)a, (__m512i)b));
}
inline IntVec ct_equal(IntVec a, IntVec b) {
  return lanes_of(_mm512_cmpeq_epi32_mask((__m512i)a, (__m512i)b));
}
#else
inline IntVec ct_less(Vec a, Vec b) { return a < b; }
inline IntVec ct_equal(Vec a, Vec b) { return a == b; }
inline IntVec ct_less(IntVec a, IntVec b) { return a < b; }
inline IntVec ct_equal(IntVec a, IntVec b) { return a == b; }
#endif
inline IntVec ct_is_nan(Vec value) { return ~ct_equal(value, value); }

inline float sum_lanes(Vec value) {
  float sum = 0.0f;
  for (int i = 0; i < kWidth; ++i) sum += value[i];  // a fixed order: the same bits in every run
  return sum;
}

template <int... kLanes>
struct Lanes {};
template <int kCount, int... kLanes>
struct CountLanes : CountLanes<kCount - 1, kCount - 1, kLanes...> {};
template <int... kLanes>
struct CountLanes<0, kLanes...> {
  using Type = Lanes<kLanes...>;
};

// Lanes of a and b by number: 0 to kWidth - 1 are those of a, the next kWidth those of b.
template <int... kPicked>
inline Vec pick_lanes(Vec a, Vec b, Lanes<kPicked...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, kPicked...);
#else
  return __builtin_shuffle(a, b, IntVec{kPicked...});
#endif
}

// Of rows a and b, swaps the blocks of kStep lanes that lie across the diagonal of each 2 x 2 such blocks.
template <int kStep, int... kLanes>
inline void swap_across_diagonal(Vec& a, Vec& b, Lanes<kLanes...>) {
  const Vec first = pick_lanes(a, b, Lanes<(kLanes & kStep ? kLanes - kStep + kWidth : kLanes)...>{});
  b = pick_lanes(a, b, Lanes<(kLanes & kStep ? kLanes + kWidth : kLanes + kStep)...>{});
  a = first;
}

template <int kStep>
inline void transpose_blocks(Vec (&rows)[kWidth]) {
  if constexpr (kStep < kWidth) {
    for (int i = 0; i < kWidth; ++i)
      if (!(i & kStep))
        swap_across_diagonal<kStep>(rows[i], rows[i + kStep], typename CountLanes<kWidth>::Type{});
    transpose_blocks<2 * kStep>(rows);
  }
}

// rows[i][j] -> rows[j][i]
inline void transpose_square(Vec (&rows)[kWidth]) { transpose_blocks<1>(rows); }

}  // namespace dhp::DHP_ISA
