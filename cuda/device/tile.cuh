// Tiles of rows in shared memory: filled by asynchronous copies, read as fragments of tensor-core products.
//
// A tile is [rows][kChannels] elements of two bytes. Row r keeps its 16-byte chunk c at place c ^ (r % 8):
// eight rows of one chunk, which is what a lane group of ldmatrix reads, then lie in eight different banks of
// 16 bytes.

#pragma once

#include <cstdint>

#include "device/element.cuh"
#include "device/mma.cuh"
#include "device/rows.cuh"
#include "device/warp.cuh"
#include "params.h"

namespace dhp {

// Of shared memory. Tiles need 128; rings of tiles, whose places differ in one bit of the address, lie at its
// begin.
inline constexpr int kTileAlignment = 1024;
inline constexpr int kChunkBytes = 16;
inline constexpr int kChunkChannels = 8;

// Shared-memory address of one chunk of a tile.
template <int kChannels>
__device__ uint32_t chunk_at(uint32_t tile, int row, int chunk) {
  return tile + row * (kChannels * 2) + ((chunk ^ (row % 8)) * kChunkBytes);
}

__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// 16 bytes from global to shared memory, or zeros where `exists` does not hold: public. Then nothing is read,
// and `from` may point anywhere.
__device__ inline void copy_chunk_async(uint32_t to, const void* from, bool exists) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(to), "l"(__cvta_generic_to_global(from)), "r"(exists ? kChunkBytes : 0)
               : "memory");
}

// The same for one word.
__device__ inline void copy_word_async(uint32_t to, const float* from, bool exists) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
               :
               : "r"(to), "l"(__cvta_generic_to_global(from)), "r"(exists ? 4 : 0)
               : "memory");
}

// Copies issued since the last call form a group.
__device__ inline void close_copy_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most this many groups of this thread are under way.
template <int kUnderWay>
__device__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" : : "n"(kUnderWay) : "memory");
}

// The value, in a way that the compiler cannot see through: what follows from it is computed again for each
// tile. Kept in registers through a loop over tiles it would take the place of sums.
__device__ inline int32_t opaque(int32_t value) {
  asm volatile("" : "+r"(value));
  return value;
}

// The thread's index: opaque where a tile has so many channels that sums are short of registers.
template <int kChannels>
__device__ int thread_of_block() {
  const int thread = static_cast<int>(threadIdx.x);
  return kChannels > 64 ? opaque(thread) : thread;
}

// Starts the copy of rows [first, first + kRows) of one head; what lies past `end` or `channels` is zeros.
// All threads of the block take part; each closes the group itself.
//   head  row 0
template <int kRows, int kChannels, int kThreads, typename Element>
__device__ void copy_tile_async(uint32_t tile, const Element* head, int64_t stride_row, int32_t first,
                                int32_t end, int channels) {
  constexpr int kChunks = kChannels / kChunkChannels;
  static_assert(kRows * kChunks % kThreads == 0 && kThreads % kChunks == 0);
  // Opaque, so that what follows from it is computed again for each tile: in the registers of a loop over
  // tiles it would take the place of sums.
  int thread = static_cast<int>(threadIdx.x);
  asm volatile("" : "+r"(thread));
  const int chunk = thread % kChunks;
  const int channel = chunk * kChunkChannels;
  const int lane_row = thread / kChunks;
  const bool counts = channel < channels;
  constexpr int kAtOnce = kChannels > 64 ? 8 : 4;  // as registers allow
  const Element* from = head + along(first + lane_row, stride_row) + channel;
#pragma unroll kAtOnce
  for (int i = 0; i < kRows * kChunks / kThreads; ++i) {
    const int row = lane_row + i * (kThreads / kChunks);
    copy_chunk_async(chunk_at<kChannels>(tile, row, chunk), from, counts && first + row < end);
    from += kThreads / kChunks * stride_row;
  }
}

// The lane's place in a tile, from which all fragments of one kind are reached: 16 rows further down by
// adding, 16 channels further on by fragment_at. Tiles start at multiples of 128 bytes.
//
// A left operand, or rows that are summed over: lane l names row l % 16, chunk l / 16.
template <int kChannels>
__device__ uint32_t lane_in_rows(uint32_t tile) {
  const int lane = thread_of_block<kChannels>() % kWarpLanes;
  return chunk_at<kChannels>(tile, lane % 16, lane / 16);
}
// Rows that become columns: lane l names row l % 8 + 8 (l / 16), chunk l / 8 % 2.
template <int kChannels>
__device__ uint32_t lane_in_columns(uint32_t tile) {
  const int lane = thread_of_block<kChannels>() % kWarpLanes;
  return chunk_at<kChannels>(tile, lane % 8 + lane / 16 * 8, lane / 8 % 2);
}

// Rows `row` on (a multiple of 16), channels 16 k on. Chunks 2 k and 2 k + 1 of a row lie where those of k =
// 0 do, with bits 5 and 6 of the address turned by k.
template <int kChannels>
__device__ uint32_t fragment_at(uint32_t lane_place, int row, int k) {
  return (lane_place ^ (k % 4 * 32)) + k / 4 * 128 + row * (kChannels * 2);
}

__device__ inline void store_shared(uint32_t to, uint32_t word) {
  asm volatile("st.shared.b32 [%0], %1;" : : "r"(to), "r"(word) : "memory");
}

__device__ inline float2 load_shared_pair(uint32_t from) {
  float2 pair;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(pair.x), "=f"(pair.y) : "r"(from) : "memory");
  return pair;
}

__device__ inline uint4 load_shared(uint32_t from) {
  uint4 words;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "r"(from)
               : "memory");
  return words;
}

// One warp writes kRows rows of a tile of its own to global memory, up to row `end` and `channels`. Needs a
// __syncwarp before.
template <DType dtype, int kRows, int kChannels>
__device__ void store_tile(uint32_t tile, const OutRows& rows, const Place& first, int32_t end,
                           int channels) {
  constexpr int kChunks = kChannels / kChunkChannels;
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int chunk = lane % kChunks;
#pragma unroll
  for (int i = 0; i < kRows * kChunks / kWarpLanes; ++i) {
    const int row = (lane + i * kWarpLanes) / kChunks;
    const uint4 words = load_shared(chunk_at<kChannels>(tile, row, chunk));
    if (first.row + row < end && chunk * kChunkChannels < channels) {
      Element<dtype>* const to = row_at<dtype>(rows, {first.v, first.b, first.row + row, first.head});
      *reinterpret_cast<uint4*>(to + chunk * kChunkChannels) = words;
    }
  }
}

// The warp's part of a tile in which each warp has kRows rows.
template <int kRows, int kChannels>
__device__ uint32_t warp_part(uint32_t tile) {
  return tile + opaque(static_cast<int>(threadIdx.x)) / kWarpLanes * (kRows * kChannels * 2);
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
