// What takes part of a tile of scores, by bits: a word has one for each score of a row that a lane holds, and
// ptxas tests seven of them with one instruction.

#pragma once

#include <cmath>
#include <cstdint>

#include "device/band.cuh"
#include "device/mma.cuh"
#include "device/ptx.cuh"

namespace dhp {

inline constexpr int kWordBits = 32;

// Of the scores that a lane holds of a row of a tile, two of each 8 columns, how many lie before position
// `end`, counted from the lane's first column. May be negative or too large.
__device__ inline int32_t scores_before(int32_t end) { return (end >> 3) * 2 + min(end & 7, 2); }

// Of the lane with this first column, the bits of the scores before position `end` of the tile.
__device__ inline uint32_t bits_before(int32_t end, int32_t lane_column) {
  return ptx::low_bits(scores_before(end - lane_column));
}

// Of one of the two rows of a strip, 0 or 1: hides the scores, from `first` on, whose bit is not set.
template <int kTiles>
__device__ void hide_unset(Sums (&scores)[kTiles], int half, uint32_t bits, int first = 0) {
#pragma unroll
  for (int i = first; i < min(first + kWordBits, 2 * kTiles); ++i) {
    float& score = scores[i / 2][2 * half + i % 2];
    score = (bits & 1u << (i - first)) != 0 ? score : -INFINITY;
  }
}

// The same of those whose position, counted from the tile's first column, is not in the range.
template <int kTiles>
__device__ void hide_outside(Sums (&scores)[kTiles], int half, const Range& range) {
  const int32_t lane_column = static_cast<int32_t>(threadIdx.x) % 4 * 2;
  const int32_t begin = scores_before(range.begin - lane_column),
                end = scores_before(range.end - lane_column);
#pragma unroll
  for (int first = 0; first < 2 * kTiles; first += kWordBits) {
    hide_unset(scores, half, ptx::low_bits(end - first) & ~ptx::low_bits(begin - first), first);
  }
}

}  // namespace dhp
