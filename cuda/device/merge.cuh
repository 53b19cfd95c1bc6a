// Sums of two softmaxes over different keys of the same rows become those of one; the weights are what
// FusedSoftmax::merge returns.

#pragma once

#include "device/mma.cuh"
#include "device/softmax.cuh"

namespace dhp {

// A public choice between sums, register by register: where each side gives away one half of its channels,
// which registers that are differs, and a branch would have all that follows twice.
__device__ inline void choose(Sums& to, bool first, const Sums& yes, const Sums& no) {
#pragma unroll
  for (int i = 0; i < 4; ++i) to[i] = first ? yes[i] : no[i];
}

__device__ inline void add_weighted(Sums& own, const float (&weights)[kStripRows], const Sums& other,
                                    const float (&other_weights)[kStripRows]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) own[i] = weights[i / 2] * own[i] + other_weights[i / 2] * other[i];
}

}  // namespace dhp
