// Forward attention of few rows and keys on Hopper: what counts is how long one block takes, not how many
// products the GPU does.
//
// A cluster of two blocks owns kQueryRows query rows of one head. The keys that they see, at most kKeys, are
// dealt in chunks to the warpgroups of both blocks. All that a block reads is on its way at once, in the
// order of its use; nothing is replaced. A warpgroup does for all query rows and its own keys
//
//   1  scores = query . key, chunk after chunk as they come; the maximum of one under the product of the next
//   2  P = exp2(c score - reference), rounded; out += P . value, of one chunk under the exponentials of the
//      next
//   3  two softmaxes become one: those of two warpgroups through shared memory, then those of the blocks,
//      which store into each other's shared memory. Each side finishes half of the channels.
//
// Since the maximum is over all keys of the warpgroup before the first exponential, nothing is rescaled
// before step 3.
//
// Who waits for whom: copies are waited for by the threads that started them, which then meet. A block tells
// its cluster that it has begun once its barriers stand; the other block waits for that before it stores.
// Each warp has a barrier which counts the bytes that the other block's warp sends, and waits there; no block
// ends before all has come that is stored into it.
//
// Constant time: which rows and chunks a warpgroup has, and which of them it looks at for hidden keys,
// follows from its place in the grid, shapes and band.

#pragma once

#include <utility>

#include "device/band.cuh"
#include "device/band_bits.cuh"
#include "device/block_merge.cuh"
#include "device/divisor.cuh"
#include "device/fused_softmax.cuh"
#include "device/merge.cuh"
#include "device/row_copies.cuh"
#include "device/rows.cuh"
#include "device/score_tile.cuh"
#include "device/tile.cuh"
#include "device/tile_ring.cuh"
#include "device/warp.cuh"
#include "device/wgmma.cuh"
#include "params.h"

namespace dhp {

template <typename Config>
struct SmallForwardTiles {
  static constexpr DType kDType = Config::kDType;
  static constexpr int kChannels = Config::kChannels;
  static constexpr bool kHasBand = Config::kHasBand;
  static constexpr int kColumns = kChannels / kBoxChannels;
  static constexpr int kBlocks = BlockMerge::kBlocks;
  static constexpr int kKeys = 512;         // at most
  static constexpr int kGroups = kColumns;  // as the registers of their scores and sums allow
  static constexpr int kThreads = kGroups * kGroupThreads;
  static constexpr int kBlocksResident = kGroups == 1 ? 2 : 1;
  static constexpr int kQueryRows = kGroupRows;
  static constexpr int kGroupKeys = kKeys / kBlocks / kGroups;
  static constexpr int kChunkKeys = 64;
  static constexpr int kChunks = kGroupKeys / kChunkKeys;
  static constexpr int kKeyTiles = kChunkKeys / kMmaColumns;
  static constexpr int kPartDepth = 2;  // fragments of P that are multiplied at a time
  static constexpr int kParts = kChunkKeys / kMmaDepth<kDType> / kPartDepth;  // of a chunk
  static constexpr int kChannelTiles = kChannels / kMmaColumns;
  static constexpr int kGroupTiles = kChannelTiles / kGroups;  // of the channels that a warpgroup merges
  static_assert(kGroupTiles == kBlocks * BlockMerge::kTiles);

