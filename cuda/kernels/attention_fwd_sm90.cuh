// Forward attention on the tensor cores of Hopper (wgmma), with tensor copies.
//
// A block owns kQueryRows query rows of one head, each warpgroup 64 of them. Key and value tiles come through
// two rings, from the last tile that is seen to the first. Blocks stay: each takes item after item of such
// rows, and what the next item needs is on its way before this one is done. For each tile a warpgroup does
//
//   1  scores = query . key                              wgmma
//   2  running maximum; P = exp2(c score - reference), rounded to the operands' dtype; out *= rescale
//   3  out += P . value                                  wgmma
//
// either one after the other, so that the products of one warpgroup run beside the softmax of the others, or
// (kOverlaps) with the scores of the next tile started before P . value of this one. With 64 channels P is
// also multiplied by a column of ones: the product then has the sum of a row too.
//
// Who waits for whom: a copy announces its bytes to the barrier of its place, at which all threads wait
// before they read; one thread of each warpgroup arrives at another when its warpgroup has read, and the
// copying warp waits there before it fills the place again. One warp copies keys and one values: of a
// warpgroup of their own or, where four warpgroups leave no registers for that, of the last, which sees most
// keys; what they do there is kept short, since all others wait for it in the end. Query rows are replaced by
// the warpgroup itself when its last product of them is over.
//
// Constant time: tiles are chosen by the band alone, and the rescale runs on every tile.

#pragma once

#include "device/band.cuh"
#include "device/band_bits.cuh"
#include "device/fused_softmax.cuh"
#include "device/rows.cuh"
#include "device/score_tile.cuh"
#include "device/wgmma.cuh"
#include "kernels/attention_fwd_sm90_work.cuh"
#include "params.h"

namespace dhp {

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

  __device__ GroupAttention(const HopperForwardParams& params, const Supply<Tiles>& supply,
                            const Item<Tiles>& item, int warp)
      : params_(params),
        supply_(supply),
        item_(item),
        group_(warp / kGroupWarps),
        warp_(warp),
        softmax_(exponent_scale()) {}

  __device__ void run() {
    if constexpr (Tiles::kOverlaps) {
      run_overlapping();
    } else {
      run_in_turn();
    }
  }

 private:
  // One product after the other: other warpgroups fill the gaps.
  __device__ void run_in_turn() {
    for (; at_head(item_.exists(params_)); item_ = next_item()) {
      const Range own = begin_item();
      int n = item_.begin;
      for (; at_head(n < own.begin); ++n) skip(n);
      for (; at_head(n < own.end); ++n) {
        start_scores(n);
        refill(n);
        finish_products<0>(scores_);
        take_scores(n);
        take_max();
        weigh(false);
        start_output(n);
        finish_output(n);
      }
      load_next_query();
      for (; at_head(n < item_.end); ++n) skip(n);
      store();
    }
  }

  // The scores of the next tile first, so that their keys can be replaced while P . value is under way.
  __device__ void run_overlapping() {
    for (; at_head(item_.exists(params_)); item_ = next_item()) {
      const Range own = begin_item();
      int n = item_.begin;
      for (; at_head(n < own.begin); ++n) skip(n);
      if (own.begin == own.end) {
        load_next_query();
      } else {
        start_scores(n);
        finish_products<0>(scores_);
        take_scores(n);
        if (n == own.end - 1) load_next_query();
        take_max();
        weigh(true);
        for (; at_head(n < own.end - 1); ++n) {
          start_scores(n + 1);
          start_output(n);
          finish_products<1>(scores_);
          take_scores(n + 1);
          if (n + 1 == own.end - 1) load_next_query();
          finish_output(n);
          take_max();
          exponentiate();
          rescale_and_round();
        }
        start_output(n);
        finish_output(n);
        ++n;
      }
      for (; at_head(n < item_.end); ++n) skip(n);
      store();
    }
  }

  __device__ void store() const;

  __device__ const Problem& problem() const { return params_.forward.problem; }
  __device__ float exponent_scale() const { return problem().scale * kLog2E; }
  __device__ bool is_first_of_group() const { return threadIdx.x % kGroupThreads == 0; }

  __device__ Item<Tiles> next_item() const {
    return item_of_block<Tiles>(params_, item_.round + 1, item_.end);
  }
  // The item's tiles that have keys which a row of this warpgroup sees.
  __device__ Range begin_item() {
    softmax_ = FusedSoftmax(exponent_scale());
#pragma unroll
    for (Sums& tile : out_) {
#pragma unroll
      for (float& sum : tile) sum = 0.0f;
    }
    wait_for_phase(supply_.query_barrier(group_), static_cast<int>(item_.round));
    return own_tiles();
  }

