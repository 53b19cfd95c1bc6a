// Forward attention on tensor cores (mma.sync), for operands of 16 bits, Ampere and newer.
//
// A block owns kQueryRows query rows of one head, a warp kStrips strips of 16 of them. Keys and values come
// in tiles of kKeyRows rows through a ring of kSlots places in shared memory: key tile, value tile, key tile,
// ...
//
//   step 2 i      scores = query . key over tile i; online softmax; P rounded to the operands' dtype
//   step 2 i + 1  out = rescale * out + P . value over tile i
//
// At each step the block waits for the tile, meets, and starts the copy of the tile kSlots - 1 steps ahead,
// into the place that was read in the step before: the meeting has shown that no warp reads it any more.
//
// Constant time: tiles are chosen by the band alone. Masks and lengths choose scores by selects, and
// value rows past a length are replaced by zeros in registers, in every tile alike.

#pragma once

#include "device/band.cuh"
#include "device/rows.cuh"
#include "device/score_tile.cuh"
#include "device/softmax.cuh"
#include "device/tile.cuh"
#include "params.h"

namespace dhp {

template <typename Config>
struct ForwardTiles {
  static constexpr DType kDType = Config::kDType;
  static constexpr int kChannels = Config::kChannels;  // of a tile: D rounded up
  static constexpr int kWarps = 4;
  static constexpr int kThreads = kWarps * kWarpLanes;
  // Two strips a warp halve what is read of keys and values. Where there is more to do at each score the
  // registers do not suffice for them.
  static constexpr int kStrips = kChannels > 128 || Config::kHasScoreOperands ? 1 : 2;
  static constexpr int kWarpRows = kStrips * kMmaRows;
  static constexpr int kQueryRows = kWarps * kWarpRows;
  static constexpr int kKeyRows = kChannels > 128 && Config::kHasScoreOperands ? 32 : 64;
  static constexpr int kSlots = kChannels > 128 ? 2 : 4;  // 99 KiB in all, what compute capability 8.6 has
  static constexpr int kKeyTiles = kKeyRows / kMmaColumns;
  static constexpr int kChannelTiles = kChannels / kMmaColumns;
  static constexpr int kQueryBytes = kQueryRows * kChannels * 2;
  static constexpr int kSlotBytes = kKeyRows * kChannels * 2;
  static constexpr int kSharedBytes = kQueryBytes + kSlots * kSlotBytes;
  static constexpr int kBlocksResident = 2;  // on an SM of compute capability 8.0 or 9.0
};

// The ring of key and value tiles of one block: key, value, key, ... A pair of places holds the tiles of one
// step over the keys; with four places two pairs take turns.
template <typename Tiles>
class KeyValueRing {
 public:
  //   row_0  of the head
  //   first  position of the first tile; none has its begin at `end` or later
  __device__ KeyValueRing(const Problem& problem, const Place& row_0, int32_t first, int32_t end,
                          uint32_t shared)
      : problem_(problem),
        key_(row_at<Tiles::kDType>(problem.key, row_0)),
        value_(row_at<Tiles::kDType>(problem.value, row_0)),
        end_(end),
        pair_(shared) {
    start(pair_, key_, problem.key.stride_row, first);
    if constexpr (kPairs == 2) {
      start(pair_ + Tiles::kSlotBytes, value_, problem.value.stride_row, first);
      start(pair_ ^ kTurn, key_, problem.key.stride_row, first + Tiles::kKeyRows);
    }
  }

  // Waits until the key tile at `key` is there for all warps, and starts the copy of the value tile that
  // takes the place of the one before it. The address of the tile.
  __device__ uint32_t take_key(int32_t key) {
    meet();
    start((kPairs == 2 ? pair_ ^ kTurn : pair_) + Tiles::kSlotBytes, value_, problem_.value.stride_row,
          key + (kPairs - 1) * Tiles::kKeyRows);
    return pair_;
  }
  // The same for the value tile at `key`, and the next key tile but kPairs - 1. Called after take_key.
  __device__ uint32_t take_value(int32_t key) {
    meet();
    start(pair_, key_, problem_.key.stride_row, key + kPairs * Tiles::kKeyRows);
    const uint32_t tile = pair_ + Tiles::kSlotBytes;
    if constexpr (kPairs == 2) pair_ ^= kTurn;
    return tile;
  }

 private:
  static constexpr int kPairs = Tiles::kSlots / 2;
  static constexpr uint32_t kTurn =
      2 * Tiles::kSlotBytes;  // between two pairs, at multiples of twice as much

  __device__ static void meet() {
    wait_for_copies<Tiles::kSlots - 2>();
    __syncthreads();  // all copies of this tile are seen; all warps are done with the tile before
  }