  // Shared memory, in bytes from its begin. What a warp gets from another is one place for each tile of
  // sums, and one for the statistics of its rows: 16 bytes a lane each.
  static constexpr int kColumnBytes = kChunkKeys * kBoxRowBytes;  // of 64 rows, as the query's are too
  static constexpr int kChunkBytes = kColumns * kColumnBytes;
  static constexpr int kFirstKey = kColumns * kColumnBytes;
  static constexpr int kFirstValue = kFirstKey + kGroups * kChunks * kChunkBytes;
  static constexpr int kPlaceBytes = kWarpLanes * 16;
  static constexpr int kFromGroup = kFirstValue + kGroups * kChunks * kChunkBytes;
  static constexpr int kFromGroupBytes = kGroups == 1 ? 0 : (kGroupTiles + 1) * kPlaceBytes;  // of a warp
  static constexpr int kWarps = kThreads / kWarpLanes;
  static constexpr int kFromBlock = kFromGroup + kWarps * kFromGroupBytes;
  static constexpr int kOwn = kFromBlock + kWarps * BlockMerge::kOtherBytes;
  static constexpr int kBarriers = kOwn + kWarps * BlockMerge::kOwnBytes;
  static constexpr int kSharedBytes = kBarriers + kWarps * kBarrierBytes;
};

// What the kernel needs to know of a call, at hand in few cache lines. All sizes and offsets fit 32 bits.
struct SmallForwardParams {
  NearRows<const void*> query, key, value;
  struct {
    int32_t T, S, N, D;
  } shape;
  Divisor heads_of_keys_group, batch;
  float scale;
  struct {
    int32_t left, right;
  } band;
  NearRows<void*> out;
  float *row_max, *log_sum;  // [V, B, T, N]
};

// What one warpgroup of a block does.
//
// Grid: the blocks of a cluster and query heads along x, tiles of query rows along y, batch and V along z. So
// the tiles of one head run near each other where the heads are a multiple of 8, and read the same keys.
template <typename Config>
class SmallAttention {
 public:
  using Tiles = SmallForwardTiles<Config>;
  static constexpr DType kDType = Tiles::kDType;

  __device__ SmallAttention(const SmallForwardParams& params, uint32_t sBegin)
      : params_(params),
        sBegin_(sBegin),
        warp_(warp_of_block()),
        rank_(ptx::block_index() % Tiles::kBlocks),
        softmax_(exponent_scale()) {
    uint32_t rest = ptx::block_index_z();
    const int32_t b = static_cast<int32_t>(params.batch.take_index(rest));
    first_ = {static_cast<int32_t>(rest), b, static_cast<int32_t>(ptx::block_index_y()) * Tiles::kQueryRows,
              static_cast<int32_t>(ptx::block_index() / Tiles::kBlocks)};
  }

  __device__ void run() {
    take_keys();
    ptx::wait_for_launch_before();
    RowCopies<Tiles::kColumns, Tiles::kThreads>(params_.query, first_, threadIdx.x, params_.shape.T,
                                                params_.shape.D)
        .template start<0, kGroupRows>(sBegin_);
    run_some<Tiles::kChunks>();
  }

 private:
  // With as many chunks as this warpgroup has.
  template <int kChunks>
  __device__ void run_some() {
    if constexpr (kChunks > 1) {
      if (chunks_ < kChunks) {
        run_some<kChunks - 1>();
        return;
      }
    }
    start_copies<kChunks>();
    ptx::let_next_launch_start();
    for_each<kChunks>([&]<int i>() {
      wait_for_rows<kChunks - i, (i == 0)>();
      start_scores<i>();
      if constexpr (i == 0) block_merge().begin();
      if constexpr (i == (kChunks > 1)) find_results();
      if constexpr (i > 0) take_scores<i - 1, 1, false>();
    });
    take_scores<kChunks - 1, 0, true>();
    softmax_.agree(exponent_scale(), factors_);
    for_each<kChunks * Tiles::kParts>([&]<int i>() {
      exponentiate<i>();
      if constexpr (i == 0) wait_for_rows<0, false>();
      start_output<i>();
    });
    for (float& sum : softmax_.sum) sum = quad_sum(sum);
    if constexpr (Tiles::kGroups > 1) merge_groups();
    merge_blocks();
  }

  template <int count, typename Body>
  __device__ static void for_each(Body body) {
    [&]<int... i>(std::integer_sequence<int, i...>) {
      (body.template operator()<i>(), ...);
    }(std::make_integer_sequence<int, count>());
  }

