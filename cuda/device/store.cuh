// From the sums of a warp to rows in global memory.

#pragma once

#include <cstdint>

#include "device/ct.cuh"
#include "device/product.cuh"
#include "device/tile.cuh"
#include "params.h"

namespace dhp {

// Writes kRows rows of a tile of the warp's own to global memory, up to row `end` and `channels`. Needs a
// __syncwarp before.
template <DType dtype, int kRows, int kRowBytes>
__device__ void store_tile(uint32_t tile, const OutRows& rows, const Place& first, int32_t end,
                           int channels) {
  constexpr int kChunks = kRowBytes / kChunkBytes;
  constexpr int kChunkChannels = kChunkBytes / sizeof(Element<dtype>);
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int chunk = lane % kChunks;
#pragma unroll
  for (int i = 0; i < kRows * kChunks / kWarpLanes; ++i) {
    const int row = (lane + i * kWarpLanes) / kChunks;
    const uint4 words = ptx::load_shared_4(chunk_at<kRowBytes>(tile, row, chunk));
    if (first.row + row < end && chunk * kChunkChannels < channels) {
      Element<dtype>* const to = row_at<dtype>(rows, {first.v, first.b, first.row + row, first.head});
      *reinterpret_cast<uint4*>(to + chunk * kChunkChannels) = words;
    }
  }
}

// One row of float32 sums whose columns are channels as kWideTiles says.
template <int kTiles>
__device__ void store_wide_row(float* to, const float (&values)[kTiles][2], int channels) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
#pragma unroll
  for (int tile = 0; tile < kTiles; tile += kWideTiles) {
    const int channel = tile * kMmaColumns + lane % 4 * 8;
    if (channel >= channels) continue;
#pragma unroll
    for (int column = 0; column < 2; ++column) {
      *reinterpret_cast<float4*>(to + channel + 4 * column) = {
          values[tile][column], values[tile + 1][column], values[tile + 2][column], values[tile + 3][column]};
    }
  }
}

// Writes factor(strip, half) * sums, a row at a time; 0 where keep(strip, half) does not hold. `half` is 0
// for row lane / 4 of a strip, 1 for that + 8.
//   sRows  a tile of the warp's own, whose content is not needed any more
//   first  the warp's first row; rows from `end` on do not exist
template <DType dtype, int kStrips, int kTiles, typename Factor, typename Keep>
__device__ void store_strips(const StripSums<kStrips, kTiles>& sums, Factor factor, Keep keep, uint32_t sRows,
                             const OutRows& rows, const Place& first, int64_t end, int64_t channels) {
  constexpr int kRowBytes = kTiles * kMmaColumns * sizeof(Element<dtype>);
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  __syncwarp();  // what was there has been read
#pragma unroll
  for (int strip = 0; strip < kStrips; ++strip) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = strip * kMmaRows + half * 8 + lane / 4;
      const float times = factor(strip, half);
      const CtMask kept = keep(strip, half);
      float values[kTiles][2];
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
        for (int column = 0; column < 2; ++column) {
          values[tile][column] = ct_keep(kept, times * sums[strip][tile][2 * half + column]);
        }
      }
      if constexpr (dtype == DType::kFloat32) {
        const Place at{first.v, first.b, first.row + row, first.head};
        if (at.row < end) store_wide_row(row_at<dtype>(rows, at), values, static_cast<int>(channels));
      } else {
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
          ptx::store_shared(chunk_at<kRowBytes>(sRows, row, tile) + 4 * (lane % 4),
                            pack<dtype>(values[tile][0], values[tile][1]));
        }
      }
    }
  }
  if constexpr (dtype != DType::kFloat32) {
    __syncwarp();
    store_tile<dtype, kStrips * kMmaRows, kRowBytes>(sRows, rows, first, static_cast<int32_t>(end),
                                                     static_cast<int>(channels));
  }
}

}  // namespace dhp
