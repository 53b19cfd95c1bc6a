// Products of tiles: the sums of one warp, strips of 16 rows by tiles of 8 columns.

#pragma once

#include <cstdint>

#include "device/mma.cuh"
#include "device/tile.cuh"
#include "params.h"

namespace dhp {

template <int kStrips, int kTiles>
using StripSums = Sums[kStrips][kTiles];

// Left operands of a product that sums over 16 kDepth columns.
template <int kStrips, int kDepth>
using StripFragments = Fragment[kStrips][kDepth];

// sums = left . right^T, the dot product of each row of one tile with each row of the other.
//   left   tile of the warp's 16 kStrips rows
//   right  tile of 8 kTiles rows
template <DType dtype, int kChannels, int kStrips, int kTiles>
__device__ void multiply_rows_by_rows(StripSums<kStrips, kTiles>& sums, uint32_t left, uint32_t right) {
  const uint32_t left_place = lane_in_rows<kChannels>(left);
  const uint32_t right_place = lane_in_columns<kChannels>(right);
#pragma unroll
  for (int strip = 0; strip < kStrips; ++strip) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (float& sum : sums[strip][tile]) sum = 0.0f;
    }
  }
#pragma unroll
  for (int k = 0; k < kChannels / kMmaDepth; ++k) {
    Fragment rows[kStrips];
#pragma unroll
    for (int strip = 0; strip < kStrips; ++strip) {
      load_matrices(rows[strip], fragment_at<kChannels>(left_place, strip * kMmaRows, k));
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; tile += 2) {
      Fragment columns;
      load_matrices(columns, fragment_at<kChannels>(right_place, tile * kMmaColumns, k));
#pragma unroll
      for (int strip = 0; strip < kStrips; ++strip) {
        multiply_add<dtype>(sums[strip][tile], rows[strip], columns[0], columns[1]);
        multiply_add<dtype>(sums[strip][tile + 1], rows[strip], columns[2], columns[3]);
      }
    }
  }
}

// sums += left . right, weighted sums of rows.
//   right  tile of 16 kDepth rows
//   kept   kept(k) gives, for the k-th 16 rows, the words that keep of each register what counts
template <DType dtype, int kStrips, int kTiles, int kDepth, typename Kept>
__device__ void add_weighted_rows(StripSums<kStrips, kTiles>& sums,
                                  const StripFragments<kStrips, kDepth>& left, uint32_t right, Kept kept) {
  constexpr int kChannels = kTiles * kMmaColumns;
  const uint32_t right_place = lane_in_rows<kChannels>(right);
#pragma unroll
  for (int k = 0; k < kDepth; ++k) {
    const uint2 keep = kept(k);
#pragma unroll
    for (int tile = 0; tile < kTiles; tile += 2) {
      Fragment rows;
      load_matrices_transposed(rows, fragment_at<kChannels>(right_place, k * kMmaDepth, tile / 2));
      rows[0] &= keep.x, rows[2] &= keep.x;
      rows[1] &= keep.y, rows[3] &= keep.y;
#pragma unroll
      for (int strip = 0; strip < kStrips; ++strip) {
        multiply_add<dtype>(sums[strip][tile], left[strip][k], rows[0], rows[1]);
        multiply_add<dtype>(sums[strip][tile + 1], left[strip][k], rows[2], rows[3]);
      }
    }
  }
}

// Sums, rounded, as the left operands of a next product.
template <DType dtype, int kTiles>
__device__ void round_strip(Fragment (&left)[kTiles / 2], const Sums (&sums)[kTiles]) {
#pragma unroll
  for (int k = 0; k < kTiles / 2; ++k) as_left_operand<dtype>(left[k], sums[2 * k], sums[2 * k + 1]);
}

// Writes factor(strip, half) * sums, a row at a time, by way of shared memory; 0 where keep(strip, half) does
// not hold. `half` is 0 for row lane / 4 of a strip, 1 for that + 8.
//   sRows  a tile of the warp's own, whose content is not needed any more
//   first  the warp's first row; rows from `end` on do not exist
template <DType dtype, int kStrips, int kTiles, typename Factor, typename Keep>
__device__ void store_strips(const StripSums<kStrips, kTiles>& sums, Factor factor, Keep keep, uint32_t sRows,
                             const OutRows& rows, const Place& first, int64_t end, int64_t channels) {
  constexpr int kChannels = kTiles * kMmaColumns;
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  __syncwarp();  // what was there has been read
#pragma unroll
  for (int strip = 0; strip < kStrips; ++strip) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = strip * kMmaRows + half * 8 + lane / 4;
      const float times = factor(strip, half);
      const CtMask kept = keep(strip, half);
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const float left = ct_keep(kept, times * sums[strip][tile][2 * half]);
        const float right = ct_keep(kept, times * sums[strip][tile][2 * half + 1]);
        store_shared(chunk_at<kChannels>(sRows, row, tile) + 4 * (lane % 4), pack<dtype>(left, right));
      }
    }
  }
  __syncwarp();
  store_tile<dtype, kStrips * kMmaRows, kChannels>(sRows, rows, first, static_cast<int32_t>(end),
                                                   static_cast<int>(channels));
}

}  // namespace dhp
