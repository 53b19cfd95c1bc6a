// Forward attention on tensor cores (mma.sync), Ampere and newer.
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
#include "device/product.cuh"
#include "device/rows.cuh"
#include "device/score_tile.cuh"
#include "device/softmax.cuh"
#include "device/store.cuh"
#include "device/tile.cuh"
#include "params.h"

namespace dhp {

template <typename Config>
struct ForwardTiles {
  static constexpr DType kDType = Config::kDType;
  static constexpr int kChannels = Config::kChannels;  // of a tile: D rounded up
  static constexpr int kRowBytes = Config::kRowBytes;
  static constexpr int kWarps = 4;
  static constexpr int kThreads = kWarps * kWarpLanes;
  // Two strips a warp halve what is read of keys and values. Where there is more to do at each score the
  // registers do not suffice for them.
  static constexpr int kStrips =
      kChannels > (Config::kIsWide ? 64 : 128) || Config::kHasScoreOperands ? 1 : 2;
  static constexpr int kWarpRows = kStrips * kMmaRows;
  static constexpr int kQueryRows = kWarps * kWarpRows;
  // The smallest instance goes three times into the registers of an SM of compute capability 8.0 or 9.0.
  static constexpr bool kIsSmall = kRowBytes == 128 && !Config::kHasScoreOperands;
  static constexpr int kBlocksResident = kIsSmall ? 3 : 2;
  static constexpr int kKeyRows = kRowBytes > 512                                ? 16
                                  : kIsSmall                                     ? 48
                                  : Config::kIsWide                              ? 32
                                  : kChannels > 128 && Config::kHasScoreOperands ? 32
                                                                                 : 64;
  // 99 KiB in all, what compute capability 8.6 has.
  static constexpr int kSlots = kChannels > 128 ? 2 : 4;
  static constexpr int kKeyTiles = kKeyRows / kMmaColumns;
  static constexpr int kChannelTiles = kChannels / kMmaColumns;
  static constexpr int kQueryBytes = kQueryRows * kRowBytes;
  static constexpr int kSlotBytes = kKeyRows * kRowBytes;
  static constexpr int kSharedBytes = kQueryBytes + kSlots * kSlotBytes;
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
    ptx::wait_for_copies<Tiles::kSlots - 2>();
    __syncthreads();  // all copies of this tile are seen; all warps are done with the tile before
  }

  __device__ void start(uint32_t tile, const Element<Tiles::kDType>* head, int64_t stride_row, int32_t row) {
    // Past the last tile an empty group keeps the count.
    if (row < end_) {
      copy_tile_async<Tiles::kKeyRows, Tiles::kRowBytes, Tiles::kThreads>(
          tile, head, stride_row, row, static_cast<int32_t>(problem_.shape.S),
          static_cast<int>(problem_.shape.D));
    }
    ptx::close_copy_group();
  }

  const Problem& problem_;
  const Element<Tiles::kDType>*key_, *value_;  // row 0 of the head
  int32_t end_;
  uint32_t pair_;  // shared memory
};

