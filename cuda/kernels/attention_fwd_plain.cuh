// Forward attention, one warp a query row, in float32 on the CUDA cores. Plain rather than fast: float32
// operands keep float32 accuracy, and it is what a faster kernel is held against.
//
// 1. The warp stages its query row in shared memory.
// 2. For each 32 keys that the band lets the query see: lane l takes key l and computes its score; the warp
//    agrees on the new row maximum, and rescales what it has; then all lanes, eight channels each, add the 32
//    value rows, each times the p that its lane holds.
// 3. The row is divided by the sum of p and written, with its maximum and the log of its sum.
//
// Constant time: the loops run over shapes and the band. Masked keys are loaded and multiplied as all others;
// their score is -inf, so that p is exactly 0. The rescale runs on every step: skipping it where the maximum
// did not move would tell an observer which keys score highest.

#pragma once

#include "device/band.cuh"
#include "device/row_sum.cuh"
#include "device/rows.cuh"
#include "device/score.cuh"
#include "params.h"

namespace dhp {

// Grid: one warp a query row, see place_of_block.
template <typename Config>
__global__ void __launch_bounds__(kWarpLanes, kWarpsResident)
    attention_fwd_plain(const __grid_constant__ ForwardParams params) {
  constexpr DType kDType = Config::kDType;
  alignas(16) __shared__ float sQuery[kMaxChannels];

  const Problem& problem = params.problem;
  const Shape& shape = problem.shape;
  const int lane = static_cast<int>(threadIdx.x);
  const int channels = static_cast<int>(shape.D);
  const Place query = place_of_block(shape.T, shape.N, shape.B);
  const int32_t kv_head = key_value_head(shape, query.head);
  const TrueLengths lengths = load_lengths(problem, query.v, query.b);

  const CtMask query_is_real = ct_less(query.row, lengths.query);
  stage_row<kDType>(row_at<kDType>(problem.query, query), query_is_real, channels, sQuery);
  __syncwarp();

  float row_max = kRowMaxInit;
  float lane_sum = 0.0f;  // of this lane's p
  RowSum out;
  const Range keys = keys_seen(problem, query.row);
  for (int32_t first = keys.begin; at_head(first < keys.end); first += kWarpLanes) {
    // Past the end a lane repeats the last key, out of band: the warp never splits.
    const CtMask in_band = ct_less(first + lane, keys.end);
    const Place key{query.v, query.b, min(first + lane, keys.end - 1), kv_head};
    const ScorePlace at{query.v, query.b, query.head, query.row, key.row};
    const float query_dot_key = dot<kStaged, kDType>(sQuery, row_at<kDType>(problem.key, key), channels);
    const float score = score_at(problem, lengths, at, in_band, query_dot_key).value;
    const float new_max = fmaxf(row_max, warp_max(score));
    const float rescale = ct_exp(row_max - new_max);
    const float p = ct_exp(score - new_max);
    row_max = new_max;
    lane_sum = fmaf(lane_sum, rescale, p);
    out.scale(rescale);
    const Place values{query.v, query.b, first, kv_head};
    out.add_rows<kDType>(p, problem.value, values, keys.end, lengths.key_value, channels);
  }

  const float row_sum = warp_sum(lane_sum);
  const CtMask is_empty = ct_equal(row_sum, 0.0f);  // no key took part, or all that did scored -inf
  out.store<kDType>(row_at<kDType>(params.out, query), ct_reciprocal(row_sum), ~is_empty, channels);
  const float log_sum = ct_select(is_empty, -INFINITY, ct_log(row_sum));
  const int64_t index = statistic_index(shape, query);
  if (lane == 0) params.row_max[index] = row_max;
  if (lane == 0) params.log_sum[index] = log_sum;
}

}  // namespace dhp
