// What the functions of cuda/device/ptx_sm90.cuh mean, for the emulator.

#pragma once

#include <cstdint>

#include "device/ptx.cuh"
#include "emulator.h"

namespace dhp::ptx {

inline void init_barrier(uint32_t barrier, int count) { emulator::init_barrier(barrier, count); }
inline void fence_barrier_init() { emulator::fence_barriers(); }
inline void arrive(uint32_t barrier) { emulator::arrive(barrier, 0); }
inline void arrive_expecting(uint32_t barrier, int bytes) { emulator::arrive(barrier, bytes); }
inline bool is_over(uint32_t barrier, uint32_t parity) { return emulator::is_over(barrier, parity); }
inline void arrive_at_cluster() { emulator::arrive_at_cluster(); }
inline void wait_for_cluster() { emulator::wait_for_cluster(); }
inline uint32_t address_in_block(uint32_t address, uint32_t rank) {
  return emulator::address_in_block(address, rank);
}
inline void store_async(uint32_t to, const float (&values)[4], uint32_t barrier) {
  emulator::store_async(to, values, barrier);
}
inline bool is_elected() {
  __syncwarp();
  return threadIdx.x % emulator::kLanes == 0;
}
template <int kThreads>
void meet(int number) {
  emulator::meet_threads(number, kThreads);
}
template <int kThreads>
void arrive_at_meeting(int number) {
  emulator::arrive_at_meeting(number, kThreads);
}
inline void fence_stores() { emulator::fence_stores(); }

inline void load_box(uint32_t to, const void* map, uint32_t barrier, int channel, int row, int head, int b,
                     int v) {
  emulator::load_box(to, map, barrier, {channel, row, head, b, v});
}
inline void store_box(uint32_t from, const void* map, int channel, int row, int head, int b, int v) {
  emulator::store_box(from, map, {channel, row, head, b, v});
}
inline void wait_for_stores() { emulator::wait_for_stores(); }

inline void wait_for_launch_before() { emulator::wait_for_launch_before(); }
inline void let_next_launch_start() {}

template <int kRegisters>
void give_registers() {}
template <int kRegisters>
void take_registers() {}

inline void fence_products() {}
inline void close_product_group() { emulator::close_product_group(); }
template <int kUnderWay>
void wait_for_products() {
  emulator::wait_for_products(kUnderWay);
}
inline void pin(float&) {}

// All 128 threads have brought the same product. A thread has the sums of two rows of 16 in each 8 columns.
template <typename Element>
void multiply_group(const emulator::Product* const (&of_threads)[128]) {
  const emulator::Product& first = *of_threads[0];
  static float left[64][16], right[16][256];
  for (int row = 0; row < 64; ++row) {
    for (int k = 0; k < 16; ++k) {
      uint32_t word;
      if (first.left != nullptr) {
        const int lane = row % 8 * 4 + k % 8 / 2;
        word = of_threads[row / 16 * 32 + lane]->left[row % 16 / 8 + k / 8 * 2] >> 16 * (k % 2);
      } else {
        word = emulator::element_by_rows(first.left_descriptor, row, k);
      }
      left[row][k] = Element::at(word, 0);
    }
  }
  for (int k = 0; k < 16; ++k) {
    for (int column = 0; column < first.columns; ++column) {
      right[k][column] =
          Element::at(first.left != nullptr ? emulator::element_by_columns(first.right_descriptor, k, column)
                                            : emulator::element_by_rows(first.right_descriptor, column, k),
                      0);
    }
  }
  for (int row = 0; row < 64; ++row) {
    double exact[256] = {};
    for (int k = 0; k < 16; ++k) {
      for (int column = 0; column < first.columns; ++column) {
        exact[column] += static_cast<double>(left[row][k]) * right[k][column];
      }
    }
    for (int column = 0; column < first.columns; ++column) {
      const emulator::Product& own = *of_threads[row / 16 * 32 + row % 8 * 4 + column % 8 / 2];
      float& sum = own.sums[column / 8 * 4 + row % 16 / 8 * 2 + column % 2];
      sum = static_cast<float>(own.accumulates ? sum + exact[column] : exact[column]);
    }
  }
}

template <typename Element, int kTiles>
void start(float (&sums)[kTiles][4], const uint32_t* left, uint64_t left_descriptor, uint64_t right,
           bool accumulates) {
  emulator::start_product(
      {multiply_group<Element>, &sums[0][0], left, left_descriptor, right, 8 * kTiles, accumulates});
}
template <int kTiles>
void wgmma_bf16(float (&sums)[kTiles][4], uint64_t left, uint64_t right, int accumulates) {
  start<Bf16>(sums, nullptr, left, right, accumulates != 0);
}
template <int kTiles>
void wgmma_bf16(float (&sums)[kTiles][4], const uint32_t (&left)[4], uint64_t right, int accumulates) {
  start<Bf16>(sums, left, 0, right, accumulates != 0);
}
template <int kTiles>
void wgmma_f16(float (&sums)[kTiles][4], uint64_t left, uint64_t right, int accumulates) {
  start<F16>(sums, nullptr, left, right, accumulates != 0);
}
template <int kTiles>
void wgmma_f16(float (&sums)[kTiles][4], const uint32_t (&left)[4], uint64_t right, int accumulates) {
  start<F16>(sums, left, 0, right, accumulates != 0);
}

}  // namespace dhp::ptx
