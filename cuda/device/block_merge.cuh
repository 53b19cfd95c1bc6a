// Two blocks of a cluster have the softmax of the same rows over different keys, and make one of them: each
// stores half of its sums in the other's shared memory, and finishes the other half.

#pragma once

#include <cstdint>

#include "device/ct.cuh"
#include "device/fused_softmax.cuh"
#include "device/merge.cuh"
#include "device/ptx.cuh"
#include "device/ptx_sm90.cuh"
#include "device/tile_ring.cuh"
#include "device/warp.cuh"

namespace dhp {

// One warp's part, two rows of 64 columns a lane. The warp of the same number in the other block has the same
// rows, and is its partner.
class BlockMerge {
 public:
  static constexpr int kBlocks = 2;
  static constexpr int kTiles = 4;  // of 8 columns, that each block finishes: one for each lane of four
  // What a warp needs in shared memory: for the other's sums and statistics, for own sums.
  static constexpr int kPlaceBytes = kWarpLanes * 16;
  static constexpr int kOtherBytes = (kTiles + 1) * kPlaceBytes, kOwnBytes = kTiles * kPlaceBytes;

  //   other_sums, barrier  at the same place in both blocks, and used for nothing else
  __device__ BlockMerge(uint32_t other_sums, uint32_t own_sums, uint32_t barrier, uint32_t rank)
      : other_sums_(other_sums), own_sums_(own_sums), barrier_(barrier), rank_(rank) {}

  // Makes the barrier at which the partner's stores are waited for, and tells it that this block has begun.
  // All lanes make it, each with the same words, and each announces what the lane of the same number sends.
  __device__ void begin() const {
    ptx::init_barrier(barrier_, kWarpLanes);
    ptx::fence_barrier_init();
    __syncwarp();
    ptx::arrive_expecting(barrier_, (kTiles + 1) * kPlaceBytes / kWarpLanes);
    ptx::arrive_at_cluster();
  }

  // The rows' outputs, columns 32 rank + 8 (lane % 4) on, 0 where no key took part or all that did scored
  // -inf.
  //   softmax  sums are of whole rows; becomes that of both blocks
  //   out      its sums, when `wait_for_sums` has returned
  template <typename Wait>
  __device__ void run(FusedSoftmax& softmax, const Sums* out, Wait wait_for_sums,
                      float (&rows)[kStripRows][kMmaColumns]) const {
    const uint32_t to = ptx::address_in_block(other_sums_, rank_ ^ 1);
    const uint32_t to_barrier = ptx::address_in_block(barrier_, rank_ ^ 1);
    Sums statistics;
    take_statistics(softmax, statistics);
    ptx::wait_for_cluster();
    ptx::store_async(to + kStatistics + lane() * 16, statistics, to_barrier);
    wait_for_sums();
    if (rank_ == 0) {
      give(out + kTiles, out, to, to_barrier);
    } else {
      give(out, out + kTiles, to, to_barrier);
    }
    __syncwarp();
    wait_for_phase(barrier_, 0);
    float weights[kStripRows], other_weights[kStripRows];
    merge_statistics(softmax, other_sums_ + kStatistics + lane() * 16, weights, other_weights);
    CtMask is_kept[kStripRows];
#pragma unroll
    for (int half = 0; half < kStripRows; ++half) {
      const float factor = ct_reciprocal(softmax.sum[half]);
      weights[half] *= factor;
      other_weights[half] *= factor;
      is_kept[half] = ~ct_equal(softmax.sum[half], 0.0f);
    }
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      const uint32_t place = place_of(lane() % 4, lane() / 4 * 4 + i);
      Sums sums, other;
      ptx::load_shared_4(sums, own_sums_ + place);
      ptx::load_shared_4(other, other_sums_ + place);
      add_weighted(sums, weights, other, other_weights);
#pragma unroll
      for (int j = 0; j < 4; ++j) rows[j / 2][2 * i + j % 2] = ct_keep(is_kept[j / 2], sums[j]);
    }
  }

  // What four lanes have of two rows, each of two lanes a part, and what becomes of it with that of others.
  __device__ static void take_statistics(const FusedSoftmax& softmax, Sums& part) {
    choose(part, lane() % 4 == 0,
           {softmax.reference[0], softmax.reference[1], softmax.sum[0], softmax.sum[1]},
           {softmax.max[0], softmax.max[1], 0.0f, 0.0f});
  }
  __device__ static void merge_statistics(FusedSoftmax& softmax, uint32_t from, float (&weights)[kStripRows],
                                          float (&other_weights)[kStripRows]) {
    from -= lane() % 4 * 16;
    float other[4];
    ptx::load_shared_4(other, from);
    const float2 max = ptx::load_shared_2(from + 16);
    softmax.merge(other, weights, other_weights);
    softmax.max[0] = fmaxf(softmax.max[0], max.x);
    softmax.max[1] = fmaxf(softmax.max[1], max.y);
  }

 private:
  static constexpr uint32_t kStatistics = kTiles * kPlaceBytes;

  __device__ static uint32_t lane() { return threadIdx.x % kWarpLanes; }

  // A tile of sums, of which four lanes hold a part each, goes to a place where one of them finds all 8
  // columns: 16 bytes of each lane, which change places so that lanes read different banks.
  __device__ static uint32_t place_of(uint32_t tile, uint32_t of_lane) {
    return tile * kPlaceBytes + (of_lane ^ tile) * 16;
  }
  __device__ void give(const Sums* sent, const Sums* own, uint32_t to, uint32_t to_barrier) const {
#pragma unroll
    for (uint32_t tile = 0; tile < kTiles; ++tile) {
      ptx::store_async(to + place_of(tile, lane()), sent[tile], to_barrier);
    }
#pragma unroll
    for (uint32_t tile = 0; tile < kTiles; ++tile) {
      ptx::store_shared_4(own_sums_ + place_of(tile, lane()), own[tile]);
    }
  }

  uint32_t other_sums_, own_sums_, barrier_, rank_;
};

// The statistics of a row that both blocks and four lanes have: block r stores those of the second row if r
// is 1, its first lane of four the maximum and the second the sum.
struct StatisticOfLane {
  float value;
  bool is_of_sum;

  __device__ StatisticOfLane(const FusedSoftmax& softmax, uint32_t rank, float scale, float exponent_scale) {
    const bool is_second = rank != 0;
    is_of_sum = threadIdx.x % 4 != 0;
    const float sum = is_second ? softmax.sum[1] : softmax.sum[0];
    const float log2_sum =
        is_second ? softmax.log2_sum(1, sum, exponent_scale) : softmax.log2_sum(0, sum, exponent_scale);
    const float max = fmaxf((is_second ? softmax.max[1] : softmax.max[0]) * scale, -FLT_MAX);
    value = is_of_sum ? ct_select(ct_equal(sum, 0.0f), -INFINITY, kLn2 * log2_sum) : max;
  }
};

// 8 neighbouring channels of a row.
template <DType dtype>
__device__ void store_chunk(void* to, const float (&values)[kMmaColumns]) {
  *reinterpret_cast<uint4*>(to) = {pack<dtype>(values[0], values[1]), pack<dtype>(values[2], values[3]),
                                   pack<dtype>(values[4], values[5]), pack<dtype>(values[6], values[7])};
}

}  // namespace dhp
