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
#include "device/band_bits.cuh"
#include "device/divisor.cuh"
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
  TensorMap query, key, value;
  uint32_t items;  // of all blocks
  // Items are counted along the tiles of query rows, then heads, batch and V. With a band, heads (of the whole
  // batch and V) come in sections, the last of which may be smaller, and in a section items are counted along
  // the heads.
  Divisor tiles, heads, batch, heads_of_keys_group;
  Divisor section_items, section, last_section;
};

// An item of work: kQueryRows query rows of one head, and the key tiles that they see, from the last to the
// first. Tiles are numbered in the order in which a block uses them, through all its items.
template <typename Tiles>
struct Item {
  uint32_t round;  // of the block
  bool exists;
  Place first;     // its first query row
  int32_t head_of_keys;
  int begin, end;  // its tiles
  int top;         // the place on the key axis of tile n is top - n

  __device__ int32_t key(int n) const { return (top - n) * Tiles::kKeyRows; }
};

__device__ inline int count_tiles(int32_t rows, int size) { return (rows + size - 1) / size; }

// Blocks take items in turn, in every second round the other way round. Where later rows see more, heads come
// in sections, and in a section the last rows come first, all heads beside each other: so a block that has
// much to do in one round has little in the next.
template <typename Tiles>
__device__ Item<Tiles> item_of_block(const HopperForwardParams& params, uint32_t round, int begin) {
  const Problem& problem = params.forward.problem;
  const Shape& shape = problem.shape;
  const uint32_t block = ptx::block_index(), blocks = ptx::grid_size();
  uint32_t rest = round * blocks + (round % 2 == 0 ? block : blocks - 1 - block);
  Item<Tiles> item{};
  item.round = round;
  item.exists = rest < params.items;
  uint32_t tile;
  if constexpr (Tiles::kHasBand) {
    uint32_t section = rest, from_last = params.section_items.take_index(section);
    const bool is_last = (section + 1) * params.section_items.divisor > params.items;
    const uint32_t head = (is_last ? params.last_section : params.section).take_index(from_last);
    tile = params.tiles.divisor - 1 - from_last;
    rest = section * params.section.divisor + head;
  } else {
    tile = params.tiles.take_index(rest);
  }
  const int32_t head = static_cast<int32_t>(params.heads.take_index(rest));
  const int32_t b = static_cast<int32_t>(params.batch.take_index(rest));
  item.first = {uniform(static_cast<int32_t>(rest)), uniform(b),
                uniform(static_cast<int32_t>(tile) * Tiles::kQueryRows), uniform(head)};
  uint32_t head_of_keys = static_cast<uint32_t>(head);
  params.heads_of_keys_group.take_index(head_of_keys);
  item.head_of_keys = uniform(static_cast<int32_t>(head_of_keys));
  int end = count_tiles(static_cast<int32_t>(shape.S), Tiles::kKeyRows), num_tiles = end;
  if constexpr (Tiles::kHasBand) {
    const int32_t last_row =
        min(item.first.row + Tiles::kQueryRows, static_cast<int32_t>(problem.shape.T)) - 1;
    end = uniform(count_tiles(keys_seen(problem, last_row).end, Tiles::kKeyRows));
    num_tiles = uniform(max(end - keys_seen(problem, item.first.row).begin / Tiles::kKeyRows, 0));
  }
  item.begin = begin;
  item.end = begin + num_tiles;
  item.top = begin + end - 1;
  return item;
}

// What a warp does beside computing: two warps of a block load.
enum class Role { kNone, kLoadsKeys, kLoadsValues };

// The rings of a block and what fills them.
template <typename Tiles>
class Supply {
 public:
  __device__ Supply(const HopperForwardParams& params, uint32_t sBegin)
      : keys(sBegin + Tiles::kKeys, sBegin + Tiles::kKeyBarriers),
        values(sBegin + Tiles::kValues, sBegin + Tiles::kValueBarriers),
        params_(params),
        sBegin_(sBegin) {}

  __device__ void init() const {
    for (int group = 0; group < Tiles::kGroups; ++group) ptx::init_barrier(query_barrier(group), 1);
    keys.init();
    values.init();
    ptx::fence_barrier_init();
  }

