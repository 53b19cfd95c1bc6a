// The online softmax of the rows whose sums a warp holds: running maximum and sum, whatever the scores.
//
// A lane holds part of two rows of each 16-row strip; the four lanes of one row agree by shuffles whose
// partners are fixed. The maximum starts finite, so that a row in which nothing takes part needs no test; the
// rescale runs on every tile, moved maximum or not.

#pragma once

#include <cfloat>

#include "device/ct.cuh"
#include "device/mma.cuh"
#include "device/warp.cuh"

namespace dhp {

inline constexpr int kStripRows = 2;  // of a strip, held in part by one lane

// Over the four lanes that hold one row.
__device__ inline float quad_max(float value) {
  value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, 1));
  return fmaxf(value, __shfl_xor_sync(kAllLanes, value, 2));
}
__device__ inline float quad_sum(float value) {
  value += __shfl_xor_sync(kAllLanes, value, 1);
  return value + __shfl_xor_sync(kAllLanes, value, 2);
}

// One strip.
struct OnlineSoftmax {
  float max[kStripRows] = {-FLT_MAX, -FLT_MAX};
  float sum[kStripRows] = {};  // this lane's share

  // Turns scores into exp2(exponent_scale * (score - max)); returns what earlier results must be multiplied
  // by. A score of -inf gives 0.
  //   exponent_scale  positive
  template <int kTiles>
  __device__ void take(Sums (&scores)[kTiles], float exponent_scale, float (&rescale)[kStripRows]) {
#pragma unroll
    for (int row = 0; row < kStripRows; ++row) {
      float tile_max = fmaxf(scores[0][2 * row], scores[0][2 * row + 1]);
#pragma unroll
      for (int i = 1; i < kTiles; ++i) {
        tile_max = fmaxf(tile_max, fmaxf(scores[i][2 * row], scores[i][2 * row + 1]));
      }
      const float new_max = fmaxf(max[row], quad_max(tile_max));
      rescale[row] = ct_exp2(exponent_scale * (max[row] - new_max));
      max[row] = new_max;
      float tile_sum = 0.0f;
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
#pragma unroll
        for (int column = 0; column < 2; ++column) {
          float& score = scores[i][2 * row + column];
          score = ct_exp2(exponent_scale * (score - new_max));
          tile_sum += score;
        }
      }
      sum[row] = fmaf(sum[row], rescale[row], tile_sum);
    }
  }
};

}  // namespace dhp
