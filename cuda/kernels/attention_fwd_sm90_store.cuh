// How the results of attention_fwd_sm90 leave.

#pragma once

#include <cfloat>
#include <cstdint>

#include "device/block_merge.cuh"
#include "kernels/attention_fwd_sm90_group.cuh"

namespace dhp {

// The rows of a warpgroup: by way of shared memory and a copy, where the place of the item's query rows is
// free by now, or 16 bytes a lane. The first takes 150 instructions of a warp less with 128 channels.
template <typename Config>
__device__ void GroupAttention<Config>::store(const Item<Tiles>& done) const {
  constexpr int kChunkTiles = 4;  // whose words in four lanes make four chunks
  const Shape& shape = problem().shape;
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int32_t row_0 = lane_row(done);
  int32_t length = INT32_MAX;
  constexpr bool has_lengths = Tiles::kHasLengths || Tiles::kHasMaskBits;
  if constexpr (has_lengths) length = true_length(problem().query_lengths, done);
#pragma unroll
  for (int half = 0; half < kStripRows; ++half) {
    const Place at{done.first.v, done.first.b, row_0 + half * 8, done.first.head};
    const bool exists = at.row < shape.T;
    float sum;
    if constexpr (Tiles::kHasOnes) {
      sum = out_[Tiles::kChannelTiles][2 * half];
      if constexpr (Tiles::kHasLengths) sum = __shfl_sync(kAllLanes, sum, lane | 3);
    } else {
      sum = quad_sum(softmax_.sum[half]);
    }
    CtMask is_empty = ct_equal(sum, 0.0f);  // no key took part, or all that did scored -inf
    if constexpr (has_lengths) is_empty = ~(ct_less(at.row, length) & ~is_empty);
    const float factor = ct_reciprocal(sum);
    if (lane % 4 == 0 && exists) {
      const int64_t index = statistic_index(shape, at);
      params_.forward.row_max[index] = fmaxf(softmax_.max[half] * scale_left(), -FLT_MAX);
      params_.forward.log_sum[index] =
          ct_select(is_empty, -INFINITY, kLn2 * softmax_.log2_sum(half, sum, exponent_scale()));
    }
    const auto word = [&](int tile) {
      return pack<kDType>(factor * out_[tile][2 * half], factor * out_[tile][2 * half + 1]) & ~is_empty.bits;
    };
    if constexpr (Tiles::kStoresByCopy) {
      const uint32_t row = supply_.query_rows(group_, done.round) +
                           (warp_ % kGroupWarps * kMmaRows + half * 8 + lane / 4) * kBoxRowBytes;
#pragma unroll
      for (int tile = 0; tile < Tiles::kChannelTiles; ++tile) {
        const int column = tile / 8, chunk = tile % 8 ^ lane / 4;
        ptx::store_shared(row + column * kGroupRows * kBoxRowBytes + chunk * 16 + lane % 4 * 4, word(tile));
      }
    } else {
      Element<kDType>* const to = row_at<kDType>(params_.forward.out, at);
#pragma unroll
      for (int tile = 0; tile < Tiles::kChannelTiles; tile += kChunkTiles) {
        uint32_t words[kChunkTiles];
#pragma unroll
        for (int i = 0; i < kChunkTiles; ++i) words[i] = word(tile + i);
        transpose_in_quad(words);
        const int channel = (tile + ptx::opaque(lane % 4)) * kMmaColumns;
        if (exists && channel < shape.D) {
          *reinterpret_cast<uint4*>(to + channel) = {words[0], words[1], words[2], words[3]};
        }
      }
    }
  }
  if constexpr (Tiles::kStoresByCopy) {
    ptx::fence_stores();
    ptx::meet<kGroupThreads>(1 + group_);
    if (warp_ % kGroupWarps == 0) supply_.store_output(done, group_);
  }
}

// The same of what two blocks have, by each for half of the channels.
template <typename Config>
__device__ void GroupAttention<Config>::merge_and_store() {
  const Shape& shape = problem().shape;
  const uint32_t rank = ptx::block_index() % Tiles::kBlocks;
#pragma unroll
  for (int half = 0; half < kStripRows; ++half) softmax_.sum[half] = out_[Tiles::kChannelTiles][2 * half];
  float rows[kStripRows][kMmaColumns];
  supply_.block_merge(warp_).run(softmax_, out_, [] {}, rows);
  const StatisticOfLane statistic(softmax_, rank, problem().scale, exponent_scale());
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int channel = (static_cast<int>(rank) * BlockMerge::kTiles + lane % 4) * kMmaColumns;
#pragma unroll
  for (int half = 0; half < kStripRows; ++half) {
    const Place at{item_.first.v, item_.first.b,
                   first_row() + warp_ % kGroupWarps * kMmaRows + half * 8 + lane / 4, item_.first.head};
    if (at.row >= shape.T) continue;
    if (channel < shape.D) store_chunk<kDType>(row_at<kDType>(params_.forward.out, at) + channel, rows[half]);
    if ((lane % 4 < 2) & (static_cast<int>(rank) == half)) {
      float* const statistics = statistic.is_of_sum ? params_.forward.log_sum : params_.forward.row_max;
      statistics[statistic_index(shape, at)] = statistic.value;
    }
  }
}

}  // namespace dhp