  __device__ uint32_t query_rows(int group) const { return sBegin_ + group * Tiles::kQueryBytes; }
  __device__ uint32_t query_barrier(int group) const {
    return sBegin_ + Tiles::kQueryBarriers + group * kBarrierBytes;
  }
  // The query rows of a warpgroup. One warp.
  __device__ void load_query(const Item<Tiles>& item, int group) const {
    Place at = place_in(problem().query, item.first);
    at.row += group * kGroupRows;
    if (ptx::is_elected()) {
      ptx::arrive_expecting(query_barrier(group), Tiles::kQueryBytes);
      load_rows<kGroupRows, Tiles::kColumns>(query_rows(group), params_.query, query_barrier(group), at);
    }
  }
  // Tile n of keys (or values), of this item or one of the next. One warp.
  __device__ void load(Role role, const Item<Tiles>& item, int n) const {
    if (n < item.end) {
      load_of(role, item, n);
    } else {
      Item<Tiles> of = item;
      do {
        of = item_of_block<Tiles>(params_, of.round + 1, of.end);
      } while (of.exists & (n >= of.end));
      if (of.exists) load_of(role, of, n);
    }
  }

  TileRing<Tiles> keys, values;

 private:
  __device__ void load_of(Role role, const Item<Tiles>& item, int n) const {
    const Place at{item.first.v, item.first.b, item.key(n), item.head_of_keys};
    if (role == Role::kLoadsKeys) {
      keys.load(params_.key, n, place_in(problem().key, at));
    } else {
      values.load(params_.value, n, place_in(problem().value, at));
    }
  }
  __device__ const Problem& problem() const { return params_.forward.problem; }

  const HopperForwardParams& params_;
  uint32_t sBegin_;
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

  __device__ GroupAttention(const HopperForwardParams& params, const Supply<Tiles>& supply,
                            const Item<Tiles>& item, int group, Role role)
      : params_(params),
        supply_(supply),
        item_(item),
        group_(group),
        role_(role),
        softmax_(exponent_scale()) {}

  __device__ void run() {
    wait_for_phase(supply_.query_barrier(group_), static_cast<int>(item_.round));
    const Range own = own_tiles();
    int n = item_.begin;
    for (; at_head(n < own.begin); ++n) skip(n);
    if (own.begin == own.end) load_next_query();
    if constexpr (Tiles::kOverlaps) {
      if (own.begin < own.end) {
        start_scores(n);
        finish_scores<0>(n);
        weigh(true);
        for (; at_head(n < own.end - 1); ++n) {
          start_scores(n + 1);
          start_output(n);
          finish_scores<1>(n + 1);
          exponentiate();
          finish_output(n);
          rescale_and_round();
        }
        load_next_query();
        start_output(n);
        finish_output(n);
        ++n;
      }
    } else {
      for (; at_head(n < own.end); ++n) {
        start_scores(n);
        refill(n);
        finish_scores<0>(n);
        weigh(false);
        start_output(n);
        finish_output(n);
      }
      if (own.begin < own.end) load_next_query();
    }
    for (; at_head(n < item_.end); ++n) skip(n);
  }

  __device__ void store() const;

 private:
  __device__ const Problem& problem() const { return params_.forward.problem; }
  __device__ float exponent_scale() const { return problem().scale * kLog2E; }
  __device__ bool is_first_of_group() const { return threadIdx.x % kGroupThreads == 0; }

