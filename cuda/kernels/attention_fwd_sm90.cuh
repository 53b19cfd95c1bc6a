// Forward attention on the tensor cores of Hopper (wgmma), with tensor copies.
//
// A block owns kQueryRows query rows of one head, each warpgroup 64 of them. Key and value tiles come through
// two rings, from the last tile that is seen to the first. For each tile a warpgroup does
//
//   1  scores = query . key                              wgmma
//   2  running maximum; P = exp2(c score - reference), rounded to the operands' dtype; out *= rescale
//   3  out += P . value                                  wgmma
//
// either one after the other, so that the products of one warpgroup run beside the softmax of the others, or
// (kOverlaps) with the scores of the next tile and P . value of this one beside the softmax between. With 64
// channels P is also multiplied by a column of ones: the product then has the sum of a row too.
//
// Who waits for whom: a copy announces its bytes to the barrier of its place, at which all threads wait
// before they read; one thread of each warpgroup arrives at another when its warpgroup has read, and the
// copying thread waits there before it fills the place again. It is a thread of a warpgroup of its own or,
// where four warpgroups leave no registers for that, one of the last warpgroup, which sees most keys.
//
// Constant time: tiles are chosen by the band alone, and the rescale runs on every tile.

#pragma once

#include "device/band.cuh"
#include "device/fused_softmax.cuh"
#include "device/rows.cuh"
#include "device/score_tile.cuh"
#include "device/tile_ring.cuh"
#include "device/wgmma.cuh"
#include "params.h"

namespace dhp {

template <typename Config>
struct HopperForwardTiles {
  static constexpr DType kDType = Config::kDType;
  static constexpr int kChannels = Config::kChannels;
  static constexpr int kRowBytes = Config::kRowBytes;
  static constexpr bool kHasBand = Config::kHasBand;
  static constexpr int kColumns = kChannels / kBoxChannels;  // of 64 channels
  // As many warpgroups as the registers of an SM allow; what is measured is in DECISIONS.
  static constexpr int kGroups = kChannels == 64 ? 4 : kChannels == 128 && kHasBand ? 3 : 2;
  static constexpr bool kHasProducer = kChannels > 64;
  static constexpr bool kOverlaps = kGroups == 2;
  static constexpr int kProducerRegisters = kGroups == 2 ? 24 : 32,
                       kConsumerRegisters = kGroups == 2 ? 240 : 160;
  static constexpr int kThreads = (kGroups + kHasProducer) * kGroupThreads;
  static constexpr int kQueryRows = kGroups * kGroupRows;
  static constexpr int kKeyRows = kChannels == 256 ? 80 : kGroups == 2 ? 176 : 128;
  static constexpr int kStages = kChannels == 64 ? 4 : 2;
  static constexpr int kAhead = kStages / 2;  // tiles between the copy of one and its use
  static constexpr int kKeyTiles = kKeyRows / kMmaColumns;
  static constexpr int kDepth = kKeyRows / kMmaDepth<kDType>;
  static constexpr int kChannelTiles = kChannels / kMmaColumns;
  static constexpr bool kHasOnes = kChannels == 64;
  static constexpr int kOutTiles = kChannelTiles + kHasOnes;

