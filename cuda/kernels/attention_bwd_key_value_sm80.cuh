// Gradients of key and value on tensor cores (mma.sync), Ampere and newer. Needs delta, from
// attention_bwd_delta earlier on the stream.
//
// A block owns kKeyRows key rows of one key/value head, a warp kStrips strips of 16 of them, and goes over
// the queries that see them, of one query head of the group after the other, in tiles. Transposed, the
// products leave P and dS where a next product wants its left operand:
//
//   S^T = key . query, dP^T = value . d_out, P^T and dS^T from both in registers,
//   d_value += P^T . d_out, d_key += dS^T . query
//
// One block owns each row of the results and adds in a fixed order: no atomics. Where the sums of both
// gradients do not fit in the registers, one instance makes that of value, another that of key.
//
// Constant time, as the forward kernel: tiles are chosen by the band alone; masks and lengths choose values
// by selects; query and d_out rows past a length are replaced by zeros in registers, in every tile alike.

#pragma once

#include "device/band.cuh"
#include "device/gradient.cuh"
#include "device/pair_ring.cuh"
#include "device/product.cuh"
#include "device/rows.cuh"
#include "device/score.cuh"
#include "device/score_tile.cuh"
#include "device/store.cuh"
#include "device/tile.cuh"
#include "params.h"

namespace dhp {

enum class Gradients { kBoth, kKey, kValue };

// Whether the sums of both gradients fit in the registers.
template <typename Config>
inline constexpr bool kBothFit =
    Config::kChannels <= (Config::kIsWide && Config::kHasScoreOperands ? 64 : 128);

template <typename Config, Gradients kGradients>
struct KeyValueGradientTiles {
  static constexpr DType kDType = Config::kDType;
  static constexpr int kChannels = Config::kChannels;
  static constexpr bool kOfKey = kGradients != Gradients::kValue;
  static constexpr bool kOfValue = kGradients != Gradients::kKey;
  static constexpr int kRowBytes = Config::kRowBytes;
  static constexpr int kWarps = kRowBytes > 512 ? 2 : 4;
  static constexpr int kThreads = kWarps * kWarpLanes;
  static constexpr int kStrips = kRowBytes > 128 || Config::kHasScoreOperands ? 1 : 2;
  static constexpr int kWarpRows = kStrips * kMmaRows;
  static constexpr int kKeyRows = kWarps * kWarpRows;
  static constexpr int kTileRows = Config::kIsWide && kChannels > 64 ? 16 : 32;  // queries
  static constexpr int kQueryTiles = kTileRows / kMmaColumns;
  static constexpr int kChannelTiles = kChannels / kMmaColumns;
  static constexpr bool kOneHead = false;  // those of the group
  static constexpr int kPairs = kChannels > 128 ? 1 : 2;
  static constexpr int kTileBytes = kTileRows * kRowBytes;
  static constexpr int kPairBytes = 2 * kTileBytes;
  static constexpr int kOwnBytes = kKeyRows * kRowBytes;  // of key, of value
  static constexpr int kStatisticBytes = kTileRows * 4;   // of row_max, of log_sum, of delta
  static constexpr int kFactBytes = 3 * kStatisticBytes;
  static constexpr int kSharedBytes = kPairs * (kPairBytes + kFactBytes) + 2 * kOwnBytes;
  static constexpr int kBlocksResident = 2;
};

// The first key row of the block. Blocks count along rows, then heads, batch and V: a causal block has more
// work the earlier its rows are.
template <typename Tiles>
__device__ Place first_key_of_block(const Shape& shape) {
  Place first = place_of_block((shape.S + Tiles::kKeyRows - 1) / Tiles::kKeyRows, shape.K, shape.B);
  first.row *= Tiles::kKeyRows;
  return first;
}

// Starts the copies of row_max, log_sum and delta of a tile of queries; zeros past the last.
template <typename Tiles>
__device__ void copy_statistics_async(const BackwardParams& params, const Place& query, uint32_t sFacts) {
  const int thread = thread_of_block<Tiles::kRowBytes>();
  const int which = thread / Tiles::kTileRows, row = thread % Tiles::kTileRows;
  static_assert(Tiles::kThreads >= 3 * Tiles::kTileRows);
  if (which > 2) return;
  const float* const statistic = which == 0 ? params.row_max : which == 1 ? params.log_sum : params.delta;
  const Place at{query.v, query.b, query.row + row, query.head};
  ptx::copy_4_async(sFacts + which * Tiles::kStatisticBytes + 4 * row,
                    statistic + statistic_index(params.problem.shape, at),
                    at.row < params.problem.shape.T ? 4 : 0);
}

// S^T and dP^T of a tile become P^T and dS^T. A query is a column; what is known of it comes from shared
// memory.
template <typename Tiles, int kStrips, int kTiles>
__device__ void scores_to_gradients(StripSums<kStrips, kTiles>& scores, StripSums<kStrips, kTiles>& d_p,
                                    uint32_t sFacts) {
  const uint32_t lane_place = sFacts + thread_of_block<Tiles::kRowBytes>() % 4 * 8;
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    const uint32_t place = lane_place + tile * kMmaColumns * 4;
    const float2 max = ptx::load_shared_2(place);
    const float2 log_sum = ptx::load_shared_2(place + Tiles::kStatisticBytes);
    const float2 delta = ptx::load_shared_2(place + 2 * Tiles::kStatisticBytes);
    const RowFacts facts[2] = {row_facts(max.x, log_sum.x, delta.x), row_facts(max.y, log_sum.y, delta.y)};
#pragma unroll
    for (int strip = 0; strip < kStrips; ++strip) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        score_to_gradient(scores[strip][tile][i], d_p[strip][tile][i], facts[i % 2]);
    }
  }
}

