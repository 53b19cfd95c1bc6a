// Gradients of query, key and value, in three kernels on one stream, each in float32 on the CUDA cores.
//
// 1. attention_bwd_delta_plain      delta = sum over D of d_out * out, less d_lse
// 2. attention_bwd_query_plain      one warp a query row: d_query = scale * sum over s of dS * key
// 3. attention_bwd_key_value_plain  one warp a key row: d_value = sum of P * d_out and
//                                   d_key = scale * sum of dS * query, over t and the heads of its group
//
// with P = exp(score - log-sum-exp), dP = d_out . value, dS = P * (dP - delta). The scores are computed
// again, in both 2 and 3: one warp owns each output row and adds in a fixed order, so no atomics, whose
// contention an observer could time and whose order changes the bits.
//
// Constant time, as the forward kernel: loops over shapes and the band, selects in registers. Rows past a
// true length are read, then replaced by zeros, so that what lies there reaches no gradient.

#pragma once

#include "device/band.cuh"
#include "device/row_sum.cuh"
#include "device/rows.cuh"
#include "device/score.cuh"
#include "params.h"

namespace dhp {

// Grid of this kernel and the next: one warp a query row, see place_of_block.
//
// Takes what BackwardParams and BiasBackwardParams have in common.
template <typename Config, typename Params>
__global__ void __launch_bounds__(kWarpLanes, kWarpsResident)
    attention_bwd_delta_plain(const __grid_constant__ Params params) {
  constexpr DType kDType = Config::kDType;
  const Shape& shape = params.problem.shape;
  const int lane = static_cast<int>(threadIdx.x);
  const Place query = place_of_block(shape.T, shape.N, shape.B);

  const Element<kDType>* out = row_at<kDType>(params.out, query);
  const Element<kDType>* d_out = row_at<kDType>(params.d_out, query);
  const LaneChannels own = lane_channels(static_cast<int>(shape.D));
  const float products = dot<kDType, kDType>(out + own.first, d_out + own.first, kLaneChannels);
  const float lane_sum = own.counts ? products : 0.0f;
  const int64_t index = statistic_index(shape, query);
  const float delta = warp_sum(lane_sum) - params.d_lse[index];
  const CtMask is_real = ct_less(query.row, load_length(params.problem.query_lengths, query.v, query.b));
  if (lane == 0) params.delta[index] = ct_keep(is_real, delta);
}

template <typename Config>
__global__ void __launch_bounds__(kWarpLanes, kWarpsResident)
    attention_bwd_query_plain(const __grid_constant__ BackwardParams params) {
  constexpr DType kDType = Config::kDType;
  alignas(16) __shared__ float sQuery[kMaxChannels];
  alignas(16) __shared__ float sDOut[kMaxChannels];

  const Problem& problem = params.problem;
  const Shape& shape = problem.shape;
  const int lane = static_cast<int>(threadIdx.x);
  const int channels = static_cast<int>(shape.D);
  const Place query = place_of_block(shape.T, shape.N, shape.B);
  const int32_t kv_head = key_value_head(shape, query.head);
  const TrueLengths lengths = load_lengths(problem, query.v, query.b);

  const CtMask query_is_real = ct_less(query.row, lengths.query);
  stage_row<kDType>(row_at<kDType>(problem.query, query), query_is_real, channels, sQuery);
  stage_row<kDType>(row_at<kDType>(params.d_out, query), query_is_real, channels, sDOut);
  __syncwarp();
  const RowStatistics row = load_statistics(params, statistic_index(shape, query));

  RowSum d_query;
  const Range keys = keys_seen(problem, query.row);
  for (int32_t first = keys.begin; at_head(first < keys.end); first += kWarpLanes) {
    // Past the end a lane repeats the last key, out of band: the warp never splits.
    const CtMask in_band = ct_less(first + lane, keys.end);
    const Place key{query.v, query.b, min(first + lane, keys.end - 1), kv_head};
    const ScorePlace at{query.v, query.b, query.head, query.row, key.row};
    const float query_dot_key = dot<kStaged, kDType>(sQuery, row_at<kDType>(problem.key, key), channels);
    const float d_p = dot<kStaged, kDType>(sDOut, row_at<kDType>(problem.value, key), channels);
    const Score score = score_at(problem, lengths, at, in_band, query_dot_key);
    const float d_score = score_gradient(score, row, d_p).d_score;
    const Place terms{query.v, query.b, first, kv_head};
    d_query.add_rows<kDType>(d_score, problem.key, terms, keys.end, lengths.key_value, channels);
  }
  const CtMask is_empty = ct_equal(row.log_sum, -INFINITY);
  d_query.store<kDType>(row_at<kDType>(params.d_query, query), problem.scale, ~is_empty, channels);
}

// Grid: one warp a key row.
template <typename Config>
__global__ void __launch_bounds__(kWarpLanes, kWarpsResident)
    attention_bwd_key_value_plain(const __grid_constant__ BackwardParams params) {
  constexpr DType kDType = Config::kDType;
  alignas(16) __shared__ float sKey[kMaxChannels];
  alignas(16) __shared__ float sValue[kMaxChannels];

  const Problem& problem = params.problem;
  const Shape& shape = problem.shape;
  const int lane = static_cast<int>(threadIdx.x);
  const int channels = static_cast<int>(shape.D);
  const Place key = place_of_block(shape.S, shape.K, shape.B);
  const TrueLengths lengths = load_lengths(problem, key.v, key.b);

  const CtMask key_is_real = ct_less(key.row, lengths.key_value);
  stage_row<kDType>(row_at<kDType>(problem.key, key), key_is_real, channels, sKey);
  stage_row<kDType>(row_at<kDType>(problem.value, key), key_is_real, channels, sValue);
  __syncwarp();

  RowSum d_key, d_value;
  const int32_t group = group_size(shape);
  const Range queries = queries_seeing(problem, key.row);
  for (int32_t head = key.head * group; at_head(head < (key.head + 1) * group); ++head) {
    for (int32_t first = queries.begin; at_head(first < queries.end); first += kWarpLanes) {
      const CtMask in_band = ct_less(first + lane, queries.end);
      const Place query{key.v, key.b, min(first + lane, queries.end - 1), head};
      const ScorePlace at{key.v, key.b, head, query.row, key.row};
      const float query_dot_key = dot<kStaged, kDType>(sKey, row_at<kDType>(problem.query, query), channels);
      const float d_p = dot<kStaged, kDType>(sValue, row_at<kDType>(params.d_out, query), channels);
      const Score score = score_at(problem, lengths, at, in_band, query_dot_key);
      const RowStatistics row = load_statistics(params, statistic_index(shape, query));
      const ScoreGradient gradient = score_gradient(score, row, d_p);
      const Place terms{key.v, key.b, first, head};
      d_value.add_rows<kDType>(gradient.p, params.d_out, terms, queries.end, lengths.query, channels);
      d_key.add_rows<kDType>(gradient.d_score, problem.query, terms, queries.end, lengths.query, channels);
    }
  }
  d_key.store<kDType>(row_at<kDType>(params.d_key, key), problem.scale, key_is_real, channels);
  d_value.store<kDType>(row_at<kDType>(params.d_value, key), 1.0f, key_is_real, channels);
}

}  // namespace dhp
