// Gradient of bias: dS, summed over every axis along which bias repeats. Needs delta, from
// attention_bwd_delta_plain earlier on the stream.
//
// A block owns 32 neighbouring elements along S, one a lane, or a single one where bias repeats along S; then
// the lanes share out the keys. Its warps share out the queries where bias repeats along T. Every sum runs in
// an order given by the shapes: lane after lane, warp after warp, no atomics.
//
// Constant time: each dS is computed in full and chosen by a select, as in the other backward kernels.

#pragma once

#include "device/band.cuh"
#include "device/rows.cuh"
#include "device/score.cuh"
#include "params.h"

namespace dhp {

inline constexpr int kMaxBiasWarps = 8;
inline constexpr int kMaxBiasThreads = kMaxBiasWarps * kWarpLanes;

// What one block adds up, and where its first element lies.
struct BiasSlice {
  int32_t v;
  Range batches, heads, queries, keys;
};

// Index `index` of an axis of d_bias covers this much of the same axis of the scores.
__device__ inline Range covered(int32_t index, int64_t bias_size, int64_t size) {
  return bias_size == 1 ? Range{0, static_cast<int32_t>(size)} : Range{index, index + 1};
}

// Blocks are counted along S in steps of 32, then T, N, B and V.
__device__ inline BiasSlice slice_of_block(const Shape& shape, const Shape& bias) {
  uint32_t rest = blockIdx.x;
  const int32_t first_key = take_index(rest, (bias.S + kWarpLanes - 1) / kWarpLanes) * kWarpLanes;
  const Range queries = covered(take_index(rest, bias.T), bias.T, shape.T);
  const Range heads = covered(take_index(rest, bias.N), bias.N, shape.N);
  const Range batches = covered(take_index(rest, bias.B), bias.B, shape.B);
  const int32_t num_keys = static_cast<int32_t>(shape.S);
  const Range keys =
      bias.S == 1 ? Range{0, num_keys} : Range{first_key, min(first_key + kWarpLanes, num_keys)};
  return {
      .v = static_cast<int32_t>(rest), .batches = batches, .heads = heads, .queries = queries, .keys = keys};
}

// dS of one score, exactly 0 where the band hides the key or `exists` does not hold.
template <DType dtype>
__device__ float d_score_at(const BiasBackwardParams& params, const ScorePlace& at, CtMask exists) {
  const Problem& problem = params.problem;
  const int channels = static_cast<int>(problem.shape.D);
  const Place query{at.v, at.b, at.t, at.n};
  const Place key{at.v, at.b, at.s, key_value_head(problem.shape, at.n)};
  const Range seen = keys_seen(problem, at.t);
  const CtMask in_band = exists & ~ct_less(at.s, seen.begin) & ct_less(at.s, seen.end);
  const float query_dot_key =
      dot<dtype, dtype>(row_at<dtype>(problem.query, query), row_at<dtype>(problem.key, key), channels);
  const float d_p =
      dot<dtype, dtype>(row_at<dtype>(params.d_out, query), row_at<dtype>(problem.value, key), channels);
  const TrueLengths lengths = load_lengths(problem, at.v, at.b);
  const Score score = score_at(problem, lengths, at, in_band, query_dot_key);
  const RowStatistics row = load_statistics(params, statistic_index(problem.shape, query));
  return score_gradient(score, row, d_p).d_score;
}

// This thread's share of the sum. Past an end a lane or a warp repeats the last position and adds 0: no warp
// ever splits.
template <DType dtype>
__device__ float sum_share(const BiasBackwardParams& params, const BiasSlice& slice, int num_warps) {
  const int warp = static_cast<int>(threadIdx.x) / kWarpLanes;
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const Range &queries = slice.queries, &keys = slice.keys;
  float sum = 0.0f;
  for (int32_t b = slice.batches.begin; at_head(b < slice.batches.end); ++b) {
    for (int32_t n = slice.heads.begin; at_head(n < slice.heads.end); ++n) {
      for (int32_t first_t = queries.begin; at_head(first_t < queries.end); first_t += num_warps) {
        for (int32_t first_s = keys.begin; at_head(first_s < keys.end); first_s += kWarpLanes) {
          const int32_t t = first_t + warp, s = first_s + lane;
          const ScorePlace at{slice.v, b, n, min(t, queries.end - 1), min(s, keys.end - 1)};
          sum += d_score_at<dtype>(params, at, ct_less(t, queries.end) & ct_less(s, keys.end));
        }
      }
    }
  }
  return sum;
}

__device__ inline void store_bias(const BiasBackwardParams& params, const ScorePlace& at, float value) {
  const int64_t offset = offset_in(params.d_bias, at);
  void* data = params.d_bias.data;
  switch (params.problem.bias_dtype) {
    case DType::kFloat32: return store1<DType::kFloat32>(static_cast<float*>(data) + offset, value);
    case DType::kBFloat16: return store1<DType::kBFloat16>(static_cast<__nv_bfloat16*>(data) + offset, value);
    case DType::kFloat16: return store1<DType::kFloat16>(static_cast<__half*>(data) + offset, value);
  }
}

// Grid: one block a BiasSlice, of up to kMaxBiasWarps warps.
template <typename Config>
__global__ void __launch_bounds__(kMaxBiasThreads, kWarpsResident / kMaxBiasWarps)
    attention_bwd_bias_plain(const __grid_constant__ BiasBackwardParams params) {
  __shared__ float sSums[kMaxBiasThreads];
  const Shape& bias = params.bias_shape;
  const BiasSlice slice = slice_of_block(params.problem.shape, bias);
  const int thread = static_cast<int>(threadIdx.x);
  const int num_threads = static_cast<int>(blockDim.x);
  sSums[thread] = sum_share<Config::kDType>(params, slice, num_threads / kWarpLanes);
  __syncthreads();  // the threads that own an element wait for the shares of all

  const bool repeats_along_s = bias.S == 1;
  const int num_elements = repeats_along_s ? 1 : slice.keys.end - slice.keys.begin;
  if (thread >= num_elements) return;
  float total = 0.0f;
  for (int i = thread; i < num_threads; i += repeats_along_s ? 1 : kWarpLanes) total += sSums[i];
  // Where an axis repeats, its first position stands for all: its stride in d_bias is 0, or its size 1.
  const int32_t s = repeats_along_s ? 0 : slice.keys.begin + thread;
  store_bias(params, {slice.v, slice.batches.begin, slice.heads.begin, slice.queries.begin, s}, total);
}

}  // namespace dhp
