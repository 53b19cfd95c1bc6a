// The running maximum of the two rows that a lane has of 64, where four lanes share a row.

#pragma once

#include "device/mma.cuh"
#include "device/softmax.cuh"
#include "device/warp.cuh"

namespace dhp {

struct RunningMax {
  float max[kStripRows];

  // This lane's share of a tile. Where a maximum is over several tiles, of each before the lanes agree.
  template <int kTiles>
  __device__ void look_at(const Sums (&scores)[kTiles]) {
    // Both rows step by step: the exponentials of one must not start, and take registers, while the other's
    // maximum is looked for.
    float odd[kStripRows];
#pragma unroll
    for (int row = 0; row < kStripRows; ++row) odd[row] = scores[0][2 * row + 1];
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
#pragma unroll
      for (int row = 0; row < kStripRows; ++row) {
        max[row] = fmaxf(max[row], scores[i][2 * row]);
        if (i > 0) odd[row] = fmaxf(odd[row], scores[i][2 * row + 1]);
      }
    }
#pragma unroll
    for (int row = 0; row < kStripRows; ++row) max[row] = fmaxf(max[row], odd[row]);
  }

 protected:
  __device__ void agree_on_max() {
#pragma unroll
    for (int distance = 1; distance < 4; distance *= 2) {
      float others[kStripRows];
#pragma unroll
      for (int row = 0; row < kStripRows; ++row) others[row] = __shfl_xor_sync(kAllLanes, max[row], distance);
#pragma unroll
      for (int row = 0; row < kStripRows; ++row) max[row] = fmaxf(max[row], others[row]);
    }
  }
};

}  // namespace dhp