  // Shared memory, in bytes from its begin.
  static constexpr int kQueryBytes = kGroupRows * kRowBytes;  // of one warpgroup
  static constexpr int kTileBytes = kKeyRows * kRowBytes;
  static constexpr int kColumnBytes = kKeyRows * kBoxRowBytes;
  static constexpr int kKeys = kGroups * kQueryBytes;
  static constexpr int kValues = kKeys + kStages * kTileBytes;
  static constexpr int kOnes = kValues + kStages * kTileBytes;
  static constexpr int kOnesBytes = kHasOnes ? kMmaRows * kBoxRowBytes : 0;
  static constexpr int kQueryBarriers = kOnes + kOnesBytes;
  static constexpr int kKeyBarriers = kQueryBarriers + kGroups * kBarrierBytes;
  static constexpr int kValueBarriers = kKeyBarriers + 2 * kStages * kBarrierBytes;
  static constexpr int kSharedBytes = kValueBarriers + 2 * kStages * kBarrierBytes;
};

struct HopperForwardParams {
  ForwardParams forward;
  TensorMap query, key, value, out;
};

// The first query row of the block and its head. Where later rows see more, heads are taken in sections whose
// keys and values stay in the cache; in a section the last rows come first, all heads beside each other.
template <typename Tiles>
__device__ Place query_rows_of_block(const Problem& problem) {
  constexpr uint32_t kSection = 16;
  const Shape& shape = problem.shape;
  const uint32_t tiles = static_cast<uint32_t>(shape.T + Tiles::kQueryRows - 1) / Tiles::kQueryRows;
  uint32_t rest = ptx::block_index(), tile;
  if (Tiles::kHasBand) {
    const uint32_t heads = static_cast<uint32_t>(shape.V * shape.B * shape.N);
    const uint32_t section = rest / (kSection * tiles);
    const uint32_t size = min(heads - section * kSection, kSection);
    rest -= section * kSection * tiles;
    tile = tiles - 1 - rest / size;
    rest = section * kSection + rest % size;
  } else {
    tile = rest % tiles;
    rest = rest / tiles;
  }
  const int32_t head = take_index(rest, shape.N);
  const int32_t b = take_index(rest, shape.B);
  return {static_cast<int32_t>(rest), b, static_cast<int32_t>(tile) * Tiles::kQueryRows, head};
}

// The walk of a block over its key tiles, from the last to the first, and what brings them.
template <typename Tiles>
class Walk {
 public:
  __device__ Walk(const HopperForwardParams& params, const Place& first, uint32_t sBegin)
      : keys(sBegin + Tiles::kKeys, sBegin + Tiles::kKeyBarriers),
        values(sBegin + Tiles::kValues, sBegin + Tiles::kValueBarriers),
        params_(params),
        first_(first),
        head_of_keys_(uniform(key_value_head(params.forward.problem.shape, first.head))) {
    const Problem& problem = params.forward.problem;
    if constexpr (Tiles::kHasBand) {
      const int32_t last_row = min(first.row + Tiles::kQueryRows, static_cast<int32_t>(problem.shape.T)) - 1;
      end_ = uniform(divide_up(keys_seen(problem, last_row).end));
      num_tiles = uniform(max(end_ - keys_seen(problem, first.row).begin / Tiles::kKeyRows, 0));
    } else {
      num_tiles = end_ = divide_up(static_cast<int32_t>(problem.shape.S));
    }
  }

  __device__ int32_t key(int i) const { return (end_ - 1 - i) * Tiles::kKeyRows; }
  // The tiles that have keys of a range.
  __device__ Range tiles_with(const Range& seen) const {
    const int begin = max(end_ - divide_up(seen.end), 0);
    return {begin, min(max(end_ - seen.begin / Tiles::kKeyRows, begin), num_tiles)};
  }

  __device__ void load_query(uint32_t sBegin) const {
    Place at = place_in(problem().query, first_);
    for (int group = 0; group < Tiles::kGroups; ++group) {
      const uint32_t barrier = sBegin + Tiles::kQueryBarriers + group * kBarrierBytes;
      if (ptx::is_elected()) {
        ptx::arrive_expecting(barrier, Tiles::kQueryBytes);
        load_rows<kGroupRows, Tiles::kColumns>(sBegin + group * Tiles::kQueryBytes, params_.query, barrier,
                                               at);
      }
      at.row += kGroupRows;
    }
  }
  // Tile i of keys and of values.
  __device__ void load(int i) const {
    const Place at{first_.v, first_.b, key(i), head_of_keys_};
    keys.load(params_.key, i, place_in(problem().key, at));
    values.load(params_.value, i, place_in(problem().value, at));
  }

  TileRing<Tiles> keys, values;
  int num_tiles;

 private:
  __device__ const Problem& problem() const { return params_.forward.problem; }
  __device__ static int divide_up(int32_t rows) { return (rows + Tiles::kKeyRows - 1) / Tiles::kKeyRows; }

  const HopperForwardParams& params_;
  Place first_;
  int32_t head_of_keys_;
  int end_;  // tiles of the key axis before the end of the walk's first
};

template <typename Tiles>
__device__ void fill_with_ones(uint32_t ones) {
  const uint32_t one = pack<Tiles::kDType>(1.0f, 1.0f);
  for (int i = threadIdx.x; i < Tiles::kOnesBytes / 4; i += Tiles::kThreads)
    ptx::store_shared(ones + 4 * i, one);
  ptx::fence_stores();
}

// What one warpgroup does.
template <typename Config>
class GroupAttention {
 public:
  using Tiles = HopperForwardTiles<Config>;
  static constexpr DType kDType = Tiles::kDType;