  __device__ float exponent_scale() const { return params_.scale * kLog2E; }
  __device__ static uint32_t lane() { return threadIdx.x % kWarpLanes; }
  __device__ uint32_t group() const { return Tiles::kGroups == 1 ? 0 : warp_ / kGroupWarps; }
  __device__ uint32_t chunk(int rows, int i) const {
    return sBegin_ + rows + (group() * Tiles::kChunks + i) * Tiles::kChunkBytes;
  }
  // An address in shared memory without the block's rank.
  __device__ static uint32_t operand(uint32_t address) { return address % (1u << 24); }

  // The chunks that the block's query rows see, dealt to the warpgroups of both blocks. Each has at least
  // one, of which there may be nothing to see.
  __device__ void take_keys() {
    constexpr uint32_t kParts = Tiles::kBlocks * Tiles::kGroups;
    uint32_t begin = 0, end = params_.shape.S;  // of what the first row sees, and the last
    if constexpr (Tiles::kHasBand) {
      begin = keys_seen(params_, first_.row).begin;
      end = max(keys_seen(params_, last_row()).end, 0);
    }
    begin /= Tiles::kChunkKeys;
    const int32_t count = (end + Tiles::kChunkKeys - 1) / Tiles::kChunkKeys - begin;
    const int32_t most = static_cast<uint32_t>(max(count, 1) + kParts - 1) / kParts;
    const int32_t before = (rank_ * Tiles::kGroups + group()) * most;
    first_key_ = static_cast<int32_t>(begin + before) * Tiles::kChunkKeys;
    chunks_ = min(max(count - before, 1), most);
  }

  // All that are left: a group for each chunk of keys, the first with the query rows, and one for the values.
  template <int kChunks>
  __device__ void start_copies() const {
    const auto& shape = params_.shape;
    uint32_t head_of_keys = static_cast<uint32_t>(first_.head);
    params_.heads_of_keys_group.take_index(head_of_keys);
    const Place first{first_.v, first_.b, first_key_, static_cast<int32_t>(head_of_keys)};
    using Copies = RowCopies<Tiles::kColumns, kGroupThreads>;
    const uint32_t thread = threadIdx.x % kGroupThreads;
    const Copies keys(params_.key, first, thread, shape.S, shape.D);
    for_each<kChunks>([&]<int i>() {
      keys.template start<i * Tiles::kChunkKeys, Tiles::kChunkKeys>(chunk(Tiles::kFirstKey, i));
      ptx::close_copy_group();
    });
    const Copies values(params_.value, first, thread, shape.S, shape.D);
    for_each<kChunks>([&]<int i>() {
      values.template start<i * Tiles::kChunkKeys, Tiles::kChunkKeys>(chunk(Tiles::kFirstValue, i));
    });
    ptx::close_copy_group();
  }
  // Until what this warpgroup waits for is there for all its warps; the first time, for all of the block.
  template <int kUnderWay, bool kIsFirst>
  __device__ void wait_for_rows() const {
    ptx::wait_for_copies<kUnderWay>();
    ptx::fence_stores();
    if constexpr (Tiles::kGroups == 1 || kIsFirst) {
      __syncthreads();
    } else {
      ptx::meet<kGroupThreads>(1 + group());
    }
  }

  __device__ BlockMerge block_merge() const {
    return {sBegin_ + Tiles::kFromBlock + warp_ * BlockMerge::kOtherBytes,
            sBegin_ + Tiles::kOwn + warp_ * BlockMerge::kOwnBytes,
            sBegin_ + Tiles::kBarriers + warp_ * kBarrierBytes, rank_};
  }

