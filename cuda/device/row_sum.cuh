// Weighted sums of rows, spread over a warp: in kernels of one warp a block.

#pragma once

#include "device/ct.cuh"
#include "device/element.cuh"
#include "device/rows.cuh"
#include "device/warp.cuh"
#include "params.h"

namespace dhp {

// One weighted sum of rows; each lane holds the channels that lane_channels names.
struct RowSum {
  float values[kLaneChannels] = {};

  __device__ void scale(float factor) {
#pragma unroll
    for (float& value : values) value *= factor;
  }

  // Adds the 32 rows from `first` on, each times the weight that its lane holds. Rows from `real_end` on
  // count as zeros; rows from `end` on do not exist, and the last one is read in their place.
  template <DType dtype>
  __device__ void add_rows(float weight, const InRows& rows, const Place& first, int32_t end,
                           int32_t real_end, int channels) {
    const int32_t kept_end = min(end, real_end);
    const int channel = lane_channels(channels).first;
#pragma unroll 4
    for (int lane = 0; lane < kWarpLanes; ++lane) {
      const int32_t row = first.row + lane;
      const Place at{first.v, first.b, min(row, end - 1), first.head};
      float terms[kLaneChannels];
      load8<dtype>(row_at<dtype>(rows, at) + channel, terms);
      const float lane_weight = warp_broadcast(weight, lane);
      const CtMask keep = ct_less(row, kept_end);
#pragma unroll
      for (int i = 0; i < kLaneChannels; ++i)
        values[i] = fmaf(lane_weight, ct_keep(keep, terms[i]), values[i]);
    }
  }

  // Writes factor * sum, or zeros where `keep` does not hold.
  template <DType dtype>
  __device__ void store(Element<dtype>* row, float factor, CtMask keep, int channels) const {
    const LaneChannels own = lane_channels(channels);
    float kept[kLaneChannels];
#pragma unroll
    for (int i = 0; i < kLaneChannels; ++i) kept[i] = ct_keep(keep, factor * values[i]);
    if (own.counts) store8<dtype>(row + own.first, kept);
  }
};

}  // namespace dhp