// Grid: one block for each kQueryRows query rows of a head, see first_row_of_block.
template <typename Config>
__global__ void __launch_bounds__(ForwardTiles<Config>::kThreads, ForwardTiles<Config>::kBlocksResident)
    attention_fwd_sm80(const __grid_constant__ ForwardParams params) {
  using Tiles = ForwardTiles<Config>;
  constexpr DType kDType = Tiles::kDType;
  extern __shared__ __align__(kTileAlignment) unsigned char sMemory[];
  const uint32_t sRing = ptx::shared_address(sMemory);
  const uint32_t sQuery = sRing + Tiles::kSlots * Tiles::kSlotBytes;
  const int warp_row = static_cast<int>(threadIdx.x) / kWarpLanes * Tiles::kWarpRows;
  const uint32_t sWarpQuery = sQuery + warp_row * Tiles::kRowBytes;

  const Problem& problem = params.problem;
  const Shape& shape = problem.shape;
  const int32_t num_rows = static_cast<int32_t>(shape.T);
  Place first = first_row_of_block<Tiles>(shape);
  const int32_t last_row = min(first.row + Tiles::kQueryRows, num_rows) - 1;
  const Range seen{keys_seen(problem, first.row).begin / Tiles::kKeyRows * Tiles::kKeyRows,
                   keys_seen(problem, last_row).end};

  copy_own_rows_async<Tiles, Tiles::kQueryRows>(sQuery, problem.query, first, shape, num_rows);
  const Place key_0{first.v, first.b, 0, key_value_head(shape, first.head)};
  // Its first group has the query tile too.
  KeyValueRing<Tiles> ring(problem, key_0, seen.begin, seen.end, sRing);

  first.row += warp_row;
  const ScoreTile<Config, Rows::kQueries, Tiles::kStrips, Tiles::kKeyTiles> score_tile(problem, first);
  OnlineSoftmax softmax[Tiles::kStrips];
  StripSums<Tiles::kStrips, Tiles::kChannelTiles> out = {};
  for (int32_t key = seen.begin; at_head(key < seen.end); key += Tiles::kKeyRows) {
    StripSums<Tiles::kStrips, Tiles::kKeyTiles> scores;
    multiply_rows_by_rows<kDType, Tiles::kRowBytes>(scores, sWarpQuery, ring.take_key(key));
    score_tile.finish_but_scale(scores, key);
    StripFragments<kDType, Tiles::kStrips, Tiles::kKeyTiles> p;
#pragma unroll
    for (int strip = 0; strip < Tiles::kStrips; ++strip) {
      float rescale[kStripRows];
      softmax[strip].take(scores[strip], score_tile.scale_left() * kLog2E, rescale);
#pragma unroll
      for (Sums& sums : out[strip]) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[i] *= rescale[i / 2];
      }
      round_strip<kDType>(p[strip], scores[strip]);
    }
    add_weighted_rows<kDType>(out, p, ring.take_value(key),
                              [&](int k) { return score_tile.real_columns(key, k); });
  }
  // Of the query tile, where no key is seen. Any thread's copies may go to rows of this warp, whose place
  // takes the result.
  ptx::wait_for_copies<0>();
  __syncthreads();
  // Computed again rather than kept in the registers of the loop.
  first = first_row_of_block<Tiles>(shape);
  first.row += thread_of_block<Tiles::kRowBytes>() / kWarpLanes * Tiles::kWarpRows;

  CtMask is_empty[Tiles::kStrips][kStripRows];  // no key took part, or all that did scored -inf
  float factor[Tiles::kStrips][kStripRows];
#pragma unroll
  for (int strip = 0; strip < Tiles::kStrips; ++strip) {
#pragma unroll
    for (int half = 0; half < kStripRows; ++half) {
      const float sum = quad_sum(softmax[strip].sum[half]);
      is_empty[strip][half] = ct_equal(sum, 0.0f);
      factor[strip][half] = ct_reciprocal(sum);
      Place at = first;
      at.row += strip * kMmaRows + half * 8 + thread_of_block<Tiles::kRowBytes>() % kWarpLanes / 4;
      const int64_t index = statistic_index(shape, at);
      if (threadIdx.x % 4 == 0 && at.row < shape.T) {
        // Finite also where nothing was seen and the scale is large.
        params.row_max[index] = fmaxf(softmax[strip].max[half] * score_tile.scale_left(), -FLT_MAX);
        params.log_sum[index] = ct_select(is_empty[strip][half], -INFINITY, ct_log(sum));
      }
    }
  }
  store_strips<kDType>(
      out, [&](int strip, int half) { return factor[strip][half]; },
      [&](int strip, int half) { return ~is_empty[strip][half]; }, sWarpQuery, params.out, first, shape.T,
      shape.D);
}

}  // namespace dhp
