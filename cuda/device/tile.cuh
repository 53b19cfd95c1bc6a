// Tiles of rows in shared memory: filled by asynchronous copies, read as fragments of tensor-core products.
//
// A tile is [rows][kRowBytes]. Row r keeps its 16-byte chunk c at place c ^ (r % 8): eight rows of one chunk,
// which is what a lane group of ldmatrix reads, then lie in eight different banks of 16 bytes.

#pragma once

#include <cstdint>

#include "device/element.cuh"
#include "device/mma.cuh"
#include "device/ptx.cuh"
#include "device/rows.cuh"
#include "device/warp.cuh"
#include "params.h"

namespace dhp {

inline constexpr int kTileAlignment = 1024;  // of shared memory; tiles need 128
inline constexpr int kChunkBytes = 16;

// Shared-memory address of one chunk of a tile.
template <int kRowBytes>
__device__ uint32_t chunk_at(uint32_t tile, int row, int chunk) {
  return tile + row * kRowBytes + ((chunk ^ (row % 8)) * kChunkBytes);
}

// The thread's index: opaque where rows are so long that sums are short of registers. What follows from it is
// then computed again for each tile; kept through a loop over tiles it would take the place of sums.
template <int kRowBytes>
__device__ int thread_of_block() {
  const int thread = static_cast<int>(threadIdx.x);
  return kRowBytes > 128 ? ptx::opaque(thread) : thread;
}

// Starts the copy of rows [first, first + kRows) of one head; what lies past `end` or `channels` is zeros.
// kThreads threads take part, all of the block where nothing else is said; each closes the group itself.
//   head    row 0
//   thread  which of them this one is
template <int kRows, int kRowBytes, int kThreads, typename Element>
__device__ void copy_tile_async(uint32_t tile, const Element* head, int64_t stride_row, int32_t first,
                                int32_t end, int channels,
                                int thread = ptx::opaque(static_cast<int>(threadIdx.x))) {
  constexpr int kChunks = kRowBytes / kChunkBytes;
  constexpr int kChunkChannels = kChunkBytes / sizeof(Element);
  static_assert(kRows * kChunks % kThreads == 0 && kThreads % kChunks == 0);
  const int chunk = thread % kChunks;
  const int channel = chunk * kChunkChannels;
  const int lane_row = thread / kChunks;
  const bool counts = channel < channels;
  constexpr int kAtOnce = kRowBytes > 128 ? 8 : 4;  // as registers allow
  const Element* from = head + along(first + lane_row, stride_row) + channel;
#pragma unroll kAtOnce
  for (int i = 0; i < kRows * kChunks / kThreads; ++i) {
    const int row = lane_row + i * (kThreads / kChunks);
    const bool exists = counts && first + row < end;
    ptx::copy_16_async(chunk_at<kRowBytes>(tile, row, chunk), from, exists ? kChunkBytes : 0);
    from += kThreads / kChunks * stride_row;
  }
}

// The same for the rows that a block of a kernel owns, from `first` on.
template <typename Tiles, int kRows>
__device__ void copy_own_rows_async(uint32_t tile, const InRows& rows, const Place& first, const Shape& shape,
                                    int32_t end) {
  copy_tile_async<kRows, Tiles::kRowBytes, Tiles::kThreads>(
      tile, row_at<Tiles::kDType>(rows, {first.v, first.b, 0, first.head}), rows.stride_row, first.row, end,
      static_cast<int>(shape.D));
}

// The lane's place in a tile, from which all fragments of one kind are reached: 8 rows further down by
// adding, kMmaDepthBytes further on by fragment_at. Tiles start at multiples of 128 bytes.
//
// A left operand, or rows of 16-bit elements that are summed over: lane l names row l % 16, chunk l / 16.
template <int kRowBytes>
__device__ uint32_t lane_in_rows(uint32_t tile) {
  const int lane = thread_of_block<kRowBytes>() % kWarpLanes;
  return chunk_at<kRowBytes>(tile, lane % 16, lane / 16);
}
// Rows that become columns: lane l names row l % 8 + 8 (l / 16), chunk l / 8 % 2.
template <int kRowBytes>
__device__ uint32_t lane_in_columns(uint32_t tile) {
  const int lane = thread_of_block<kRowBytes>() % kWarpLanes;
  return chunk_at<kRowBytes>(tile, lane % 8 + lane / 16 * 8, lane / 8 % 2);
}

// Rows `row` on (a multiple of 8), the k-th kMmaDepthBytes on. Chunks 2 k and 2 k + 1 of a row lie where
// those of k = 0 do, with bits 5 and 6 of the address turned by k.
template <int kRowBytes>
__device__ uint32_t fragment_at(uint32_t lane_place, int row, int k) {
  return (lane_place ^ (k % 4 * kMmaDepthBytes)) + k / 4 * 128 + row * kRowBytes;
}

// The warp's part of a tile in which each warp has kRows rows.
template <int kRows, int kRowBytes>
__device__ uint32_t warp_part(uint32_t tile) {
  return tile + ptx::opaque(static_cast<int>(threadIdx.x)) / kWarpLanes * (kRows * kRowBytes);
}

// The first query row of the block. Blocks count along rows, the last first (a causal block has more work the
// later its rows are, and long ones must not come last), then heads, batch and V.
template <typename Tiles>
__device__ Place first_row_of_block(const Shape& shape) {
  const int32_t num_blocks = (static_cast<int32_t>(shape.T) + Tiles::kQueryRows - 1) / Tiles::kQueryRows;
  Place first = place_of_block(num_blocks, shape.N, shape.B);
  first.row = (num_blocks - 1 - first.row) * Tiles::kQueryRows;
  return first;
}

}  // namespace dhp
