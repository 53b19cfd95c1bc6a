// Copies of rows into the form that products of a warpgroup read (device/wgmma.cuh), by threads.
//
// A tensor copy brings them too; but its barrier must stand first, and a kernel that has little to do is
// faster without.

#pragma once

#include <cstdint>

#include "device/tile.cuh"
#include "device/wgmma.cuh"
#include "params.h"

namespace dhp {

// Rows of heads of at most 2 GiB in all: offsets have 32 bits. Strides count bytes.
template <typename Pointer>
struct NearRows {
  Pointer data;
  uint32_t stride_v, stride_b, stride_row, stride_head;

  __device__ uint32_t offset(const Place& at) const {
    return at.v * stride_v + at.b * stride_b + at.row * stride_row + at.head * stride_head;
  }
};

// What one of kThreads threads copies of one head: a chunk of every kStep-th row, of each 64 channels.
template <int kColumns, int kThreads>
class RowCopies {
 public:
  static constexpr uint32_t kChunks = kBoxRowBytes / kChunkBytes;
  static constexpr int kStep = kThreads / kChunks;  // rows that all threads copy at a time
  static_assert(kStep % 8 == 0, "a thread's chunk would change places from row to row");

  //   first   the first row
  //   thread  of the kThreads
  //   end     rows from here on are zeros, as are channels from `channels` on
  __device__ RowCopies(const NearRows<const void*>& rows, Place first, uint32_t thread, int32_t end,
                       int32_t channels)
      : stride_row_(rows.stride_row) {
    const int32_t row = thread / kChunks, chunk = thread % kChunks;
    first.row += row;
    from_ = static_cast<const char*>(rows.data) + (rows.offset(first) + chunk * kChunkBytes);
    place_ = chunk_at<kBoxRowBytes>(0, row, chunk);
#pragma unroll
    for (int column = 0; column < kColumns; ++column) {
      const int32_t channel = column * kBoxChannels + chunk * (kBoxChannels / static_cast<int32_t>(kChunks));
      // Opaque: else what is found out of the rows of one tensor is kept for the next.
      rows_[column] = ptx::opaque(channel < channels ? end - first.row : 0);
    }
  }

  // Rows [kRow, kRow + kRows), counted from the first, to shared memory at `to`; 64 channels after the other.
  template <int kRow, int kRows>
  __device__ void start(uint32_t to) const {
    static_assert(kRows % kStep == 0);
#pragma unroll
    for (int column = 0; column < kColumns; ++column) {
#pragma unroll
      for (int row = 0; row < kRows; row += kStep) {
        const bool exists = rows_[column] > kRow + row;
        const char* const from = from_ + static_cast<uint64_t>(kRow + row) * stride_row_;
        ptx::copy_16_async(to + place_ + (column * kRows + row) * kBoxRowBytes, from + column * kBoxRowBytes,
                           exists ? kChunkBytes : 0);
      }
    }
  }

 private:
  const char* from_;
  uint32_t stride_row_;
  uint32_t place_;
  int32_t rows_[kColumns];  // that exist, from this thread's first on
};

}  // namespace dhp
