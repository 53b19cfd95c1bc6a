// Pairs of tiles, of the same rows in two arrays, that come through a ring of places in shared memory.
//
// Where there are two places, the next pair is on its way while one is in use. Where there is one, the block
// waits for each.

#pragma once

#include <cstdint>

#include "device/rows.cuh"
#include "device/tile.cuh"
#include "device/warp.cuh"
#include "params.h"

namespace dhp {

// Rows [begin, end) in tiles of kRows, of `num_heads` heads, one head after the other.
struct PairRange {
  int32_t begin, end, num_heads;
};

//   Tiles  kDType, kChannels, kThreads; kTileRows of a tile; kPairs, 1 or 2; kPairBytes, a power of two;
//          kOneHead, where num_heads is 1
template <typename Tiles>
class PairRing {
 public:
  // `first_row` is row 0 of the first head. start_more(pair, head, row) starts further copies that belong to
  // a pair.
  template <typename StartMore>
  __device__ PairRing(const InRows& left, const InRows& right, int64_t size, int64_t channels,
                      const Place& first_row, PairRange range, uint32_t shared, StartMore start_more)
      : left_(row_at<Tiles::kDType>(left, first_row)),
        right_(row_at<Tiles::kDType>(right, first_row)),
        left_rows_(left),
        right_rows_(right),
        size_(static_cast<int32_t>(size)),
        channels_(static_cast<int>(channels)),
        range_(range),
        row_(range.begin),
        pair_(shared) {
    // What the block has begun to copy before is in the first group, whether or not a pair follows.
    if constexpr (Tiles::kPairs == 2) {
      start(start_more);
    } else {
      close_copy_group();
    }
  }

  // Waits until the next pair is there for all warps, and starts the copy of the one after it. The address of
  // its first tile; the second follows. All warps are then done with the pair before.
  template <typename StartMore>
  __device__ uint32_t take(StartMore start_more) {
    if constexpr (Tiles::kPairs == 1) {
      __syncthreads();  // all warps are done with the pair before
      start(start_more);
      wait_for_copies<0>();
      __syncthreads();  // all copies are seen
      return pair_;
    } else {
      wait_for_copies<0>();
      __syncthreads();
      const uint32_t taken = pair_ ^ kTurn;
      start(start_more);
      return taken;
    }
  }

 private:
  static constexpr uint32_t kTurn = Tiles::kPairs == 2 ? Tiles::kPairBytes : 0;
  static constexpr uint32_t kTileBytes = Tiles::kTileRows * Tiles::kChannels * 2;

  template <typename StartMore>
  __device__ void start(StartMore start_more) {
    // Past the last pair an empty group keeps the count.
    if (Tiles::kOneHead ? row_ < range_.end : head_ < range_.num_heads && range_.begin < range_.end) {
      copy_tile_async<Tiles::kTileRows, Tiles::kChannels, Tiles::kThreads>(
          pair_, left_, left_rows_.stride_row, row_, size_, channels_);
      copy_tile_async<Tiles::kTileRows, Tiles::kChannels, Tiles::kThreads>(
          pair_ + kTileBytes, right_, right_rows_.stride_row, row_, size_, channels_);
      start_more(pair_, head_, row_);
    }
    close_copy_group();
    pair_ ^= kTurn;
    row_ += Tiles::kTileRows;
    if (!Tiles::kOneHead && row_ >= range_.end) {
      row_ = range_.begin;
      head_ += 1;
      left_ += left_rows_.stride_head;
      right_ += right_rows_.stride_head;
    }
  }

  const Element<Tiles::kDType>*left_, *right_;  // row 0 of the head to copy next
  const InRows &left_rows_, &right_rows_;
  int32_t size_;
  int channels_;
  PairRange range_;
  int32_t row_, head_ = 0;  // to copy next
  uint32_t pair_;           // its place
};

}  // namespace dhp