  // Of this warpgroup.
  __device__ int32_t first_row() const { return item_.first.row + group_ * kGroupRows; }
  __device__ int32_t last_row(int32_t row) const {
    return min(row + kGroupRows, static_cast<int32_t>(problem().shape.T)) - 1;
  }
  // The tiles that have keys which a row of the warpgroup sees.
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
    const int32_t row_0 = first_row() + static_cast<int32_t>(threadIdx.x) % kGroupThreads / kWarpLanes * kMmaRows +
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
    if constexpr (!Tiles::kHasProducer) {
      if (role_ == Role::kLoadsKeys) {
        supply_.load(Role::kLoadsKeys, item_, n + Tiles::kAhead);
      } else if (role_ == Role::kLoadsValues) {
        supply_.load(Role::kLoadsValues, item_, n + Tiles::kAhead);
      }
    }
  }
  // When the last product of this item's query rows is over.
  __device__ void load_next_query() const {
    ptx::meet<kGroupThreads>(1 + group_);
    if (warp_of_block() == group_ * kGroupWarps) {
      const Item<Tiles> next = item_of_block<Tiles>(params_, item_.round + 1, 0);
      if (next.exists) supply_.load_query(next, group_);
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
        scores_, SharedOperand::by_rows(supply_.query_rows(group_)),
        SharedOperand::by_rows(sKeys));
  }
  template <int kUnderWay>
  __device__ void finish_scores(int i) {
    finish_products<kUnderWay>(scores_);
    if (is_first_of_group()) supply_.keys.release(i);
    const int32_t key = item_.key(i);
    if (!sees_all(key)) hide_out_of_band(key);
    softmax_.take_max(scores_, exponent_scale(), factors_, rescale_);
  }

  __device__ void start_output(int i) {
    // The column of ones is the second 64 columns of every step: it stands in one place, so the distance to
    // it shrinks as the rows go on.
    constexpr uint32_t kRows = kMmaRows * kBoxRowBytes / SharedOperand::kUnit;
    constexpr uint32_t kStep = Tiles::kHasOnes ? kRows - (kRows << 16) : kRows;
    const uint32_t sValues = supply_.values.take(ptx::opaque(i));  // place and phase are not kept from the keys
    const uint32_t next = Tiles::kHasOnes ? supply_.query_rows(0) + Tiles::kOnes - sValues : Tiles::kColumnBytes;
    ptx::fence_products();
    start_weighted_rows<kDType, kStep>(out_, p_, SharedOperand::by_columns(sValues, next));
  }
  __device__ void finish_output(int i) {
    finish_products<0>(out_);
    if (is_first_of_group()) supply_.values.release(ptx::opaque(i));
  }

  // Two tiles of scores, which P has one fragment for.
  __device__ void exponentiate(int k, float (&tile_sum)[kStripRows]) {
#pragma unroll
    for (int tile = 2 * k; tile < 2 * k + 2; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& score = scores_[tile][i];
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
      as_left_fragment<kDType>(p_[k], scores_, k);
      rescale(k);
    }
  }
  // All of it. The multiplications of the output stand between the exponentials, whose unit is slower.
  __device__ void weigh(bool is_first) {
    float tile_sum[kStripRows] = {};
#pragma unroll
    for (int k = 0; k < Tiles::kDepth; ++k) {
      exponentiate(k, tile_sum);
      as_left_fragment<kDType>(p_[k], scores_, k);
      if (!is_first) rescale(k);
    }
    add_to_sum(tile_sum);
  }

  const HopperForwardParams& params_;
  const Supply<Tiles>& supply_;
  const Item<Tiles>& item_;
  int group_;
  Role role_;
  FusedSoftmax softmax_;
  float factors_[kStripRows], rescale_[kStripRows];  // of the tile at hand
  Sums scores_[Tiles::kKeyTiles];
  Fragment p_[Tiles::kDepth];
  Sums out_[Tiles::kOutTiles] = {};
};

// Writes the rows of a warpgroup, 16 bytes a lane.
template <typename Config>
__device__ void GroupAttention<Config>::store() const {
  constexpr float kLn2 = 0.6931471805599453f;
  constexpr int kChunkTiles = 4;  // whose words in four lanes make four chunks
  const Shape& shape = problem().shape;
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int row_0 = first_row() + static_cast<int>(threadIdx.x) % kGroupThreads / kWarpLanes * kMmaRows + lane / 4;
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
      const int channel = (tile + lane % 4) * kMmaColumns;
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
  constexpr int kFirstLoader = (Tiles::kGroups - !Tiles::kHasProducer) * kGroupWarps;
  const int warp = warp_of_block(), group = warp / kGroupWarps;
  const Role role = warp == kFirstLoader       ? Role::kLoadsKeys
                    : warp == kFirstLoader + 1 ? Role::kLoadsValues
                                               : Role::kNone;

  Item<Tiles> item = item_of_block<Tiles>(params, 0, 0);
  const Supply<Tiles> supply(params, sBegin);
  if constexpr (Tiles::kHasOnes) fill_with_ones<Tiles>(sBegin + Tiles::kOnes);
  if (role == Role::kLoadsKeys) {
    if (ptx::is_elected()) supply.init();
    __syncwarp();
    for (int i = 0; i < Tiles::kGroups; ++i) supply.load_query(item, i);
    for (int n = 0; n < Tiles::kAhead; ++n) {
      supply.load(Role::kLoadsKeys, item, n);
      supply.load(Role::kLoadsValues, item, n);
    }
  }
  __syncthreads();

  if (Tiles::kHasProducer && group == Tiles::kGroups) {
    ptx::give_registers<Tiles::kProducerRegisters>();
    int n = Tiles::kAhead;
    if (role == Role::kLoadsKeys) {
      for (; item.exists; item = item_of_block<Tiles>(params, item.round + 1, item.end)) {
        for (; n < item.end; ++n) supply.load(Role::kLoadsKeys, item, n);
      }
    } else if (role == Role::kLoadsValues) {
      for (; item.exists; item = item_of_block<Tiles>(params, item.round + 1, item.end)) {
        for (; n < item.end; ++n) supply.load(Role::kLoadsValues, item, n);
      }
    }
  } else {
    if constexpr (Tiles::kHasProducer) ptx::take_registers<Tiles::kConsumerRegisters>();
    for (; at_head(item.exists); item = item_of_block<Tiles>(params, item.round + 1, item.end)) {
      GroupAttention<Config> attention(params, supply, item, group, role);
      attention.run();
      attention.store();
    }
  }
}

}  // namespace dhp