  __device__ GroupAttention(const HopperForwardParams& params, const Walk<Tiles>& walk, const Place& first,
                            int group, bool copies, uint32_t sBegin)
      : params_(params),
        walk_(walk),
        sBegin_(sBegin),
        group_(group),
        copies_(copies),
        row_(first.row + group * kGroupRows),
        softmax_(exponent_scale()) {}

  __device__ void run() {
    wait_for_phase(sBegin_ + Tiles::kQueryBarriers + group_ * kBarrierBytes, 0);
    const Range own = own_tiles();
    int i = 0;
    for (; at_head(i < own.begin); ++i) skip(i);
    if constexpr (Tiles::kOverlaps) {
      if (own.begin < own.end) {
        start_scores(i);
        finish_scores<0>(i);
        weigh(true);
        for (; at_head(i < own.end - 1); ++i) {
          start_scores(i + 1);
          start_output(i);
          finish_scores<1>(i + 1);
          exponentiate();
          finish_output(i);
          rescale_and_round();
        }
        start_output(i);
        finish_output(i);
        ++i;
      }
    } else {
      for (; at_head(i < own.end); ++i) {
        start_scores(i);
        refill(i);
        finish_scores<0>(i);
        weigh(false);
        start_output(i);
        finish_output(i);
      }
    }
    for (; at_head(i < walk_.num_tiles); ++i) skip(i);
  }

  __device__ void store(const Place& first) const;

 private:
  __device__ const Problem& problem() const { return params_.forward.problem; }
  __device__ float exponent_scale() const { return problem().scale * kLog2E; }
  __device__ bool is_first_of_group() const { return threadIdx.x % kGroupThreads == 0; }

  __device__ int32_t last_row(int32_t row) const {
    return min(row + kGroupRows, static_cast<int32_t>(problem().shape.T)) - 1;
  }
  // The tiles that have keys which a row of the warpgroup sees.
  __device__ Range own_tiles() const {
    if constexpr (!Tiles::kHasBand) return {0, walk_.num_tiles};
    Range own =
        walk_.tiles_with({keys_seen(problem(), row_).begin, keys_seen(problem(), last_row(row_)).end});
    if (row_ >= problem().shape.T) own.begin = own.end;
    return {uniform(own.begin), uniform(own.end)};
  }
  // Whether every row of the warpgroup sees every key of the tile at `key`. Computed for each tile, not kept.
  __device__ bool sees_all(int32_t key) const {
    if constexpr (!Tiles::kHasBand) return key + Tiles::kKeyRows <= static_cast<int32_t>(problem().shape.S);
    const int32_t row = ptx::opaque(row_);
    return (key >= keys_seen(problem(), last_row(row)).begin) &
           (key + Tiles::kKeyRows <= keys_seen(problem(), row).end);
  }

  __device__ bool refills(int i) const {
    return !Tiles::kHasProducer & copies_ & (i + Tiles::kAhead < walk_.num_tiles);
  }
  __device__ void refill(int i) const {
    if (refills(i)) walk_.load(i + Tiles::kAhead);
  }

  // A tile that this warpgroup does not see. Its warps meet, as they do in a product: one that fell two tiles
  // behind the thread that says it has read would wait for a phase that is over.
  __device__ void skip(int i) const {
    walk_.keys.take(i);
    walk_.values.take(i);
    ptx::meet<kGroupThreads>(1 + group_);
    if (is_first_of_group()) {
      walk_.keys.release(i);
      walk_.values.release(i);
    }
    refill(i);
  }

  __device__ void start_scores(int i) {
    const uint32_t sKeys = walk_.keys.take(i);
    ptx::fence_products();
    start_rows_by_rows<kDType, Tiles::kChannels, kGroupRows>(
        scores_[0], SharedOperand::by_rows(sBegin_ + group_ * Tiles::kQueryBytes),
        SharedOperand::by_rows(sKeys));
  }
  template <int kUnderWay>
  __device__ void finish_scores(int i) {
    finish_products<kUnderWay>(scores_[0]);
    if (is_first_of_group()) walk_.keys.release(i);
    const int32_t key = walk_.key(i);
    if (!sees_all(key)) {
      const int warp_row = static_cast<int>(threadIdx.x) % kGroupThreads / kWarpLanes * kMmaRows;
      const ScoreTile<Config, Rows::kQueries, 1, Tiles::kKeyTiles> tile(problem(),
                                                                        {0, 0, row_ + warp_row, 0});
      tile.hide_out_of_band(scores_, key);
    }
    softmax_.take_max(scores_[0], exponent_scale(), factors_, rescale_);
  }