  // Of this warpgroup.
  __device__ int32_t first_row() const { return item_.first.row + group_ * kGroupRows; }
  __device__ int32_t last_row(int32_t row) const {
    return min(row + kGroupRows, static_cast<int32_t>(problem().shape.T)) - 1;
  }
  __device__ Range own_tiles() const {
    if constexpr (!Tiles::kHasBand) return {item_.begin, item_.end};
    const int32_t row = first_row();
    const Range seen{keys_seen(problem(), row).begin, keys_seen(problem(), last_row(row)).end};
    const int begin = max(item_.top + 1 - count_tiles(seen.end, Tiles::kKeyRows), item_.begin);
    const int end = max(min(item_.top + 1 - seen.begin / Tiles::kKeyRows, item_.end), begin);
    return {uniform(row < problem().shape.T ? begin : end), uniform(end)};
  }
  // Whether every row of the warpgroup sees every key of the tile at `key`. Computed for each tile, not kept.
  __device__ bool sees_all(int32_t key) const {
    if constexpr (!Tiles::kHasBand) return key + Tiles::kKeyRows <= static_cast<int32_t>(problem().shape.S);
    const int32_t row = ptx::opaque(first_row());
    return (key >= keys_seen(problem(), last_row(row)).begin) &
           (key + Tiles::kKeyRows <= keys_seen(problem(), row).end);
  }

  __device__ void hide_out_of_band(int32_t key) {
    const int32_t row_0 = first_row() +
                          static_cast<int32_t>(threadIdx.x) % kGroupThreads / kWarpLanes * kMmaRows +
                          static_cast<int32_t>(threadIdx.x) % kWarpLanes / 4;
#pragma unroll
    for (int half = 0; half < kStripRows; ++half) {
      Range seen{0, static_cast<int32_t>(problem().shape.S)};
      if constexpr (Tiles::kHasBand) seen = keys_seen(problem(), row_0 + half * 8);
      hide_outside(scores_, half, {seen.begin - key, seen.end - key});
    }
  }

  // The tile kAhead of n, by the last warpgroup where there is none for it.
  __device__ void refill(int n) const {
    if constexpr (!Tiles::kHasProducer) supply_.load(warp_, item_, n + Tiles::kAhead);
  }
  // When the last product of this item's query rows is over.
  __device__ void load_next_query() const {
    ptx::meet<kGroupThreads>(1 + group_);
    if (warp_ % kGroupWarps == 0) {
      const Item<Tiles> next = next_item();
      if (next.exists(params_)) supply_.load_query(next, group_);
    }
  }

  // A tile that this warpgroup does not see. Its warps meet, as they do in a product: one that fell two tiles
  // behind the thread that says it has read would wait for a phase that is over.
  __device__ void skip(int i) const {
    supply_.keys.take(i);
    supply_.values.take(i);
    ptx::meet<kGroupThreads>(1 + group_);
    if (is_first_of_group()) {
      supply_.keys.release(i);
      supply_.values.release(i);
    }
    refill(i);
  }

  __device__ void start_scores(int i) {
    const uint32_t sKeys = supply_.keys.take(i);
    ptx::fence_products();
    start_rows_by_rows<kDType, Tiles::kChannels, kGroupRows>(
        scores_, SharedOperand::by_rows(supply_.query_rows(group_)), SharedOperand::by_rows(sKeys));
  }
  __device__ void take_scores(int i) {
    if (is_first_of_group()) supply_.keys.release(i);
    const int32_t key = item_.key(i);
    if (!sees_all(key)) hide_out_of_band(key);
  }
  __device__ void take_max() { softmax_.take_max(scores_, exponent_scale(), factors_, rescale_); }

  __device__ void start_output(int i) {
    // The column of ones is the second 64 columns of every step: it stands in one place, so the distance to
    // it shrinks as the rows go on.
    constexpr uint32_t kRows = kMmaRows * kBoxRowBytes / SharedOperand::kUnit;
    constexpr uint32_t kStep = Tiles::kHasOnes ? kRows - (kRows << 16) : kRows;
    const uint32_t sValues =
        supply_.values.take(ptx::opaque(i));  // place and phase are not kept from the keys
    const uint32_t next =
        Tiles::kHasOnes ? supply_.query_rows(0) + Tiles::kOnes - sValues : Tiles::kColumnBytes;
    ptx::fence_products();
    start_weighted_rows<kDType, kStep>(out_, p_, SharedOperand::by_columns(sValues, next));
  }
  __device__ void finish_output(int i) {
    finish_products<0>(out_);
    if (is_first_of_group()) supply_.values.release(ptx::opaque(i));
  }

  // Two tiles of scores, which P has one fragment for.
  __device__ void exponentiate(int k, float (&tile_sum)[kStripRows], const float (&reference)[kStripRows]) {
#pragma unroll
    for (int tile = 2 * k; tile < 2 * k + 2; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& score = scores_[tile][i];
        score = ct_exp2(fmaf(score, factors_[i / 2], -reference[i / 2]));
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
    for (int k = 0; k < Tiles::kDepth; ++k) exponentiate(k, tile_sum, softmax_.reference);
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
      as_left_fragment<kDType>(p_[k], scores_, k);
      rescale(k);
    }
  }
  // All of it. With 64 channels the exponentials, whose unit is slow, take as long as the products. There
  // every part waits for the one before, so that ptxas puts the multiplications of the output between
  // exponentials instead of all multiply-adds before them.
  __device__ void weigh(bool is_first) {
    float reference[kStripRows] = {softmax_.reference[0], softmax_.reference[1]};
    float tile_sum[kStripRows] = {};
#pragma unroll
    for (int k = 0; k < Tiles::kDepth; ++k) {
      exponentiate(k, tile_sum, reference);
      as_left_fragment<kDType>(p_[k], scores_, k);
      if (!is_first) rescale(k);
      if constexpr (Tiles::kHasOnes) {
#pragma unroll
        for (int row = 0; row < kStripRows; ++row) {
          reference[row] =
              __uint_as_float(__float_as_uint(reference[row]) ^ (p_[k][kStripRows + row] & params_.zero));
        }
      }
    }
    add_to_sum(tile_sum);
  }