// Grid: one block for each kKeyRows key rows of a key/value head, see first_key_of_block.
template <typename Config, Gradients kGradients>
__global__ void __launch_bounds__(KeyValueGradientTiles<Config, kGradients>::kThreads,
                                  KeyValueGradientTiles<Config, kGradients>::kBlocksResident)
    attention_bwd_key_value_sm80(const __grid_constant__ BackwardParams params) {
  using Tiles = KeyValueGradientTiles<Config, kGradients>;
  constexpr DType kDType = Tiles::kDType;
  constexpr int kTurn = Tiles::kPairs == 2 ? Tiles::kPairBytes : 0;
  extern __shared__ __align__(kTileAlignment) unsigned char sMemory[];
  const uint32_t sRing = ptx::shared_address(sMemory);
  const uint32_t sKey = sRing + Tiles::kPairs * Tiles::kPairBytes;
  const uint32_t sFacts = sKey + 2 * Tiles::kOwnBytes;
  const int warp_row = static_cast<int>(threadIdx.x) / kWarpLanes * Tiles::kWarpRows;
  const auto warp_key = [&] { return warp_part<Tiles::kWarpRows, Tiles::kRowBytes>(sKey); };
  const auto warp_value = [&] { return warp_key() + Tiles::kOwnBytes; };

  const Problem& problem = params.problem;
  const Shape& shape = problem.shape;
  const int32_t num_rows = static_cast<int32_t>(shape.S);
  Place first = first_key_of_block<Tiles>(shape);
  const int32_t last_row = min(first.row + Tiles::kKeyRows, num_rows) - 1;
  const int32_t group = group_size(shape);
  const int32_t first_head = first.head * group;
  const int32_t query_begin = queries_seeing(problem, first.row).begin / Tiles::kTileRows * Tiles::kTileRows;
  const int32_t query_end = queries_seeing(problem, last_row).end;

  copy_own_rows_async<Tiles, Tiles::kKeyRows>(sKey, problem.key, first, shape, num_rows);
  copy_own_rows_async<Tiles, Tiles::kKeyRows>(sKey + Tiles::kOwnBytes, problem.value, first, shape, num_rows);
  const auto facts_of = [&](uint32_t pair) { return sFacts + (pair & kTurn ? Tiles::kFactBytes : 0); };
  const auto start_statistics = [&](uint32_t pair, int32_t head, int32_t row) {
    copy_statistics_async<Tiles>(params, {first.v, first.b, row, first_head + head}, facts_of(pair));
  };
  // Its first group has the rows of the block too.
  PairRing<Tiles> ring(problem.query, params.d_out, shape.T, shape.D, {first.v, first.b, 0, first_head},
                       {query_begin, query_end, group}, sRing, start_statistics);

  StripSums<Tiles::kStrips, Tiles::kChannelTiles> d_key = {}, d_value = {};
  for (int32_t head = 0; at_head(head < group); ++head) {
    const Place warp_first{first.v, first.b, first.row + warp_row, first_head + head};
    const ScoreTile<Config, Rows::kKeys, Tiles::kStrips, Tiles::kQueryTiles> score_tile(problem, warp_first);
    for (int32_t query = query_begin; at_head(query < query_end); query += Tiles::kTileRows) {
      const uint32_t sQuery = ring.take(start_statistics);
      const uint32_t sDOut = sQuery + Tiles::kTileBytes;
      const auto kept = [&](int k) { return score_tile.real_columns(query, k); };
      StripSums<Tiles::kStrips, Tiles::kQueryTiles> scores, d_p = {};
      multiply_rows_by_rows<kDType, Tiles::kRowBytes>(scores, warp_key(), sQuery);
      if constexpr (Tiles::kOfKey) multiply_rows_by_rows<kDType, Tiles::kRowBytes>(d_p, warp_value(), sDOut);
      score_tile.finish(scores, query);
      scores_to_gradients<Tiles>(scores, d_p, facts_of(sQuery));
      StripFragments<kDType, Tiles::kStrips, Tiles::kQueryTiles> rounded;
      if constexpr (Tiles::kOfValue) {
#pragma unroll
        for (int strip = 0; strip < Tiles::kStrips; ++strip)
          round_strip<kDType>(rounded[strip], scores[strip]);
        add_weighted_rows<kDType>(d_value, rounded, sDOut, kept);
      }
      if constexpr (Tiles::kOfKey) {
#pragma unroll
        for (int strip = 0; strip < Tiles::kStrips; ++strip) round_strip<kDType>(rounded[strip], d_p[strip]);
        add_weighted_rows<kDType>(d_key, rounded, sQuery, kept);
      }
    }
  }
  ptx::wait_for_copies<0>();  // of the block's rows, where no query sees them: none may be under way at the
                              // end
  __syncthreads();
  first = first_key_of_block<Tiles>(shape);
  first.row += thread_of_block<Tiles::kRowBytes>() / kWarpLanes * Tiles::kWarpRows;
  const ScoreTile<Config, Rows::kKeys, Tiles::kStrips, Tiles::kQueryTiles> rows(problem, first);
  const auto is_real = [&](int strip, int half) { return rows.row_is_real(rows.row(strip, half)); };
  if constexpr (Tiles::kOfKey) {
    store_strips<kDType>(
        d_key, [&](int, int) { return problem.scale; }, is_real, warp_key(), params.d_key, first, shape.S,
        shape.D);
  }
  if constexpr (Tiles::kOfValue) {
    store_strips<kDType>(
        d_value, [](int, int) { return 1.0f; }, is_real, warp_value(), params.d_value, first, shape.S,
        shape.D);
  }
}

}  // namespace dhp
