// Attention of a row over parts of its keys, and how parts become one.

#pragma once

#include <cfloat>
#include <cstdint>

#include "device/ct.cuh"
#include "device/mma.cuh"
#include "device/rows.cuh"
#include "params.h"

namespace dhp {

inline constexpr int kPartChannels = 4;  // that a thread has of a row

// Over no key as it stands.
struct RowPart {
  float max = -FLT_MAX;
  float sum = 0.0f;               // of exp(score - max)
  float out[kPartChannels] = {};  // sum of exp(score - max) * value
};

// All parts brought to their largest maximum and added, in order.
template <int kParts>
__device__ RowPart join(const RowPart (&parts)[kParts]) {
  RowPart all;
#pragma unroll
  for (const RowPart& part : parts) all.max = fmaxf(all.max, part.max);
#pragma unroll
  for (const RowPart& part : parts) {
    const float weight = ct_exp(part.max - all.max);
    all.sum = fmaf(weight, part.sum, all.sum);
#pragma unroll
    for (int i = 0; i < kPartChannels; ++i) all.out[i] = fmaf(weight, part.out[i], all.out[i]);
  }
  return all;
}

// The workspace: of `num_rows` rows the channels, `channels` each, then maximum and sum. A row here is a
// query row over one part of the keys.
struct PartialRows {
  float* data;
  int64_t num_rows;
  int32_t channels;

  __device__ float4* out(int64_t row, int channel) const {
    return reinterpret_cast<float4*>(data + row * channels + channel);
  }
  __device__ float2* statistics(int64_t row) const {
    return reinterpret_cast<float2*>(data + num_rows * channels) + row;
  }
};

// From `channel` on.
__device__ inline RowPart load_part(const PartialRows& rows, int64_t row, int channel) {
  const float2 statistics = *rows.statistics(row);
  const float4 out = *rows.out(row, channel);
  return {statistics.x, statistics.y, {out.x, out.y, out.z, out.w}};
}
__device__ inline void store_part(const PartialRows& rows, int64_t row, int channel, const RowPart& part) {
  *rows.out(row, channel) = {part.out[0], part.out[1], part.out[2], part.out[3]};
  if (channel == 0) *rows.statistics(row) = {part.max, part.sum};
}

// Writes what a row has over all its keys: its channels from `channel` on, which there are, and its
// statistics, once.
template <DType dtype>
__device__ void store_row(const OutRows& out, float* row_max, float* log_sum, const Place& at, int64_t row,
                          int channel, const RowPart& all) {
  const CtMask is_empty = ct_equal(all.sum, 0.0f);  // no key took part, or all that did scored -inf
  const float factor = ct_reciprocal(all.sum);
  float values[kPartChannels];
#pragma unroll
  for (int i = 0; i < kPartChannels; ++i) values[i] = ct_keep(~is_empty, factor * all.out[i]);
  *reinterpret_cast<uint2*>(row_at<dtype>(out, at) + channel) = {pack<dtype>(values[0], values[1]),
                                                                 pack<dtype>(values[2], values[3])};
  if (channel == 0) {
    row_max[row] = all.max;
    log_sum[row] = ct_select(is_empty, -INFINITY, ct_log(all.sum));
  }
}

}  // namespace dhp
