// Which scores of a tile a mask lets take part, by the bits that kernels/attention_fwd_mask_bits.cuh writes.

#pragma once

#include <cstdint>

#include "device/band_bits.cuh"
#include "device/mma.cuh"
#include "device/score.cuh"
#include "params.h"

namespace dhp {

// For the tile at hand: a word for each of the two rows that a lane has of 64.
class MaskBits {
 public:
  // Long before they are needed: nothing waits for them until then.
  //   words     in the place of a mask: strides count words, along the last axis of whole tiles
  //   at        the lane's first row, and the number of the tile
  //   last_row  of the problem: rows past it have its words
  __device__ void load(const ScorePlane<const uint8_t*>& words, const ScorePlace& at, int32_t last_row) {
#pragma unroll
    for (int half = 0; half < kStripRows; ++half) {
      const ScorePlace row{at.v, at.b, at.n, min(at.t + half * 8, last_row), at.s};
      bits_[half] = reinterpret_cast<const uint32_t*>(words.data)[offset_in(words, row) + threadIdx.x % 4];
    }
  }

  // And the keys of the tile from `end` on.
  template <int kTiles>
  __device__ void hide(Sums (&scores)[kTiles], int32_t end) const {
    static_assert(2 * kTiles <= kWordBits);
    const uint32_t before = bits_before(end, static_cast<int32_t>(threadIdx.x) % 4 * 2);
#pragma unroll
    for (int half = 0; half < kStripRows; ++half) hide_unset(scores, half, bits_[half] & before);
  }

 private:
  uint32_t bits_[kStripRows];
};

}  // namespace dhp