  __device__ void start(uint32_t tile, const Element<Tiles::kDType>* head, int64_t stride_row, int32_t row) {
    // Past the last tile an empty group keeps the count.
    if (row < end_) {
      copy_tile_async<Tiles::kKeyRows, Tiles::kChannels, Tiles::kThreads>(
          tile, head, stride_row, row, static_cast<int32_t>(problem_.shape.S),
          static_cast<int>(problem_.shape.D));
    }
    close_copy_group();
  }

  const Problem& problem_;
  const Element<Tiles::kDType>*key_, *value_;  // row 0 of the head
  int32_t end_;
  uint32_t pair_;  // shared memory
};

// scores = query . key, a strip after the other.
//   sQuery  tile of the warp's query rows
template <typename Tiles>
__device__ void multiply_query_key(Sums (&scores)[Tiles::kStrips][Tiles::kKeyTiles], uint32_t sQuery,
                                   uint32_t sKey) {
  const uint32_t query_place = lane_in_rows<Tiles::kChannels>(sQuery);
  const uint32_t key_place = lane_in_columns<Tiles::kChannels>(sKey);
#pragma unroll
  for (int strip = 0; strip < Tiles::kStrips; ++strip) {
#pragma unroll
    for (int tile = 0; tile < Tiles::kKeyTiles; ++tile) {
#pragma unroll
      for (float& sum : scores[strip][tile]) sum = 0.0f;
    }
  }
#pragma unroll
  for (int k = 0; k < Tiles::kChannels / kMmaDepth; ++k) {
    Fragment query[Tiles::kStrips];
#pragma unroll
    for (int strip = 0; strip < Tiles::kStrips; ++strip) {
      load_matrices(query[strip], fragment_at<Tiles::kChannels>(query_place, strip * kMmaRows, k));
    }
#pragma unroll
    for (int tile = 0; tile < Tiles::kKeyTiles; tile += 2) {
      Fragment key;
      load_matrices(key, fragment_at<Tiles::kChannels>(key_place, tile * kMmaColumns, k));
#pragma unroll
      for (int strip = 0; strip < Tiles::kStrips; ++strip) {
        multiply_add<Tiles::kDType>(scores[strip][tile], query[strip], key[0], key[1]);
        multiply_add<Tiles::kDType>(scores[strip][tile + 1], query[strip], key[2], key[3]);
      }
    }
  }
}

// out += p . value. `kept` gives, for each 16 value rows, the words that keep of each register what counts.
template <typename Tiles, typename Kept>
__device__ void multiply_p_value(Sums (&out)[Tiles::kStrips][Tiles::kChannelTiles],
                                 const Fragment (&p)[Tiles::kStrips][Tiles::kKeyRows / kMmaDepth],
                                 uint32_t sValue, Kept kept) {
  const uint32_t value_place = lane_in_rows<Tiles::kChannels>(sValue);
#pragma unroll
  for (int k = 0; k < Tiles::kKeyRows / kMmaDepth; ++k) {
    const uint2 keep = kept(k);
#pragma unroll
    for (int tile = 0; tile < Tiles::kChannelTiles; tile += 2) {
      Fragment value;
      load_matrices_transposed(value, fragment_at<Tiles::kChannels>(value_place, k * kMmaDepth, tile / 2));
      value[0] &= keep.x, value[2] &= keep.x;
      value[1] &= keep.y, value[3] &= keep.y;
#pragma unroll
      for (int strip = 0; strip < Tiles::kStrips; ++strip) {
        multiply_add<Tiles::kDType>(out[strip][tile], p[strip][k], value[0], value[1]);
        multiply_add<Tiles::kDType>(out[strip][tile + 1], p[strip][k], value[2], value[3]);
      }
    }
  }
}

// Writes the rows of a warp, and their statistics.
//   sRows  the warp's place for its rows of the result, kWarpRows of a tile
template <typename Tiles>
__device__ void store_rows(const ForwardParams& params, const Place& first,
                           Sums (&out)[Tiles::kStrips][Tiles::kChannelTiles],
                           const OnlineSoftmax (&softmax)[Tiles::kStrips], float row_max_scale,
                           uint32_t sRows) {
  constexpr DType kDType = Tiles::kDType;
  const Shape& shape = params.problem.shape;
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  Place at = first;
#pragma unroll
  for (int strip = 0; strip < Tiles::kStrips; ++strip) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = strip * kMmaRows + half * 8 + lane / 4;
      const float sum = quad_sum(softmax[strip].sum[half]);
      const CtMask is_empty = ct_equal(sum, 0.0f);  // no key took part, or all that did scored -inf
      const float factor = ct_reciprocal(sum);
#pragma unroll
      for (int tile = 0; tile < Tiles::kChannelTiles; ++tile) {
        const float left = ct_keep(~is_empty, factor * out[strip][tile][2 * half]);
        const float right = ct_keep(~is_empty, factor * out[strip][tile][2 * half + 1]);
        store_shared(chunk_at<Tiles::kChannels>(sRows, row, tile) + 4 * (lane % 4),
                     pack<kDType>(left, right));
      }
      at.row = first.row + row;
      const int64_t index = statistic_index(shape, at);
      if (lane % 4 == 0 && at.row < shape.T) {
        // Finite also where nothing was seen and the scale is large.
        params.row_max[index] = fmaxf(softmax[strip].max[half] * row_max_scale, -FLT_MAX);
        params.log_sum[index] = ct_select(is_empty, -INFINITY, ct_log(sum));
      }
    }
  }
  __syncwarp();
  store_tile<kDType, Tiles::kWarpRows, Tiles::kChannels>(
      sRows, params.out, first, static_cast<int32_t>(shape.T), static_cast<int>(shape.D));
}