  __device__ void start_output(int i) {
    // The column of ones is the second 64 columns of every step: it stands in one place, so the distance to
    // it shrinks as the rows go on.
    constexpr uint32_t kRows = kMmaRows * kBoxRowBytes / SharedOperand::kUnit;
    constexpr uint32_t kStep = Tiles::kHasOnes ? kRows - (kRows << 16) : kRows;
    const uint32_t sValues = walk_.values.take(ptx::opaque(i));  // place and phase are not kept from the keys
    const uint32_t next = Tiles::kHasOnes ? sBegin_ + Tiles::kOnes - sValues : Tiles::kColumnBytes;
    ptx::fence_products();
    start_weighted_rows<kDType, kStep>(out_, p_, SharedOperand::by_columns(sValues, next));
  }
  __device__ void finish_output(int i) {
    finish_products<0>(out_);
    if (is_first_of_group()) walk_.values.release(ptx::opaque(i));
  }

  // Two tiles of scores, which P has one fragment for.
  __device__ void exponentiate(int k, float (&tile_sum)[kStripRows]) {
#pragma unroll
    for (int tile = 2 * k; tile < 2 * k + 2; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& score = scores_[0][tile][i];
        score = ct_exp2(fmaf(score, factors_[i / 2], -softmax_.reference[i / 2]));
        if constexpr (!Tiles::kHasOnes) tile_sum[i / 2] += score;
      }
    }
  }
  __device__ void add_to_sum(const float (&tile_sum)[kStripRows]) {
    if constexpr (!Tiles::kHasOnes) {
#pragma unroll
      for (int row = 0; row < kStripRows; ++row) {
        softmax_.sum[row] = fmaf(softmax_.sum[row], rescale_[row], tile_sum[row]);
      }
    }
  }
  __device__ void exponentiate() {
    float tile_sum[kStripRows] = {};
#pragma unroll
    for (int k = 0; k < Tiles::kDepth; ++k) exponentiate(k, tile_sum);
    add_to_sum(tile_sum);
  }
  // The k-th part of kDepth.
  __device__ void rescale(int k) {
#pragma unroll
    for (int tile = k * Tiles::kOutTiles / Tiles::kDepth; tile < (k + 1) * Tiles::kOutTiles / Tiles::kDepth;
         ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) out_[tile][i] *= rescale_[i / 2];
    }
  }
  __device__ void rescale_and_round() {
#pragma unroll
    for (int k = 0; k < Tiles::kDepth; ++k) {
      as_left_fragment<kDType>(p_[k], scores_[0], k);
      rescale(k);
    }
  }
  // All of it. The multiplications of the output stand between the exponentials, whose unit is slower.
  __device__ void weigh(bool is_first) {
    float tile_sum[kStripRows] = {};
#pragma unroll
    for (int k = 0; k < Tiles::kDepth; ++k) {
      exponentiate(k, tile_sum);
      as_left_fragment<kDType>(p_[k], scores_[0], k);
      if (!is_first) rescale(k);
    }
    add_to_sum(tile_sum);
  }

  const HopperForwardParams& params_;
  const Walk<Tiles>& walk_;
  uint32_t sBegin_;
  int group_;
  bool copies_;
  int32_t row_;  // the warpgroup's first
  FusedSoftmax softmax_;
  float factors_[kStripRows], rescale_[kStripRows];  // of the tile at hand
  StripSums<1, Tiles::kKeyTiles> scores_;
  Fragment p_[Tiles::kDepth];
  Sums out_[Tiles::kOutTiles] = {};
};

