// What one warpgroup of attention_fwd_sm90 does: the schedule of its products and its softmax.

#pragma once

#include <type_traits>

#include "device/band.cuh"
#include "device/band_bits.cuh"
#include "device/finished_softmax.cuh"
#include "device/fused_softmax.cuh"
#include "device/hidden_keys.cuh"
#include "device/mask_bits.cuh"
#include "device/rows.cuh"
#include "device/score.cuh"
#include "device/score_tile.cuh"
#include "device/wgmma.cuh"
#include "kernels/attention_fwd_sm90_work.cuh"
#include "params.h"

namespace dhp {

// What one warpgroup does.
template <typename Config>
class GroupAttention {
 public:
  using Tiles = HopperForwardTiles<Config>;
  using Softmax = std::conditional_t<Config::kHasScoreOperands, FinishedSoftmax, FusedSoftmax>;
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
      begin_item();
      wait_for_query();
      if constexpr (Tiles::kLoadsQueryEarly) load_next_query();
      const Range own = own_tiles();
      skip(item_.begin, own.begin);
      int n = own.begin;
      if constexpr (Tiles::kHasLengths) hidden_.begin(item_.key(n));
      if constexpr (Tiles::kSumsOnlyTile) {
        if (own.end - own.begin == 1) add_only_tile(n++);
      }
      if constexpr (Tiles::kBeginsInTurn) wait_for_turn();
      for (; at_head(n < own.end); ++n) {
        start_scores(n);
        if (Tiles::kBeginsInTurn && n == own.begin) give_turn();
        refill(n);
        finish_products<0>(scores_[0]);
        take_scores(n);
        take_max();
        weigh(false);
        start_output(n);
        finish_output(n);
      }
      if constexpr (!Tiles::kLoadsQueryEarly && !Tiles::kCopiesQueryByThreads) load_next_query();
      skip(n, item_.end);
      if constexpr (Tiles::kIsSplit) {
        merge_and_store();
      } else {
        store(item_);
      }
    }
  }

  // Of rows with few keys.
  __device__ void add_only_tile(int n) {
    start_scores(n);
    refill(n);
    finish_products<0>(scores_[0]);
    take_scores(n);
    take_max();
    weigh_only_tile();
    start_output(n, supply_.zeros());
    finish_output(n);
  }

  // The scores of the next tile first, so that their keys can be replaced while P . value is under way. After
  // the last tile the first scores of the next item are under way while the rows of this one are stored.
  __device__ void run_overlapping() {
    int n = item_.begin - 1;
    while (item_.exists(params_)) {
      Range own = own_tiles();
      wait_for_query();
      skip(n + 1, own.begin);
      n = own.begin;
      start_scores(n);
      if constexpr (Tiles::kLoadsQueryEarly) next_ = next_item();
      begin_item();
      finish_first_scores(n, own.end);
      Item<Tiles> done;
      for (;;) {
        add_tiles(n, own.end);
        done = item_;
        item_ = Tiles::kLoadsQueryEarly ? next_ : next_item();
        if (!item_.exists(params_)) break;
        own = own_tiles();
        // The ring has the values of tile n still, and its other places.
        if (own.begin > n + Tiles::kValueStages) break;
        start_output(n);
        if constexpr (Tiles::kStoresBehindScores) {
          wait_for_query();
          skip(n + 1, own.begin);
          start_scores(own.begin);
          if constexpr (Tiles::kLoadsQueryEarly) next_ = next_item();
          finish_products<1>(out_);
          release_values(n);
          store(done);
        } else {
          finish_output(n);
          store(done);
          wait_for_query();
          skip(n + 1, own.begin);
          start_scores(own.begin);
        }
        begin_item();
        n = own.begin;
        finish_first_scores(n, own.end);
      }
      start_output(n);
      finish_output(n);
      store(done);
      if (!item_.exists(params_)) skip(n + 1, done.end);
    }
    if constexpr (Tiles::kStoresByCopy) ptx::wait_for_stores();
  }
  // From where P of tile n is there to where that of the last tile is.
  __device__ void add_tiles(int& n, int end) {
    for (; at_head(n < end - 1); ++n) {
      start_scores(n + 1);
      start_output(n);
      finish_products<1>(scores_[0]);
      take_scores(n + 1);
      if (!Tiles::kLoadsQueryEarly && n + 1 == end - 1) load_next_query();
      if constexpr (Tiles::kDefersOutput) {
        take_max();
        exponentiate();
        pin(scores_[0]);
        // ptxas would wait for the product first of all. It does not move that past a loop.
        supply_.values.take(n + 1);
        finish_output(n);
      } else {
        finish_output(n);
        take_max();
        exponentiate();
      }
      rescale_and_round();
    }
  }
  // Of an item, as far as P.
  __device__ void finish_first_scores(int n, int end) {
    finish_products<0>(scores_[0]);
    take_scores(n);
    if (!Tiles::kLoadsQueryEarly && n == end - 1) load_next_query();
    take_max();
    weigh(true);
    if constexpr (Tiles::kLoadsQueryEarly) load_query_early();
  }

  __device__ void store(const Item<Tiles>& done) const;
  __device__ void merge_and_store();

  __device__ const Problem& problem() const { return params_.forward.problem; }
  // What finished scores are to be multiplied by.
  __device__ float scale_left() const { return Config::kHasScoreOperands ? 1.0f : problem().scale; }
  __device__ float exponent_scale() const { return scale_left() * kLog2E; }
  __device__ bool is_first_of_group() const { return threadIdx.x % kGroupThreads == 0; }

  __device__ Item<Tiles> next_item() const {
    return item_of_block<Tiles>(params_, item_.round + 1, item_.end);
  }
  __device__ static int32_t true_length(const Lengths& lengths, const Item<Tiles>& item) {
    return load_length(lengths, item.first.v, item.first.b);
  }
  __device__ void begin_item() {
    softmax_ = Softmax(exponent_scale());
#pragma unroll
    for (Sums& tile : out_) {
#pragma unroll
      for (float& sum : tile) sum = 0.0f;
    }
    if constexpr (Tiles::kHasLengths) hidden_.set_length(true_length(problem().key_value_lengths, item_));
    if constexpr (Tiles::kHasMaskBits) length_ = true_length(problem().key_value_lengths, item_);
  }
  __device__ void wait_for_query() const {
    if constexpr (Tiles::kCopiesQueryByThreads) {
      ptx::wait_for_copies<0>();
      ptx::fence_stores();
      ptx::meet<kGroupThreads>(1 + group_);
    } else {
      wait_for_phase(supply_.query_barrier(group_, item_.round), Tiles::query_phase(item_.round));
    }
  }
  // For its first product, which each warpgroup has, one after the other.
  __device__ void wait_for_turn() const {
    if (group_ > 0) ptx::meet<2 * kGroupThreads>(Tiles::kGroups + group_);
  }
  __device__ void give_turn() const {
    if (group_ < Tiles::kGroups - 1) ptx::arrive_at_meeting<2 * kGroupThreads>(Tiles::kGroups + group_ + 1);
  }

  // Of this warpgroup.
  __device__ int32_t first_row(const Item<Tiles>& item) const { return item.first.row + group_ * kGroupRows; }
  __device__ int32_t first_row() const { return first_row(item_); }
  __device__ int32_t last_row(int32_t row) const {
    return min(row + kGroupRows, static_cast<int32_t>(problem().shape.T)) - 1;
  }
  // The item's tiles that have keys which a row of this warpgroup sees.
  __device__ Range own_tiles() const {
    if constexpr (!Tiles::kHasBand) return {item_.begin, item_.end};
    const int32_t row = first_row();
    const Range seen{keys_seen(problem(), row).begin, keys_seen(problem(), last_row(row)).end};
    const int begin = min(max(item_.top + 1 - count_tiles(seen.end, Tiles::kKeyRows), item_.begin),
                          item_.end - Tiles::kLeastTiles);
    const int end =
        max(min(item_.top + 1 - seen.begin / Tiles::kKeyRows, item_.end), begin + Tiles::kLeastTiles);
    return {uniform(row < problem().shape.T ? begin : end - Tiles::kLeastTiles), uniform(end)};
  }
  // Whether every row of the warpgroup sees every key of the tile at `key`. Computed for each tile, not kept.
  __device__ bool sees_all(int32_t key) const {
    if constexpr (!Tiles::kHasBand) return key + Tiles::kKeyRows <= static_cast<int32_t>(problem().shape.S);
    const int32_t row = ptx::opaque(first_row());
    return (key >= keys_seen(problem(), last_row(row)).begin) &
           (key + Tiles::kKeyRows <= keys_seen(problem(), row).end);
  }

  // The first of this lane's two rows.
  __device__ int32_t lane_row(const Item<Tiles>& item) const {
    return first_row(item) + static_cast<int32_t>(threadIdx.x) % kGroupThreads / kWarpLanes * kMmaRows +
           static_cast<int32_t>(threadIdx.x) % kWarpLanes / 4;
  }
  __device__ void hide_out_of_band(int32_t key) {
    const int32_t row_0 = lane_row(item_);
#pragma unroll
    for (int half = 0; half < kStripRows; ++half) {
      Range seen{0, static_cast<int32_t>(problem().shape.S)};
      if constexpr (Tiles::kHasBand) seen = keys_seen(problem(), row_0 + half * 8);
      if constexpr (Tiles::kHasLengths) seen.end = min(seen.end, hidden_.length());
      hide_outside(scores_[0], half, {seen.begin - key, seen.end - key});
    }
  }

  // The tile kAhead of n, by the last warpgroup where there is none for it.
  __device__ void refill(int n) const {
    if constexpr (!Tiles::kHasProducer) supply_.load(warp_, item_, n + Tiles::kAhead);
  }
  // When the last product of the query rows in their place is over.
  __device__ void load_next_query() {
    ptx::meet<kGroupThreads>(1 + group_);
    if (warp_ % kGroupWarps == 0) {
      const Item<Tiles> next = next_item();
      if (next.exists(params_)) supply_.load_query(next, group_);
    }
    __syncwarp();
  }
  // To where the rows of the last item have been stored from.
  __device__ void load_query_early() const {
    if (warp_ % kGroupWarps == 0) {
      ptx::wait_for_stores();
      __syncwarp();
      if (next_.exists(params_)) supply_.load_query(next_, group_);
    }
    __syncwarp();  // or ptxas takes the warps for divergent, and all that follows leaves the uniform
                   // registers
  }

  // Tiles that this warpgroup does not see. Its warps meet, as they do in a product: one that fell two tiles
  // behind the thread that says it has read would wait for a phase that is over.
  __device__ void skip(int i, int end) const {
    for (; at_head(i < end); ++i) {
      supply_.keys.take(i);
      supply_.values.take(i);
      ptx::meet<kGroupThreads>(1 + group_);
      if (is_first_of_group()) {
        supply_.keys.release(i);
        supply_.values.release(i);
      }
      refill(i);
    }
  }

  __device__ void start_scores(int i) {
    if constexpr (Tiles::kHasMaskBits) {
      const Place& first = item_.first;
      mask_bits_.load(problem().mask, {first.v, first.b, first.head, lane_row(item_), item_.top - i},
                      static_cast<int32_t>(problem().shape.T) - 1);
    }
    const uint32_t sKeys = supply_.keys.take(i);
    ptx::fence_products();
    // Where the code is there more than once, ptxas would keep the descriptors of the query rows in ordinary
    // registers from one to the next, and move them in every tile.
    const int group = Tiles::kOverlaps ? ptx::opaque(group_) : group_;
    start_rows_by_rows<kDType, Tiles::kChannels, kGroupRows>(
        scores_[0], SharedOperand::by_rows(Tiles::operand(supply_.query_rows(group, item_.round))),
        SharedOperand::by_rows(Tiles::operand(sKeys)));
  }
  __device__ void take_scores(int i) {
    if (is_first_of_group()) supply_.keys.release(i);
    const int32_t key = item_.key(i);
    if constexpr (Config::kHasScoreOperands) {
      Place warp = item_.first;
      warp.row = first_row() + warp_ % kGroupWarps * kMmaRows;
      const ScoreTile<Config, Rows::kQueries, 1, Tiles::kKeyTiles> tile(problem(), warp);
      tile.finish_but_scale(scores_, key);
    } else {
      if constexpr (Tiles::kHasMaskBits) mask_bits_.hide(scores_[0], length_ - key);
      const bool all = sees_all(key);
      if (!all) hide_out_of_band(key);
      if constexpr (Tiles::kHasLengths) hidden_.enter(all ? key : -Tiles::kKeyRows);
    }
  }
  __device__ void take_max() { softmax_.take_max(scores_[0], exponent_scale(), factors_, rescale_); }

  __device__ void start_output(int i) { start_output(i, supply_.ones()); }
  //   summand  16 rows of what P is multiplied by besides, with 64 channels
  __device__ void start_output(int i, uint32_t summand) {
    // The column of ones is the second 64 columns of every step: it stands in one place, so the distance to
    // it shrinks as the rows go on.
    constexpr uint32_t kRows = kMmaRows * kBoxRowBytes / SharedOperand::kUnit;
    constexpr uint32_t kStep = Tiles::kHasOnes ? kRows - (kRows << 16) : kRows;
    const uint32_t sValues =
        supply_.values.take(ptx::opaque(i));  // place and phase are not kept from the keys
    const uint32_t next = Tiles::kHasOnes ? summand - sValues : Tiles::kColumnBytes;
    ptx::fence_products();
    start_weighted_rows<kDType, kStep>(out_, p_, SharedOperand::by_columns(Tiles::operand(sValues), next));
  }
  __device__ void finish_output(int i) {
    finish_products<0>(out_);
    release_values(i);
  }
  __device__ void release_values(int i) const {
    if (is_first_of_group()) supply_.values.release(ptx::opaque(i));
  }

  // From scores to P and sums (attention_fwd_sm90_weights.cuh).
  template <bool kAddsToSum = !Tiles::kHasOnes>
  __device__ void exponentiate(int k, float (&tile_sum)[kStripRows], const float (&reference)[kStripRows]);
  __device__ void exponentiate();
  __device__ void add_to_sum(const float (&tile_sum)[kStripRows]);
  __device__ void rescale(int k);
  __device__ void rescale_and_round();
  __device__ void weigh(bool is_first);
  __device__ void weigh_only_tile();
  __device__ float last_weight(int row) const;

  const HopperForwardParams& params_;
  const Supply<Tiles>& supply_;
  Item<Tiles> item_, next_;
  int group_;
  int warp_;
  Softmax softmax_;
  HiddenKeys<Tiles::kHasLengths, Tiles::kKeyRows, Tiles::kHasOnes> hidden_;
  float factors_[kStripRows], rescale_[kStripRows];  // of the tile at hand
  MaskBits mask_bits_;
  int32_t length_;  // of the keys, where a mask is there
  StripSums<1, Tiles::kKeyTiles> scores_;
  Fragment p_[Tiles::kDepth];
  Sums out_[Tiles::kOutTiles];
};

}  // namespace dhp