// The first query row of the block. Blocks count along rows, the last first (a causal block has more work the
// later its rows are, and long ones must not come last), then heads, batch and V.
template <typename Tiles>
__device__ Place first_row_of_block(const Shape& shape) {
  const int32_t num_blocks = (static_cast<int32_t>(shape.T) + Tiles::kQueryRows - 1) / Tiles::kQueryRows;
  Place first = place_of_block(num_blocks, shape.N, shape.B);
  first.row = (num_blocks - 1 - first.row) * Tiles::kQueryRows;
  return first;
}

// Grid: one block for each kQueryRows query rows of a head, see first_row_of_block.
template <typename Config>
__global__ void __launch_bounds__(ForwardTiles<Config>::kThreads, ForwardTiles<Config>::kBlocksResident)
    attention_fwd_sm80(const __grid_constant__ ForwardParams params) {
  using Tiles = ForwardTiles<Config>;
  constexpr DType kDType = Tiles::kDType;
  extern __shared__ __align__(kTileAlignment) unsigned char sMemory[];
  const uint32_t sRing = shared_address(sMemory);
  const uint32_t sQuery = sRing + Tiles::kSlots * Tiles::kSlotBytes;
  const int warp_row = static_cast<int>(threadIdx.x) / kWarpLanes * Tiles::kWarpRows;
  const uint32_t sWarpQuery = sQuery + warp_row * Tiles::kChannels * 2;

  const Problem& problem = params.problem;
  const Shape& shape = problem.shape;
  const int32_t num_rows = static_cast<int32_t>(shape.T);
  Place first = first_row_of_block<Tiles>(shape);
  const int32_t last_row = min(first.row + Tiles::kQueryRows, num_rows) - 1;
  const Range seen{keys_seen(problem, first.row).begin / Tiles::kKeyRows * Tiles::kKeyRows,
                   keys_seen(problem, last_row).end};

  copy_tile_async<Tiles::kQueryRows, Tiles::kChannels, Tiles::kThreads>(
      sQuery, row_at<kDType>(problem.query, {first.v, first.b, 0, first.head}), problem.query.stride_row,
      first.row, num_rows, static_cast<int>(shape.D));
  const Place key_0{first.v, first.b, 0, key_value_head(shape, first.head)};
  // Its first group has the query tile too.
  KeyValueRing<Tiles> ring(problem, key_0, seen.begin, seen.end, sRing);

  first.row += warp_row;
  ScoreTile<Config, Tiles> score_tile(problem, first);
  OnlineSoftmax softmax[Tiles::kStrips];
  Sums out[Tiles::kStrips][Tiles::kChannelTiles] = {};
  for (int32_t key = seen.begin; at_head(key < seen.end); key += Tiles::kKeyRows) {
    Sums scores[Tiles::kStrips][Tiles::kKeyTiles];
    multiply_query_key<Tiles>(scores, sWarpQuery, ring.take_key(key));
    score_tile.finish(scores, key);
    Fragment p[Tiles::kStrips][Tiles::kKeyRows / kMmaDepth];
#pragma unroll
    for (int strip = 0; strip < Tiles::kStrips; ++strip) {
      float rescale[kStripRows];
      softmax[strip].take(scores[strip], score_tile.exponent_scale(), rescale);
#pragma unroll
      for (Sums& sums : out[strip]) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[i] *= rescale[i / 2];
      }
#pragma unroll
      for (int k = 0; k < Tiles::kKeyRows / kMmaDepth; ++k) {
        as_left_operand<kDType>(p[strip][k], scores[strip][2 * k], scores[strip][2 * k + 1]);
      }
    }
    multiply_p_value<Tiles>(out, p, ring.take_value(key), [&](int k) {
      return Config::kHasScoreOperands ? score_tile.real_rows(key, k) : uint2{~0u, ~0u};
    });
  }
  wait_for_copies<0>();  // of the query tile, where no key is seen
  __syncthreads();       // the query tile is read; its place takes the result
  // Computed again rather than kept in the registers of the loop.
  Place warp_first = first_row_of_block<Tiles>(shape);
  warp_first.row += warp_row;
  store_rows<Tiles>(params, warp_first, out, softmax, score_tile.row_max_scale(), sWarpQuery);
}

}  // namespace dhp
