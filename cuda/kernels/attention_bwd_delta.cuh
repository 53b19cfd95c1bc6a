// What every gradient of scores needs of its row: delta = sum over D of d_out * out, less d_lse. It comes
// first on the stream.
//
// Rows past the true length get 0, whatever lies there: by a select, after the same work.

#pragma once

#include "device/ct.cuh"
#include "device/element.cuh"
#include "device/rows.cuh"
#include "device/score.cuh"
#include "device/warp.cuh"
#include "params.h"

namespace dhp {

// What BackwardParams and BiasBackwardParams have in common for it.
struct DeltaParams {
  Shape shape;
  InRows out, d_out;
  Lengths query_lengths;
  const float* d_lse;
  float* delta;  // [V, B, T, N]
};

template <typename Config>
struct DeltaTiles {
  static constexpr DType kDType = Config::kDType;
  static constexpr int kThreads = 4 * kWarpLanes;
  static constexpr int kLaneChannels = 8;  // of a row, held by one lane
  static constexpr int kRowLanes = Config::kChannels / kLaneChannels;
  static constexpr int kQueryRows = kThreads / kRowLanes;
  static constexpr int kSharedBytes = 0;
};

// Grid: one block for each kQueryRows query rows of a head, counted along rows, then heads, batch and V.
template <typename Config>
__global__ void __launch_bounds__(DeltaTiles<Config>::kThreads)
    attention_bwd_delta(const __grid_constant__ DeltaParams params) {
  using Tiles = DeltaTiles<Config>;
  constexpr DType kDType = Tiles::kDType;
  const Shape& shape = params.shape;
  const int32_t num_rows = static_cast<int32_t>(shape.T), channels = static_cast<int32_t>(shape.D);
  const int thread = static_cast<int>(threadIdx.x);
  Place at = place_of_block((num_rows + Tiles::kQueryRows - 1) / Tiles::kQueryRows, shape.N, shape.B);
  const int32_t row = at.row * Tiles::kQueryRows + thread / Tiles::kRowLanes;
  at.row = min(row, num_rows - 1);

  // A lane past the last channel or row repeats the last, and does not count: no warp splits.
  const int32_t own = thread % Tiles::kRowLanes * Tiles::kLaneChannels;
  const int32_t channel = min(own, channels - Tiles::kLaneChannels);
  float out[Tiles::kLaneChannels], d_out[Tiles::kLaneChannels];
  load8<kDType>(row_at<kDType>(params.out, at) + channel, out);
  load8<kDType>(row_at<kDType>(params.d_out, at) + channel, d_out);
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < Tiles::kLaneChannels; ++i) sum = fmaf(out[i], d_out[i], sum);
  sum = own < channels ? sum : 0.0f;
#pragma unroll
  for (int distance = Tiles::kRowLanes / 2; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(kAllLanes, sum, distance);
  }
  const int64_t index = statistic_index(shape, at);
  const CtMask is_real = ct_less(at.row, load_length(params.query_lengths, at.v, at.b));
  const float delta = ct_keep(is_real, sum - params.d_lse[index]);
  if (own == 0 && row < num_rows) params.delta[index] = delta;
}

}  // namespace dhp
