// The online softmax of finished scores, with a bias: any finite number may be one, the lowest too, so the
// difference from the maximum is taken first, and multiplied then. What device/fused_softmax.cuh saves by one
// multiply-add it cannot save here: a factor past log2(e) would overflow, and a smaller one for large scores
// alone would give a larger maximum the smaller reference.

#pragma once

#include <cfloat>

#include "device/ct.cuh"
#include "device/running_max.cuh"

namespace dhp {

// As FusedSoftmax is used.
struct FinishedSoftmax : RunningMax {
  float sum[kStripRows] = {};  // this lane's share; not used where the product sums

  __device__ explicit FinishedSoftmax(float) : RunningMax{{-FLT_MAX, -FLT_MAX}} {}

  __device__ float reference_of(int row) const { return max[row]; }
  __device__ static float weight(float score, float c, float max) { return ct_exp2((score - max) * c); }

  template <int kTiles>
  __device__ void take_max(const Sums (&scores)[kTiles], float c, float (&factors)[kStripRows],
                           float (&rescale)[kStripRows]) {
    const float old[kStripRows] = {max[0], max[1]};
    look_at(scores);
    agree_on_max();
#pragma unroll
    for (int row = 0; row < kStripRows; ++row) {
      factors[row] = c;
      rescale[row] = weight(old[row], c, max[row]);
    }
  }

  __device__ float log2_sum(int, float row_sum, float) const { return ct_log2(row_sum); }
};

}  // namespace dhp
