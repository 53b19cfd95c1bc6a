// Gradient of query on tensor cores (mma.sync), Ampere and newer. Needs delta, from attention_bwd_delta
// earlier on the stream.
//
// A block owns kQueryRows query rows of one head, a warp kStrips strips of 16 of them, and goes over the keys
// that they see in tiles:
//
//   S = query . key, dP = d_out . value, P and dS from both in registers, d_query += dS . key
//
// Constant time, as the forward kernel: tiles are chosen by the band alone; masks and lengths choose values
// by selects; key rows past a length are replaced by zeros in registers, in every tile alike.

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

template <typename Config>
struct QueryGradientTiles {
  static constexpr DType kDType = Config::kDType;
  static constexpr int kChannels = Config::kChannels;
  static constexpr int kRowBytes = Config::kRowBytes;
  static constexpr int kWarps = kRowBytes > 512 ? 2 : 4;
  static constexpr int kThreads = kWarps * kWarpLanes;
  static constexpr int kStrips =
      kChannels > (Config::kIsWide ? 64 : 128) || Config::kHasScoreOperands ? 1 : 2;
  static constexpr int kWarpRows = kStrips * kMmaRows;
  static constexpr int kQueryRows = kWarps * kWarpRows;
  static constexpr int kTileRows = Config::kIsWide && kChannels > 64 ? 16 : 32;  // keys
  static constexpr int kKeyTiles = kTileRows / kMmaColumns;
  static constexpr int kChannelTiles = kChannels / kMmaColumns;
  static constexpr bool kOneHead = true;
  static constexpr int kPairs = kChannels > 128 ? 1 : 2;
  static constexpr int kTileBytes = kTileRows * kRowBytes;
  static constexpr int kPairBytes = 2 * kTileBytes;
  static constexpr int kOwnBytes = kQueryRows * kRowBytes;  // of query, of d_out
  static constexpr int kSharedBytes = kPairs * kPairBytes + 2 * kOwnBytes;
  static constexpr int kBlocksResident = 2;
};

// Grid: one block for each kQueryRows query rows of a head, see first_row_of_block.
template <typename Config>
__global__ void __launch_bounds__(QueryGradientTiles<Config>::kThreads,
                                  QueryGradientTiles<Config>::kBlocksResident)
    attention_bwd_query_sm80(const __grid_constant__ BackwardParams params) {
  using Tiles = QueryGradientTiles<Config>;
  constexpr DType kDType = Tiles::kDType;
  extern __shared__ __align__(kTileAlignment) unsigned char sMemory[];
  const uint32_t sRing = ptx::shared_address(sMemory);
  const uint32_t sQuery = sRing + Tiles::kPairs * Tiles::kPairBytes;
  const int warp_row = static_cast<int>(threadIdx.x) / kWarpLanes * Tiles::kWarpRows;
  const auto warp_query = [&] { return warp_part<Tiles::kWarpRows, Tiles::kRowBytes>(sQuery); };

  const Problem& problem = params.problem;
  const Shape& shape = problem.shape;
  const int32_t num_rows = static_cast<int32_t>(shape.T);
  Place first = first_row_of_block<Tiles>(shape);
  const int32_t last_row = min(first.row + Tiles::kQueryRows, num_rows) - 1;
  const int32_t key_begin = keys_seen(problem, first.row).begin / Tiles::kTileRows * Tiles::kTileRows;
  const int32_t key_end = keys_seen(problem, last_row).end;

  copy_own_rows_async<Tiles, Tiles::kQueryRows>(sQuery, problem.query, first, shape, num_rows);
  copy_own_rows_async<Tiles, Tiles::kQueryRows>(sQuery + Tiles::kOwnBytes, params.d_out, first, shape,
                                                num_rows);
  const auto nothing_more = [](uint32_t, int32_t, int32_t) {};
  // Its first group has the rows of the block too.
  PairRing<Tiles> ring(problem.key, problem.value, shape.S, shape.D,
                       {first.v, first.b, 0, key_value_head(shape, first.head)}, {key_begin, key_end, 1},
                       sRing, nothing_more);

  first.row += warp_row;
  const ScoreTile<Config, Rows::kQueries, Tiles::kStrips, Tiles::kKeyTiles> score_tile(problem, first);
  RowFacts facts[Tiles::kStrips][2];
#pragma unroll
  for (int strip = 0; strip < Tiles::kStrips; ++strip) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Place at = first;
      at.row = min(score_tile.row(strip, half), num_rows - 1);
      const int64_t index = statistic_index(shape, at);
      facts[strip][half] = row_facts(params.row_max[index], params.log_sum[index], params.delta[index]);
    }
  }

  StripSums<Tiles::kStrips, Tiles::kChannelTiles> d_query = {};
  for (int32_t key = key_begin; at_head(key < key_end); key += Tiles::kTileRows) {
    const uint32_t sKey = ring.take(nothing_more);
    const uint32_t sValue = sKey + Tiles::kTileBytes;
    StripSums<Tiles::kStrips, Tiles::kKeyTiles> scores, d_p;
    multiply_rows_by_rows<kDType, Tiles::kRowBytes>(scores, warp_query(), sKey);
    multiply_rows_by_rows<kDType, Tiles::kRowBytes>(d_p, warp_query() + Tiles::kOwnBytes, sValue);
    score_tile.finish(scores, key);
    StripFragments<kDType, Tiles::kStrips, Tiles::kKeyTiles> d_scores;
#pragma unroll
    for (int strip = 0; strip < Tiles::kStrips; ++strip) {
#pragma unroll
      for (int tile = 0; tile < Tiles::kKeyTiles; ++tile) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          score_to_gradient(scores[strip][tile][i], d_p[strip][tile][i], facts[strip][i / 2]);
        }
      }
      round_strip<kDType>(d_scores[strip], d_p[strip]);
    }
    add_weighted_rows<kDType>(d_query, d_scores, sKey,
                              [&](int k) { return score_tile.real_columns(key, k); });
  }
  ptx::wait_for_copies<0>();  // of the block's rows, where no key is seen: none may be under way at the end
  __syncthreads();
  first = first_row_of_block<Tiles>(shape);
  first.row += thread_of_block<Tiles::kRowBytes>() / kWarpLanes * Tiles::kWarpRows;
  store_strips<kDType>(
      d_query, [&](int, int) { return problem.scale; },
      [&](int strip, int half) { return ~ct_equal(facts[strip][half].log2_sum, INFINITY); }, warp_query(),
      params.d_query, first, shape.T, shape.D);
}

}  // namespace dhp