  // Of the first of this lane's two rows, while the copies are under way: where its channels go that this
  // lane stores, and its statistics.
  __device__ void find_results() {
    const uint32_t tile = group() * Tiles::kGroupTiles + rank_ * BlockMerge::kTiles + lane() % 4;
    const Place at{first_.v, first_.b, row(0), first_.head};
    to_ = ptx::opaque(static_cast<int32_t>(params_.out.offset(at) + tile * kChunkBytes));
    const uint32_t of_batch = ptx::block_index_z() * params_.shape.T;
    statistic_ = ptx::opaque(static_cast<int32_t>((of_batch + row(0)) * params_.shape.N + first_.head));
    stores_ = static_cast<int32_t>(tile) * kMmaColumns < params_.shape.D;
  }

  template <int i>
  __device__ void start_scores() {
    ptx::fence_products();
    start_rows_by_rows<kDType, Tiles::kChannels, kGroupRows>(
        scores_[i], SharedOperand::by_rows(operand(sBegin_)),
        SharedOperand::by_rows(operand(chunk(Tiles::kFirstKey, i))));
  }
  template <int i, int kUnderWay, bool kIsLast>
  __device__ void take_scores() {
    finish_products<kUnderWay>(scores_[i]);
    const int32_t key = first_key_ + i * Tiles::kChunkKeys;
    if constexpr (Tiles::kHasBand || kIsLast) {  // the end of the keys lies in the last chunk
      if (!sees_all(key)) hide(scores_[i], key);
    }
    softmax_.look_at(scores_[i]);
  }

  // Whether every row of the tile sees every key of the chunk at `key`.
  __device__ bool sees_all(int32_t key) const {
    if constexpr (!Tiles::kHasBand) return key + Tiles::kChunkKeys <= params_.shape.S;
    return (key >= keys_seen(params_, last_row()).begin) &
           (key + Tiles::kChunkKeys <= keys_seen(params_, first_.row).end);
  }
  __device__ int32_t last_row() const { return min(first_.row + kGroupRows, params_.shape.T) - 1; }
  __device__ int32_t row(int half) const {
    return first_.row +
           static_cast<int32_t>(threadIdx.x / kWarpLanes % kGroupWarps * kMmaRows + half * 8 + lane() / 4);
  }
  __device__ void hide(Sums (&scores)[Tiles::kKeyTiles], int32_t key) const {
#pragma unroll
    for (int half = 0; half < kStripRows; ++half) {
      Range seen{0, params_.shape.S};
      if constexpr (Tiles::kHasBand) seen = keys_seen(params_, row(half));
      hide_outside(scores, half, {seen.begin - key, seen.end - key});
    }
  }

  // The i-th part of all chunks.
  template <int i>
  __device__ void exponentiate() {
    Sums(&scores)[Tiles::kKeyTiles] = scores_[i / Tiles::kParts];
#pragma unroll
    for (int j = 0; j < Tiles::kPartDepth; ++j) {
      const int k = i % Tiles::kParts * Tiles::kPartDepth + j;
#pragma unroll
      for (int tile = 2 * k; tile < 2 * k + 2; ++tile) {
#pragma unroll
        for (int place = 0; place < 4; ++place) {
          float& score = scores[tile][place];
          score = FusedSoftmax::weight(score, factors_[place / 2], softmax_.reference_of(place / 2));
          softmax_.sum[place / 2] += score;
        }
      }
      as_left_fragment<kDType>(p_[i][j], scores, k);
    }
  }
  // The own channels last: what the other warpgroup gets can go before they are there.
  template <int i>
  __device__ void start_output() {
    constexpr int kPartBytes = Tiles::kPartDepth * kMmaRows * kBoxRowBytes;
    const uint32_t values =
        operand(chunk(Tiles::kFirstValue, i / Tiles::kParts)) + i % Tiles::kParts * kPartBytes;
    ptx::fence_products();
#pragma unroll
    for (int of = Tiles::kGroups - 1; of >= 0; --of) {
      const uint32_t column = (group() + of) % Tiles::kGroups * Tiles::kColumnBytes;
      start_weighted_rows<kDType, kMmaRows * kBoxRowBytes / SharedOperand::kUnit, (i > 0)>(
          out_[of], p_[i], SharedOperand::by_columns(values + column, Tiles::kColumnBytes));
    }
  }

