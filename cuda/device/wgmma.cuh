// Products of a warpgroup, and how their operands lie in shared memory.
//
// A tile of rows lies there as ptx::load_box writes it: columns of 64 channels, one after the other, each
// with 128 bytes a row; in every 1024 bytes, which are 8 rows, chunk c of row r (16 bytes) stands in the
// place of chunk c ^ r. A product takes 16 elements of each operand: 32 bytes of a row, or 16 rows.

#pragma once

#include <cstdint>

#include "device/mma.cuh"
#include "device/ptx_sm90.cuh"
#include "params.h"

namespace dhp {

inline constexpr int kGroupThreads = 128;
inline constexpr int kGroupWarps = 4;
inline constexpr int kGroupRows = 64;  // of the left operand and the sums
inline constexpr int kBoxChannels = 64;
inline constexpr int kBoxRowBytes = kBoxChannels * 2;
inline constexpr int kBoxAlignment = 1024;  // bytes, of a box in shared memory

// An operand in shared memory. Addresses and distances in a descriptor count 16 bytes.
//   address  without the rank that a block of a cluster has above it
struct SharedOperand {
  static constexpr int kUnit = 16;
  static constexpr uint32_t kEightRows = 8 * kBoxRowBytes / kUnit;
  static constexpr uint32_t kHigh = kEightRows | 1u << 30;  // chunks change places as said above

  uint32_t low;

  // Whose rows are rows of the product.
  __device__ static SharedOperand by_rows(uint32_t address) { return {address / kUnit | 1u << 16}; }
  // Whose rows are summed over; `next` bytes after the first 64 columns stand the next 64.
  __device__ static SharedOperand by_columns(uint32_t address, uint32_t next) {
    return {address / kUnit | next / kUnit << 16};
  }
  // `bytes` further on.
  __device__ SharedOperand operator+(uint32_t bytes) const { return {low + bytes / kUnit}; }
  __device__ uint64_t descriptor() const { return static_cast<uint64_t>(kHigh) << 32 | low; }
};

// Starts a group of products: sums = left . right^T, the dot product of each row of one tile with each row of
// the other.
//   left, right           by rows
//   kLeftRows, kTiles     rows of the tiles that they are part of: 8 kTiles of the right one
template <DType dtype, int kChannels, int kLeftRows, int kTiles>
__device__ void start_rows_by_rows(Sums (&sums)[kTiles], SharedOperand left, SharedOperand right) {
#pragma unroll
  for (int k = 0; k < kChannels / kMmaDepth<dtype>; ++k) {
    const int column = k * kMmaDepthBytes / kBoxRowBytes, further = k * kMmaDepthBytes % kBoxRowBytes;
    const uint64_t rows = (left + (column * kLeftRows * kBoxRowBytes + further)).descriptor();
    const uint64_t columns = (right + (column * kTiles * kMmaColumns * kBoxRowBytes + further)).descriptor();
    if constexpr (dtype == DType::kBFloat16) {
      ptx::wgmma_bf16(sums, rows, columns, k > 0);
    } else {
      ptx::wgmma_f16(sums, rows, columns, k > 0);
    }
  }
  ptx::close_product_group();
}

// Starts a group of products: sums [+]= left . right, weighted sums of rows.
//   right   by columns
//   kStep   what is added to its descriptor for each 16 rows
//   kAdds   to what the sums are before
template <DType dtype, uint32_t kStep, bool kAdds = true, int kTiles, int kDepth>
__device__ void start_weighted_rows(Sums (&sums)[kTiles], const Fragment (&left)[kDepth],
                                    SharedOperand right) {
#pragma unroll
  for (int k = 0; k < kDepth; ++k) {
    const uint64_t rows = SharedOperand{right.low + k * kStep}.descriptor();
    if constexpr (dtype == DType::kBFloat16) {
      ptx::wgmma_bf16(sums, left[k], rows, kAdds || k > 0);
    } else {
      ptx::wgmma_f16(sums, left[k], rows, kAdds || k > 0);
    }
  }
  ptx::close_product_group();
}

// What is computed of these before is not moved behind what follows, and the other way round.
template <int kTiles>
__device__ void pin(Sums (&sums)[kTiles]) {
#pragma unroll
  for (Sums& tile : sums) {
#pragma unroll
    for (float& sum : tile) ptx::pin(sum);
  }
}

// Waits until at most kUnderWay groups of products are under way. What of them is in `sums` can be used then.
template <int kUnderWay, int kTiles>
__device__ void finish_products(Sums (&sums)[kTiles]) {
  ptx::wait_for_products<kUnderWay>();
  pin(sums);
}

}  // namespace dhp
