// What the functions of cuda/device/ptx.cuh mean, for the emulator.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "emulator.h"

namespace dhp::ptx {

inline uint32_t set_less(int32_t a, int32_t b) { return a < b ? ~0u : 0; }
inline uint32_t set_nonzero(uint32_t a) { return a != 0 ? ~0u : 0; }
inline uint32_t set_equal(float a, float b) { return a == b ? ~0u : 0; }

inline float ex2(float x) { return std::exp2(x); }
inline float lg2(float x) { return std::log2(x); }
inline float rcp(float x) { return 1.0f / x; }

inline int32_t opaque(int32_t value) { return value; }
inline size_t opaque(size_t value) { return value; }
inline uint32_t low_bits(int32_t count) { return count <= 0 ? 0u : count >= 32 ? ~0u : (1u << count) - 1; }
inline uint32_t block_index() { return emulator::block_index().x; }
inline uint32_t block_index_y() { return emulator::block_index().y; }
inline uint32_t block_index_z() { return emulator::block_index().z; }
inline uint32_t grid_size() { return emulator::grid_size().x; }

inline uint32_t shared_address(const void* pointer) { return emulator::shared_address(pointer); }

template <typename T>
T load_shared(uint32_t from) {
  T value;
  std::memcpy(&value, emulator::shared(from, sizeof value), sizeof value);
  return value;
}
inline void store_shared(uint32_t to, uint32_t word) { emulator::store(to, word); }
inline void store_shared_2(uint32_t to, float2 pair) {
  emulator::store(to, __float_as_uint(pair.x));
  emulator::store(to + 4, __float_as_uint(pair.y));
}
inline float2 load_shared_2(uint32_t from) { return load_shared<float2>(from); }
inline uint4 load_shared_4(uint32_t from) { return load_shared<uint4>(from); }

inline void store_shared_4(uint32_t to, const float (&values)[4]) {
  emulator::shared(to, sizeof values);
  for (int i = 0; i < 4; ++i) emulator::store(to + 4 * i, __float_as_uint(values[i]));
}
inline void load_shared_4(float (&values)[4], uint32_t from) {
  std::memcpy(values, emulator::shared(from, sizeof values), sizeof values);
}

inline void copy_16_async(uint32_t to, const void* from, int bytes) {
  emulator::start_copy(to, from, 16, bytes);
}
inline void copy_4_async(uint32_t to, const void* from, int bytes) {
  emulator::start_copy(to, from, 4, bytes);
}
inline void close_copy_group() { emulator::close_copy_group(); }
template <int kUnderWay>
void wait_for_copies() {
  emulator::wait_for_copies(kUnderWay);
}

// Matrices: rows of 16 bytes, of which a lane gets words, or half words of a column.
template <bool kTransposed>
void load_8x8(uint32_t (&to)[4], uint32_t row) {
  struct Lane {
    uint32_t row;
    uint32_t (&to)[4];
  } mine{row, to};
  emulator::meet_warp(
      [](void* const(&of_lanes)[emulator::kLanes]) {
        for (int matrix = 0; matrix < 4; ++matrix) {
          uint16_t elements[8][8];
          for (int r = 0; r < 8; ++r) {
            const uint32_t from = static_cast<Lane*>(of_lanes[8 * matrix + r])->row;
            std::memcpy(elements[r], emulator::shared(from, 16), 16);
          }
          for (int lane = 0; lane < emulator::kLanes; ++lane) {
            const int g = lane / 4, q = lane % 4;
            const uint16_t low = kTransposed ? elements[2 * q][g] : elements[g][2 * q];
            const uint16_t high = kTransposed ? elements[2 * q + 1][g] : elements[g][2 * q + 1];
            static_cast<Lane*>(of_lanes[lane])->to[matrix] = low | uint32_t{high} << 16;
          }
        }
      },
      &mine);
}
inline void load_matrices(uint32_t (&to)[4], uint32_t row) { load_8x8<false>(to, row); }
inline void load_matrices_transposed(uint32_t (&to)[4], uint32_t row) { load_8x8<true>(to, row); }

// Elements of a register as the products see them.
struct Bf16 {
  static constexpr int kInRegister = 2;
  static float at(uint32_t word, int i) { return __uint_as_float(word >> 16 * i << 16); }
};
struct F16 {
  static constexpr int kInRegister = 2;
  static float at(uint32_t word, int i) {
    const uint16_t bits = static_cast<uint16_t>(word >> 16 * i);
    __half half;
    std::memcpy(&half, &bits, sizeof half);
    return __half2float(half);
  }
};
struct Tf32 {
  static constexpr int kInRegister = 1;
  static float at(uint32_t word, int) { return __uint_as_float(word & 0xffffe000u); }
};

// With g = lane / 4, q = lane % 4 and n elements in a register: left registers hold rows g, g + 8, g, g + 8
// and columns from n q, the last two from n q + 4 n; right registers rows from n q and n q + 4 n of column g.
template <typename Element>
void multiply_add(float (&sums)[4], const uint32_t (&left)[4], uint32_t right_0, uint32_t right_1) {
  struct Lane {
    float (&sums)[4];
    const uint32_t (&left)[4];
    uint32_t right[2];
  } mine{sums, left, {right_0, right_1}};
  emulator::meet_warp(
      [](void* const(&of_lanes)[emulator::kLanes]) {
        constexpr int n = Element::kInRegister, kDepth = 8 * n;
        float left[16][kDepth];
        double right[kDepth][8], exact[16][8];
        for (int lane = 0; lane < emulator::kLanes; ++lane) {
          const Lane& own = *static_cast<Lane*>(of_lanes[lane]);
          const int g = lane / 4, q = lane % 4;
          for (int i = 0; i < n; ++i) {
            for (int part = 0; part < 4; ++part)
              left[g + part % 2 * 8][part / 2 * 4 * n + n * q + i] = Element::at(own.left[part], i);
            for (int part = 0; part < 2; ++part)
              right[part * 4 * n + n * q + i][g] = Element::at(own.right[part], i);
          }
          for (int i = 0; i < 4; ++i) exact[g + i / 2 * 8][2 * q + i % 2] = own.sums[i];
        }
        for (int row = 0; row < 16; ++row)
          for (int k = 0; k < kDepth; ++k)
            for (int column = 0; column < 8; ++column) exact[row][column] += left[row][k] * right[k][column];
        for (int lane = 0; lane < emulator::kLanes; ++lane) {
          const int g = lane / 4, q = lane % 4;
          float (&sums)[4] = static_cast<Lane*>(of_lanes[lane])->sums;
          for (int i = 0; i < 4; ++i) sums[i] = static_cast<float>(exact[g + i / 2 * 8][2 * q + i % 2]);
        }
      },
      &mine);
}
inline void mma_bf16(float (&sums)[4], const uint32_t (&left)[4], uint32_t right_0, uint32_t right_1) {
  multiply_add<Bf16>(sums, left, right_0, right_1);
}
inline void mma_f16(float (&sums)[4], const uint32_t (&left)[4], uint32_t right_0, uint32_t right_1) {
  multiply_add<F16>(sums, left, right_0, right_1);
}
inline void mma_tf32(float (&sums)[4], const uint32_t (&left)[4], uint32_t right_0, uint32_t right_1) {
  multiply_add<Tf32>(sums, left, right_0, right_1);
}

}  // namespace dhp::ptx
