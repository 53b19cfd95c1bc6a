// A ring of places for tiles in shared memory, filled by tensor copies.

#pragma once

#include <cstdint>

#include "device/ptx_sm90.cuh"
#include "device/rows.cuh"
#include "device/wgmma.cuh"
#include "params.h"

namespace dhp {

inline constexpr int kBarrierBytes = 8;

// Waits for the phase of this number, counted from 0.
__device__ inline void wait_for_phase(uint32_t barrier, int phase) {
  while (!ptx::is_over(barrier, phase & 1)) {}
}

// Starts the copy of a box of kRows rows from `at` on, all channels: columns of 64, one after the other.
template <int kRows, int kColumns>
__device__ void load_rows(uint32_t to, const TensorMap& map, uint32_t barrier, const Place& at) {
#pragma unroll
  for (int column = 0; column < kColumns; ++column) {
    ptx::load_box(to + column * kRows * kBoxRowBytes, &map, barrier, column * kBoxChannels, at.row, at.head,
                  at.b, at.v);
  }
}

// Where rows begin in a tensor that may repeat along V and B.
template <typename Pointer>
__device__ Place place_in(const HeadRows<Pointer>& rows, Place at) {
  at.v = rows.stride_v == 0 ? 0 : at.v;
  at.b = rows.stride_b == 0 ? 0 : at.b;
  return at;
}

// Tiles are numbered in the order of their use; tile i takes place i % kStages.
template <typename Tiles, int kStages>
class TileRing {
 public:
  //   tiles     the places
  //   barriers  2 kStages of them: where a tile that is full is waited for, then where one that has been read
  //   is
  __device__ TileRing(uint32_t tiles, uint32_t barriers) : tiles_(tiles), barriers_(barriers) {}

  __device__ void init() const {
    for (int place = 0; place < kStages; ++place) {
      ptx::init_barrier(full(place), 1);
      ptx::init_barrier(full(place) + kToEmpty, Tiles::kGroups);
    }
  }

  // Starts the copy of tile i, from row `at` on, when its place is empty. One warp.
  __device__ void load(const TensorMap& map, int i, const Place& at) const {
    const int place = place_of(i);
    if (i >= kStages) wait_for_phase(full(place) + kToEmpty, phase_of(i) + 1);
    if (ptx::is_elected()) {
      ptx::arrive_expecting(full(place), Tiles::kTileBytes);
      load_rows<Tiles::kKeyRows, Tiles::kColumns>(tiles_ + place * Tiles::kTileBytes, map, full(place), at);
    }
  }
  // Waits for tile i; its address.
  __device__ uint32_t take(int i) const {
    wait_for_phase(full(place_of(i)), phase_of(i));
    return place(i);
  }
  // Its address.
  __device__ uint32_t place(int i) const { return tiles_ + place_of(i) * Tiles::kTileBytes; }
  // Tile i has been read. One thread of each warpgroup.
  __device__ void release(int i) const { ptx::arrive(full(place_of(i)) + kToEmpty); }

 private:
  // Unsigned: shorter to compute.
  __device__ static int place_of(uint32_t i) { return i % kStages; }
  __device__ static int phase_of(uint32_t i) { return i / kStages; }

  static constexpr uint32_t kToEmpty = kStages * kBarrierBytes;
  __device__ uint32_t full(int place) const { return barriers_ + place * kBarrierBytes; }

  uint32_t tiles_, barriers_;
};

}  // namespace dhp