  const HopperForwardParams& params_;
  const Supply<Tiles>& supply_;
  Item<Tiles> item_;
  int group_;
  int warp_;
  FusedSoftmax softmax_;
  float factors_[kStripRows], rescale_[kStripRows];  // of the tile at hand
  Sums scores_[Tiles::kKeyTiles];
  Fragment p_[Tiles::kDepth];
  Sums out_[Tiles::kOutTiles];
};

// Writes the rows of a warpgroup, 16 bytes a lane.
template <typename Config>
__device__ void GroupAttention<Config>::store() const {
  constexpr float kLn2 = 0.6931471805599453f;
  constexpr int kChunkTiles = 4;  // whose words in four lanes make four chunks
  const Shape& shape = problem().shape;
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int row_0 =
      first_row() + static_cast<int>(threadIdx.x) % kGroupThreads / kWarpLanes * kMmaRows + lane / 4;
#pragma unroll
  for (int half = 0; half < kStripRows; ++half) {
    const Place at{item_.first.v, item_.first.b, row_0 + half * 8, item_.first.head};
    const bool exists = at.row < shape.T;
    float sum;
    if constexpr (Tiles::kHasOnes) {
      sum = out_[Tiles::kChannelTiles][2 * half];
    } else {
      sum = quad_sum(softmax_.sum[half]);
    }
    const CtMask is_empty = ct_equal(sum, 0.0f);  // no key took part, or all that did scored -inf
    const float factor = ct_reciprocal(sum);
    if (lane % 4 == 0 && exists) {
      const int64_t index = statistic_index(shape, at);
      params_.forward.row_max[index] = fmaxf(softmax_.max[half] * problem().scale, -FLT_MAX);
      params_.forward.log_sum[index] =
          ct_select(is_empty, -INFINITY, kLn2 * softmax_.log2_sum(half, sum, exponent_scale()));
    }
    Element<kDType>* const to = row_at<kDType>(params_.forward.out, at);
#pragma unroll
    for (int tile = 0; tile < Tiles::kChannelTiles; tile += kChunkTiles) {
      uint32_t words[kChunkTiles];
#pragma unroll
      for (int i = 0; i < kChunkTiles; ++i) {
        const float left = ct_keep(~is_empty, factor * out_[tile + i][2 * half]);
        const float right = ct_keep(~is_empty, factor * out_[tile + i][2 * half + 1]);
        words[i] = pack<kDType>(left, right);
      }
      transpose_in_quad(words);
      const int channel = (tile + ptx::opaque(lane % 4)) * kMmaColumns;
      if (exists && channel < shape.D) {
        *reinterpret_cast<uint4*>(to + channel) = {words[0], words[1], words[2], words[3]};
      }
    }
  }
}

// Grid: at most one block for each kQueryRows query rows of a head.
template <typename Config>
__global__ void __launch_bounds__(HopperForwardTiles<Config>::kThreads, 1)
    attention_fwd_sm90(const __grid_constant__ HopperForwardParams params) {
  using Tiles = HopperForwardTiles<Config>;
  extern __shared__ __align__(kBoxAlignment) unsigned char sMemory[];
  const uint32_t sBegin = ptx::shared_address(sMemory);
  const int warp = warp_of_block();

  Item<Tiles> item = item_of_block<Tiles>(params, 0, 0);
  const Supply<Tiles> supply(params, sBegin);
  if constexpr (Tiles::kHasOnes) fill_with_ones<Tiles>(sBegin + Tiles::kOnes);
  if (warp == Tiles::kKeyWarp) {
    if (ptx::is_elected()) supply.init();
    __syncwarp();
    for (int group = 0; group < Tiles::kGroups; ++group) supply.load_query(item, group);
  }
  __syncthreads();
  for (int n = 0; n < Tiles::kAhead; ++n) supply.load(warp, item, n);

  if (Tiles::kHasProducer && warp >= Tiles::kKeyWarp) {
    ptx::give_registers<Tiles::kProducerRegisters>();
    for (int n = Tiles::kAhead; item.exists(params);
         item = item_of_block<Tiles>(params, item.round + 1, item.end)) {
      for (; n < item.end; ++n) supply.load(warp, item, n);
    }
  } else {
    if constexpr (Tiles::kHasProducer) ptx::take_registers<Tiles::kConsumerRegisters>();
    GroupAttention<Config>(params, supply, item, warp).run();
  }
}

}  // namespace dhp