// Writes the rows of a warpgroup, by way of the place of its query rows.
template <typename Config>
__device__ void GroupAttention<Config>::store(const Place& first) const {
  const Shape& shape = problem().shape;
  const Place at{first.v, first.b, first.row + group_ * kGroupRows, first.head};
  if (at.row >= shape.T) return;
  const uint32_t sRows = sBegin_ + group_ * Tiles::kQueryBytes;
  const int row_0 = static_cast<int>(threadIdx.x) % kGroupThreads / kWarpLanes * kMmaRows +
                    static_cast<int>(threadIdx.x) % kWarpLanes / 4;
  ptx::meet<kGroupThreads>(1 + group_);  // all four warps have read the query rows
#pragma unroll
  for (int half = 0; half < kStripRows; ++half) {
    const int row = row_0 + half * 8;
    float sum;
    if constexpr (Tiles::kHasOnes) {
      sum = out_[Tiles::kChannelTiles][2 * half];
    } else {
      sum = quad_sum(softmax_.sum[half]);
    }
    const CtMask is_empty = ct_equal(sum, 0.0f);  // no key took part, or all that did scored -inf
    const float factor = ct_reciprocal(sum);
    const Place place{at.v, at.b, at.row + row, at.head};
    if (threadIdx.x % 4 == 0 && place.row < shape.T) {
      constexpr float kLn2 = 0.6931471805599453f;
      const int64_t index = statistic_index(shape, place);
      params_.forward.row_max[index] = fmaxf(softmax_.max[half] * problem().scale, -FLT_MAX);
      params_.forward.log_sum[index] =
          ct_select(is_empty, -INFINITY, kLn2 * softmax_.log2_sum(half, sum, exponent_scale()));
    }
#pragma unroll
    for (int tile = 0; tile < Tiles::kChannelTiles; ++tile) {
      const uint32_t column = sRows + tile / 8 * (kGroupRows * kBoxRowBytes);
      const float left = ct_keep(~is_empty, factor * out_[tile][2 * half]);
      const float right = ct_keep(~is_empty, factor * out_[tile][2 * half + 1]);
      ptx::store_shared(chunk_at<kBoxRowBytes>(column, row, tile % 8) + threadIdx.x % 4 * 4,
                        pack<kDType>(left, right));
    }
  }
  ptx::fence_stores();
  ptx::meet<kGroupThreads>(1 + group_);
  if (is_first_of_group()) {
#pragma unroll
    for (int column = 0; column < Tiles::kColumns; ++column) {
      ptx::store_box(sRows + column * kGroupRows * kBoxRowBytes, &params_.out, column * kBoxChannels, at.row,
                     at.head, at.b, at.v);
    }
    ptx::wait_for_stores();
  }
}

// Grid: one block for each kQueryRows query rows of a head.
template <typename Config>
__global__ void __launch_bounds__(HopperForwardTiles<Config>::kThreads, 1)
    attention_fwd_sm90(const __grid_constant__ HopperForwardParams params) {
  using Tiles = HopperForwardTiles<Config>;
  extern __shared__ __align__(kBoxAlignment) unsigned char sMemory[];
  const uint32_t sBegin = ptx::shared_address(sMemory);
  const int warp = uniform(static_cast<int>(threadIdx.x) / kWarpLanes), group = warp / kGroupWarps;
  const bool copies = warp == (Tiles::kGroups - !Tiles::kHasProducer) * kGroupWarps;

  Place first = query_rows_of_block<Tiles>(params.forward.problem);
  first = {uniform(first.v), uniform(first.b), uniform(first.row), uniform(first.head)};
  const Walk<Tiles> walk(params, first, sBegin);
  if constexpr (Tiles::kHasOnes) fill_with_ones<Tiles>(sBegin + Tiles::kOnes);
  if (threadIdx.x == 0) {
    for (int i = 0; i < Tiles::kGroups; ++i)
      ptx::init_barrier(sBegin + Tiles::kQueryBarriers + i * kBarrierBytes, 1);
    walk.keys.init();
    walk.values.init();
    ptx::fence_barrier_init();
  }
  __syncthreads();
  if (copies) {
    walk.load_query(sBegin);
    for (int i = 0; i < min(Tiles::kAhead, walk.num_tiles); ++i) {
      walk.load(i);
    }
  }

  if (Tiles::kHasProducer && group == Tiles::kGroups) {
    ptx::give_registers<Tiles::kProducerRegisters>();
    if (copies) {
      for (int i = Tiles::kAhead; i < walk.num_tiles; ++i) {
        walk.load(i);
      }
    }
  } else {
    if constexpr (Tiles::kHasProducer) ptx::take_registers<Tiles::kConsumerRegisters>();
    GroupAttention<Config> attention(params, walk, first, group, copies, sBegin);
    attention.run();
    attention.store(query_rows_of_block<Tiles>(params.forward.problem));  // computed again rather than kept
  }
}

}  // namespace dhp
