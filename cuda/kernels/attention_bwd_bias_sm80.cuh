// Gradient of bias on tensor cores (mma.sync), Ampere and newer: dS, summed over every axis along which bias
// repeats. Needs delta, from attention_bwd_delta earlier on the stream.
//
// A block owns a tile of the gradient, kQueryRows by kKeyRows, or a row, a column or one element of it where
// bias repeats along T or S. It goes over all tiles of scores that share it, of one batch and head after the
// other, and adds their dS in registers; at the end rows or columns that are one are added up. One block owns
// each element and adds in a fixed order: no atomics.
//
// Constant time, as the other backward kernels: which tiles are computed follows from shapes and the band;
// masks and lengths choose values by selects.

#pragma once

#include "device/band.cuh"
#include "device/gradient.cuh"
#include "device/product.cuh"
#include "device/rows.cuh"
#include "device/score.cuh"
#include "device/score_tile.cuh"
#include "device/tile.cuh"
#include "params.h"

namespace dhp {

template <typename Config>
struct BiasGradientTiles {
  static constexpr DType kDType = Config::kDType;
  static constexpr int kRowBytes = Config::kRowBytes;
  static constexpr int kWarps = kRowBytes > 512 ? 2 : 4;
  static constexpr int kThreads = kWarps * kWarpLanes;
  static constexpr int kQueryRows = kWarps * kMmaRows;
  // 99 KiB in all, what compute capability 8.6 has.
  static constexpr int kKeyRows = kRowBytes > 512 ? 16 : kRowBytes > 256 ? 32 : 64;
  static constexpr int kKeyTiles = kKeyRows / kMmaColumns;
  static constexpr int kQueryBytes = kQueryRows * kRowBytes;  // of query, of d_out
  static constexpr int kKeyBytes = kKeyRows * kRowBytes;      // of key, of value
  static constexpr int kSharedBytes = 2 * (kQueryBytes + kKeyBytes);
  static constexpr int kBlocksResident = 2;
};

// What one block adds up, and where its first element lies.
struct BiasSlice {
  int32_t v;
  Range batches, heads, queries, keys;
};

// The index-th `step` of an axis of d_bias covers this much of the same axis of the scores.
__device__ inline Range covered(int32_t index, int32_t step, int64_t bias_size, int64_t size) {
  const int32_t end = static_cast<int32_t>(size);
  return bias_size == 1 ? Range{0, end} : Range{index * step, min((index + 1) * step, end)};
}

// Blocks count along S in tiles, then T in tiles, N, B and V.
template <typename Tiles>
__device__ BiasSlice slice_of_block(const Shape& shape, const Shape& bias) {
  const auto num_tiles = [](int64_t size, int rows) { return (size + rows - 1) / rows; };
  uint32_t rest = ptx::block_index();
  const int32_t key_tile = take_index(rest, num_tiles(bias.S, Tiles::kKeyRows));
  const int32_t query_tile = take_index(rest, num_tiles(bias.T, Tiles::kQueryRows));
  const int32_t head = take_index(rest, bias.N);
  const int32_t batch = take_index(rest, bias.B);
  return {.v = static_cast<int32_t>(rest),
          .batches = covered(batch, 1, bias.B, shape.B),
          .heads = covered(head, 1, bias.N, shape.N),
          .queries = covered(query_tile, Tiles::kQueryRows, bias.T, shape.T),
          .keys = covered(key_tile, Tiles::kKeyRows, bias.S, shape.S)};
}

// The statistics of a row; those of a row that does not exist make every dS 0.
__device__ inline RowFacts load_facts(const BiasBackwardParams& params, Place at, int32_t num_rows) {
  const bool exists = at.row < num_rows;
  at.row = min(at.row, num_rows - 1);
  const int64_t index = statistic_index(params.problem.shape, at);
  const RowFacts facts = row_facts(params.row_max[index], params.log_sum[index], params.delta[index]);
  return {exists ? facts.max : 0.0f, exists ? facts.log2_sum : INFINITY, exists ? facts.delta : 0.0f};
}

// Adds dS of one tile of scores, whose four tiles of operands are in shared memory.
//   sQuery  query, then d_out
//   sKey    key, then value
template <typename Config>
__device__ void add_score_gradients(Sums (&sums)[BiasGradientTiles<Config>::kKeyTiles],
                                    const BiasBackwardParams& params, const Place& warp, int32_t key,
                                    uint32_t sQuery, uint32_t sKey) {
  using Tiles = BiasGradientTiles<Config>;
  constexpr DType kDType = Tiles::kDType;
  const ScoreTile<Config, Rows::kQueries, 1, Tiles::kKeyTiles> score_tile(params.problem, warp);
  const uint32_t sWarp = warp_part<kMmaRows, Tiles::kRowBytes>(sQuery);
  StripSums<1, Tiles::kKeyTiles> scores, d_p;
  multiply_rows_by_rows<kDType, Tiles::kRowBytes>(scores, sWarp, sKey);
  multiply_rows_by_rows<kDType, Tiles::kRowBytes>(d_p, sWarp + Tiles::kQueryBytes, sKey + Tiles::kKeyBytes);
  score_tile.finish(scores, key);
  const int32_t num_rows = static_cast<int32_t>(params.problem.shape.T);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const Place at{warp.v, warp.b, score_tile.row(0, half), warp.head};
    const RowFacts facts = load_facts(params, at, num_rows);
#pragma unroll
    for (int tile = 0; tile < Tiles::kKeyTiles; ++tile) {
#pragma unroll
      for (int column = 0; column < 2; ++column) {
        const int i = 2 * half + column;
        score_to_gradient(scores[0][tile][i], d_p[0][tile][i], facts);
        sums[tile][i] += d_p[0][tile][i];
      }
    }
  }
}

