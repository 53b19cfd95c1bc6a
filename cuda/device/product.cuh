// Products of tiles: the sums of one warp, strips of 16 rows by tiles of 8 columns.

#pragma once

#include <cstdint>

#include "device/mma.cuh"
#include "device/tile.cuh"
#include "params.h"

namespace dhp {

template <int kStrips, int kTiles>
using StripSums = Sums[kStrips][kTiles];

// Left operands of a product that sums over kTiles tiles of 8 columns.
template <DType dtype, int kStrips, int kTiles>
using StripFragments = Fragment[kStrips][kTiles * kMmaColumns / kMmaDepth<dtype>];

// sums = left . right^T, the dot product of each row of one tile with each row of the other.
//   left   tile of the warp's 16 kStrips rows
//   right  tile of 8 kTiles rows
template <DType dtype, int kRowBytes, int kStrips, int kTiles>
__device__ void multiply_rows_by_rows(StripSums<kStrips, kTiles>& sums, uint32_t left, uint32_t right) {
  const uint32_t left_place = lane_in_rows<kRowBytes>(left);
  const uint32_t right_place = lane_in_columns<kRowBytes>(right);
#pragma unroll
  for (int strip = 0; strip < kStrips; ++strip) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (float& sum : sums[strip][tile]) sum = 0.0f;
    }
  }
#pragma unroll
  for (int k = 0; k < kRowBytes / kMmaDepthBytes; ++k) {
    Operand<dtype> rows[kStrips];
#pragma unroll
    for (int strip = 0; strip < kStrips; ++strip) {
      Fragment fragment;
      ptx::load_matrices(fragment, fragment_at<kRowBytes>(left_place, strip * kMmaRows, k));
      rows[strip] = as_operand<dtype>(fragment);
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; tile += 2) {
      Fragment fragment;
      ptx::load_matrices(fragment, fragment_at<kRowBytes>(right_place, tile * kMmaColumns, k));
      const Operand<dtype> columns = as_operand<dtype>(fragment);
#pragma unroll
      for (int strip = 0; strip < kStrips; ++strip) {
        multiply_add<dtype>(sums[strip][tile], rows[strip], columns, 0);
        multiply_add<dtype>(sums[strip][tile + 1], rows[strip], columns, 1);
      }
    }
  }
}

// Which channel a column of a weighted sum of float32 rows is: of each 32 channels, column c of tile t is
// channel 4 c + t, so that one load of 16 bytes serves four products, and the two columns of a lane in four
// tiles are eight neighbouring channels. Columns of 16-bit rows are their channels.
inline constexpr int kWideTiles = 4;  // that share 32 channels

// The right operands of tiles 4 group to 4 group + 3, a pair each, from the k-th 8 rows of a float32 tile.
//   even_row  the lane's place: chunk g of row 2q
//   keep      of row 2q, of row 2q + 1
template <int kRowBytes>
__device__ void load_wide_rows(Fragment (&right)[2], uint32_t even_row, int k, int group, uint2 keep) {
  const uint32_t odd_row = (even_row ^ kChunkBytes) + kRowBytes;
  const uint32_t further = k * kMmaColumns * kRowBytes + group * 128;
  const uint4 even = ptx::load_shared_4(even_row + further), odd = ptx::load_shared_4(odd_row + further);
  right[0][0] = even.x & keep.x, right[0][1] = odd.x & keep.y;
  right[0][2] = even.y & keep.x, right[0][3] = odd.y & keep.y;
  right[1][0] = even.z & keep.x, right[1][1] = odd.z & keep.y;
  right[1][2] = even.w & keep.x, right[1][3] = odd.w & keep.y;
}

// sums += left . right, weighted sums of rows.
//   right  tile of as many rows as `left` has columns
//   kept   kept(k) gives, for the k-th kMmaDepth rows, the words that keep of each register what counts
template <DType dtype, int kStrips, int kTiles, int kDepth, typename Kept>
__device__ void add_weighted_rows(StripSums<kStrips, kTiles>& sums, const Fragment (&left)[kStrips][kDepth],
                                  uint32_t right, Kept kept) {
  constexpr int kRowBytes = kTiles * kMmaColumns * sizeof(Element<dtype>);
  constexpr bool kWide = dtype == DType::kFloat32;
  const int lane = thread_of_block<kRowBytes>() % kWarpLanes;
  const uint32_t place =
      kWide ? chunk_at<kRowBytes>(right, lane % 4 * 2, lane / 4) : lane_in_rows<kRowBytes>(right);
#pragma unroll
  for (int k = 0; k < kDepth; ++k) {
    const uint2 keep = kept(k);
    Operand<dtype> weights[kStrips];
#pragma unroll
    for (int strip = 0; strip < kStrips; ++strip) weights[strip] = as_operand<dtype>(left[strip][k]);
    const auto add = [&](int tile, const Fragment& fragment) {
      const Operand<dtype> rows = as_operand<dtype>(fragment);
#pragma unroll
      for (int strip = 0; strip < kStrips; ++strip) {
        multiply_add<dtype>(sums[strip][tile], weights[strip], rows, 0);
        multiply_add<dtype>(sums[strip][tile + 1], weights[strip], rows, 1);
      }
    };
    if constexpr (kWide) {
#pragma unroll
      for (int tile = 0; tile < kTiles; tile += kWideTiles) {
        Fragment rows[2];
        load_wide_rows<kRowBytes>(rows, place, k, tile / kWideTiles, keep);
        add(tile, rows[0]);
        add(tile + 2, rows[1]);
      }
    } else {
#pragma unroll
      for (int tile = 0; tile < kTiles; tile += 2) {
        Fragment rows;
        ptx::load_matrices_transposed(rows, fragment_at<kRowBytes>(place, k * kMmaRows, tile / 2));
        rows[0] &= keep.x, rows[2] &= keep.x;
        rows[1] &= keep.y, rows[3] &= keep.y;
        add(tile, rows);
      }
    }
  }
}

// Sums, rounded, as the left operands of a next product.
template <DType dtype, int kTiles, int kDepth>
__device__ void round_strip(Fragment (&left)[kDepth], const Sums (&sums)[kTiles]) {
#pragma unroll
  for (int k = 0; k < kDepth; ++k) as_left_fragment<dtype>(left[k], sums, k);
}

}  // namespace dhp