  // Of the block's two warpgroups each gets the other's sums of its own channels.
  __device__ void merge_groups();
  // The same of the two blocks, and stores the result.
  __device__ void merge_blocks();

  const SmallForwardParams& params_;
  uint32_t sBegin_;
  uint32_t warp_, rank_;
  Place first_;                 // query row of the block
  int32_t first_key_, chunks_;  // of the warpgroup
  int32_t to_, statistic_;
  bool stores_;
  FusedSoftmax softmax_;
  float factors_[kStripRows];
  Sums scores_[Tiles::kChunks][Tiles::kKeyTiles];
  Fragment p_[Tiles::kChunks * Tiles::kParts][Tiles::kPartDepth];
  Sums out_[Tiles::kGroups][Tiles::kGroupTiles];  // of the warpgroup's own channels, and the other's
};

template <typename Config>
__device__ void SmallAttention<Config>::merge_groups() {
  const uint32_t place = Tiles::kFromGroup + lane() * 16;
  const uint32_t other_warp = warp_ ^ kGroupWarps;
  const uint32_t to = sBegin_ + place + other_warp * Tiles::kFromGroupBytes;
  const uint32_t from = sBegin_ + place + warp_ * Tiles::kFromGroupBytes;
  Sums statistics;
  BlockMerge::take_statistics(softmax_, statistics);
  ptx::store_shared_4(to, statistics);
  finish_products<1>(out_[1]);
#pragma unroll
  for (int tile = 0; tile < Tiles::kGroupTiles; ++tile) {
    ptx::store_shared_4(to + (1 + tile) * Tiles::kPlaceBytes, out_[1][tile]);
  }
  finish_products<0>(out_[0]);
  ptx::meet<2 * kWarpLanes>(1 + Tiles::kGroups + warp_ % kGroupWarps);
  float weights[kStripRows], other_weights[kStripRows];
  BlockMerge::merge_statistics(softmax_, from, weights, other_weights);
#pragma unroll
  for (int tile = 0; tile < Tiles::kGroupTiles; ++tile) {
    Sums other;
    ptx::load_shared_4(other, from + (1 + tile) * Tiles::kPlaceBytes);
    add_weighted(out_[0][tile], weights, other, other_weights);
  }
}

template <typename Config>
__device__ void SmallAttention<Config>::merge_blocks() {
  float rows[kStripRows][kMmaColumns];
  block_merge().run(
      softmax_, out_[0],
      [&] {
        if constexpr (Tiles::kGroups == 1) finish_products<0>(out_[0]);
      },
      rows);
  const StatisticOfLane statistic(softmax_, rank_, params_.scale, exponent_scale());
  char* const to = static_cast<char*>(params_.out.data) + static_cast<uint32_t>(to_);
#pragma unroll
  for (int half = 0; half < kStripRows; ++half) {
    if (stores_ & (row(half) < params_.shape.T)) {
      store_chunk<kDType>(to + half * (8ull * params_.out.stride_row), rows[half]);
    }
  }
  if ((lane() % 4 < 2) & (group() == 0) & (row(static_cast<int>(rank_)) < params_.shape.T)) {
    float* const statistics = statistic.is_of_sum ? params_.log_sum : params_.row_max;
    statistics[static_cast<uint32_t>(statistic_) + rank_ * 8 * params_.shape.N] = statistic.value;
  }
}

template <typename Config>
__global__ void __cluster_dims__(SmallForwardTiles<Config>::kBlocks, 1, 1)
    __launch_bounds__(SmallForwardTiles<Config>::kThreads, SmallForwardTiles<Config>::kBlocksResident)
        attention_fwd_small_sm90(const __grid_constant__ SmallForwardParams params) {
  extern __shared__ __align__(kBoxAlignment) unsigned char sMemory[];
  SmallAttention<Config>(params, ptx::shared_address(sMemory)).run();
}

}  // namespace dhp