__device__ inline void store_bias(const BiasBackwardParams& params, const ScorePlace& at, float value) {
  const int64_t offset = offset_in(params.d_bias, at);
  void* const data = params.d_bias.data;
  if (params.problem.bias_dtype == DType::kFloat32) {
    static_cast<float*>(data)[offset] = value;
    return;
  }
  const bool is_bfloat16 = params.problem.bias_dtype == DType::kBFloat16;
  const uint32_t as_bfloat16 = pack<DType::kBFloat16>(value, 0.0f),
                 as_float16 = pack<DType::kFloat16>(value, 0.0f);
  static_cast<uint16_t*>(data)[offset] = static_cast<uint16_t>(is_bfloat16 ? as_bfloat16 : as_float16);
}

// Adds up what each element of d_bias stands for, and writes it. All threads of the block take part.
//   sSums  [kQueryRows][kKeyRows] shared, which nothing else is read from any more
template <typename Tiles>
__device__ void store_slice(const Sums (&sums)[Tiles::kKeyTiles], const BiasBackwardParams& params,
                            const BiasSlice& slice, float* sSums) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarpLanes;
#pragma unroll
  for (int i = 0; i < 4 * Tiles::kKeyTiles; ++i) {
    const int row = thread / kWarpLanes * kMmaRows + lane / 4 + i / 2 % 2 * 8;
    const int column = i / 4 * kMmaColumns + lane % 4 * 2 + i % 2;
    sSums[row * Tiles::kKeyRows + column] = sums[i / 4][i % 4];
  }
  __syncthreads();
  // Where bias repeats along an axis, its first position stands for all: its stride in d_bias is 0, or its
  // size 1. Sums past the last position are 0.
  const bool repeats_along_t = params.bias_shape.T == 1, repeats_along_s = params.bias_shape.S == 1;
  const int num_rows = repeats_along_t ? 1 : slice.queries.end - slice.queries.begin;
  const int num_columns = repeats_along_s ? 1 : slice.keys.end - slice.keys.begin;
  const int rows_added = repeats_along_t ? Tiles::kQueryRows : 1;
  const int columns_added = repeats_along_s ? Tiles::kKeyRows : 1;
  for (int element = thread; element < num_rows * num_columns; element += Tiles::kThreads) {
    const int row = element / num_columns, column = element % num_columns;
    float total = 0.0f;
    for (int i = row; i < row + rows_added; ++i) {
      for (int j = column; j < column + columns_added; ++j) total += sSums[i * Tiles::kKeyRows + j];
    }
    store_bias(params,
               {slice.v, slice.batches.begin, slice.heads.begin, slice.queries.begin + row,
                slice.keys.begin + column},
               total);
  }
}

// Grid: one block a BiasSlice.
template <typename Config>
__global__ void __launch_bounds__(BiasGradientTiles<Config>::kThreads,
                                  BiasGradientTiles<Config>::kBlocksResident)
    attention_bwd_bias_sm80(const __grid_constant__ BiasBackwardParams params) {
  using Tiles = BiasGradientTiles<Config>;
  extern __shared__ __align__(kTileAlignment) unsigned char sMemory[];
  const uint32_t sQuery = ptx::shared_address(sMemory);
  const uint32_t sKey = sQuery + 2 * Tiles::kQueryBytes;
  const Problem& problem = params.problem;
  const Shape& shape = problem.shape;
  const int32_t num_queries = static_cast<int32_t>(shape.T), num_keys = static_cast<int32_t>(shape.S);
  const BiasSlice slice = slice_of_block<Tiles>(shape, params.bias_shape);
  const int warp_row = static_cast<int>(threadIdx.x) / kWarpLanes * kMmaRows;

  Sums sums[Tiles::kKeyTiles] = {};
  for (int32_t b = slice.batches.begin; at_head(b < slice.batches.end); ++b) {
    for (int32_t n = slice.heads.begin; at_head(n < slice.heads.end); ++n) {
      for (int32_t t = slice.queries.begin; at_head(t < slice.queries.end); t += Tiles::kQueryRows) {
        const Place query{slice.v, b, t, n};
        const int32_t last = min(t + Tiles::kQueryRows, num_queries) - 1;
        const Range seen{keys_seen(problem, t).begin, keys_seen(problem, last).end};
        for (int32_t s = slice.keys.begin; at_head(s < slice.keys.end); s += Tiles::kKeyRows) {
          if (s >= seen.end || s + Tiles::kKeyRows <= seen.begin) continue;  // hidden by the band: public
          const Place key{slice.v, b, s, key_value_head(shape, n)};
          __syncthreads();  // all warps are done with the tiles before
          copy_own_rows_async<Tiles, Tiles::kQueryRows>(sQuery, problem.query, query, shape, num_queries);
          copy_own_rows_async<Tiles, Tiles::kQueryRows>(sQuery + Tiles::kQueryBytes, params.d_out, query,
                                                        shape, num_queries);
          copy_own_rows_async<Tiles, Tiles::kKeyRows>(sKey, problem.key, key, shape, num_keys);
          copy_own_rows_async<Tiles, Tiles::kKeyRows>(sKey + Tiles::kKeyBytes, problem.value, key, shape,
                                                      num_keys);
          ptx::close_copy_group();
          ptx::wait_for_copies<0>();
          __syncthreads();  // all copies are seen
          add_score_gradients<Config>(sums, params, {slice.v, b, t + warp_row, n}, s, sQuery, sKey);
        }
      }
    }
  }
  __syncthreads();
  store_slice<Tiles>(sums, params, slice, reinterpret_cast<float*>(sMemory));
}

}  // namespace dhp
