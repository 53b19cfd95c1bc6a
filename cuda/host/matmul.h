// C = A B or C += A B on small float32 tiles in scratch memory: the one matmul behind all seven of attention.
//
//   A [m, k]  any strides, read one scalar at a time
//   B [k, n]  rows of ldb floats, n a multiple of kWidth
//   C [m, n]  rows of ldc floats
//
// Every element of C is one chain of fused multiply-adds over k, in order, whatever the block of registers it
// was computed in. So the bits of a row do not depend on the rows beside it.

#pragma once

#include "host/simd.h"

namespace dhp::DHP_ISA {

constexpr int kTileRows = 6;  // accumulators: kTileRows x kTileVectors vectors

struct Operand {  // A, addressed as data[row * stride_row + depth * stride_depth]
  const float* data;
  int64_t stride_row, stride_depth;
};

enum class Start { kZero, kAccumulate };

template <int kRows, int kVectors, Start kStart>
inline void multiply_block(int64_t depth, Operand a, const float* b, int64_t ldb, float* c, int64_t ldc) {
  Vec sum[kRows][kVectors];
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kVectors; ++j)
      sum[i][j] = kStart == Start::kZero ? Vec{} : load(c + i * ldc + j * kWidth);
  for (int64_t k = 0; k < depth; ++k) {
    Vec row[kVectors];
    for (int j = 0; j < kVectors; ++j) row[j] = load(b + k * ldb + j * kWidth);
    for (int i = 0; i < kRows; ++i) {
      const float scalar = a.data[i * a.stride_row + k * a.stride_depth];
      for (int j = 0; j < kVectors; ++j) sum[i][j] += scalar * row[j];
    }
  }
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kVectors; ++j) store(c + i * ldc + j * kWidth, sum[i][j]);
}

template <int kVectors, Start kStart>
inline void multiply_columns(int64_t m, int64_t depth, Operand a, const float* b, int64_t ldb, float* c,
                             int64_t ldc) {
  for (; m >= kTileRows; m -= kTileRows) {
    multiply_block<kTileRows, kVectors, kStart>(depth, a, b, ldb, c, ldc);
    a.data += kTileRows * a.stride_row;
    c += kTileRows * ldc;
  }
  switch (m) {
    case 5: return multiply_block<5, kVectors, kStart>(depth, a, b, ldb, c, ldc);
    case 4: return multiply_block<4, kVectors, kStart>(depth, a, b, ldb, c, ldc);
    case 3: return multiply_block<3, kVectors, kStart>(depth, a, b, ldb, c, ldc);
    case 2: return multiply_block<2, kVectors, kStart>(depth, a, b, ldb, c, ldc);
    case 1: return multiply_block<1, kVectors, kStart>(depth, a, b, ldb, c, ldc);
  }
}

template <Start kStart>
inline void matmul(int64_t m, int64_t n, int64_t depth, Operand a, const float* b, int64_t ldb, float* c,
                   int64_t ldc) {
  constexpr int64_t kColumns = int64_t{kTileVectors} * kWidth;
  int64_t column = 0;
  for (; column + kColumns <= n; column += kColumns)
    multiply_columns<kTileVectors, kStart>(m, depth, a, b + column, ldb, c + column, ldc);
  for (; column < n; column += kWidth)
    multiply_columns<1, kStart>(m, depth, a, b + column, ldb, c + column, ldc);
}

}  // namespace dhp::DHP_ISA
