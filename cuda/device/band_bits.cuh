// The edge of the band in a tile of scores, by bits: a word has one for each score of a row that a lane
// holds, and ptxas tests seven of them with one instruction.

#pragma once

#include <cmath>
#include <cstdint>

#include "device/band.cuh"
#include "device/mma.cuh"
#include "device/ptx.cuh"

namespace dhp {

// Of the scores that a lane holds of a row of a tile, two of each 8 columns, how many lie before position
// `end`, counted from the lane's first column. May be negative or too large.
__device__ inline int32_t scores_before(int32_t end) { return (end >> 3) * 2 + min(end & 7, 2); }

// Of one of the two rows of a strip, 0 or 1: hides the scores whose position, counted from the tile's first
// column, is not in the range.
template <int kTiles>
__device__ void hide_outside(Sums (&scores)[kTiles], int half, const Range& range) {
  constexpr int kWordBits = 32, kScores = 2 * kTiles;
  const int32_t lane_column = static_cast<int32_t>(threadIdx.x) % 4 * 2;
  const int32_t begin = scores_before(range.begin - lane_column),
                end = scores_before(range.end - lane_column);
#pragma unroll
  for (int first = 0; first < kScores; first += kWordBits) {
    const uint32_t seen = ptx::low_bits(end - first) & ~ptx::low_bits(begin - first);
#pragma unroll
    for (int i = first; i < min(first + kWordBits, kScores); ++i) {
      float& score = scores[i / 2][2 * half + i % 2];
      score = (seen & 1u << (i - first)) != 0 ? score : -INFINITY;
    }
  }
}

}  // namespace dhp
