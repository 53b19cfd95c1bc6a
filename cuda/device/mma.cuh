// Tensor-core products of one warp with float32 sums, and their operands.
//
// A product takes a left operand of 16 rows, a right operand of 8 columns, and sums over kMmaDepth: 16
// elements of 16 bits, or 8 float32, either 32 bytes of a row. Which lane holds what is fixed by the PTX ISA
// (mma.m16n8k16, mma.m16n8k8). With g = lane / 4 and q = lane % 4 a lane holds, where elements have 16 bits,
//
//   left    rows g, g + 8; columns 2q, 2q + 1 and 2q + 8, 2q + 9
//   right   rows 2q, 2q + 1 and 2q + 8, 2q + 9; column g
//   sums    rows g, g + 8; columns 2q, 2q + 1
//
// and where they have 32
//
//   left    rows g, g + 8; columns q and q + 4
//   right   rows q and q + 4; column g
//
// float32 is split into two parts of 11 bits, and takes three products: high.high + high.low + low.high. What
// is left out is 2^-21 of a term at most.

#pragma once

#include <cstdint>

#include "device/element.cuh"
#include "device/ptx.cuh"
#include "params.h"

namespace dhp {

inline constexpr int kMmaRows = 16;        // of the left operand and the sums
inline constexpr int kMmaColumns = 8;      // of the right operand and the sums
inline constexpr int kMmaDepthBytes = 32;  // summed over
template <DType dtype>
inline constexpr int kMmaDepth = kMmaDepthBytes / sizeof(Element<dtype>);

// As it lies in memory: a left operand, or the right operands of two neighbouring products.
using Fragment = uint32_t[4];
using Sums = float[4];  // (g, 2q), (g, 2q + 1), (g + 8, 2q), (g + 8, 2q + 1)

// As the products take it.
template <DType dtype>
struct Operand {
  Fragment bits;
};
template <>
struct Operand<DType::kFloat32> {
  Fragment high, low;
};

template <DType dtype>
__device__ Operand<dtype> as_operand(const Fragment& fragment) {
  Operand<dtype> operand;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (dtype == DType::kFloat32) {
      // The products do not look at the last 13 bits of an operand. Of the rest they leave out a quarter of
      // the last of its 11 bits on average, which the small factor makes up for; with it no low part is 0
      // that an infinity on the other side would turn into NaN. Infinity less itself is NaN, and loses
      // against a number.
      constexpr uint32_t kSeen = 0xffffe000u;
      constexpr float kNextToOne = 1.0f + 0x1p-23f;
      operand.high[i] = fragment[i] & kSeen;
      const float rest = fmaf(__uint_as_float(fragment[i]), kNextToOne, -__uint_as_float(operand.high[i]));
      operand.low[i] = __float_as_uint(fminf(rest, 0x1p100f));
    } else {
      operand.bits[i] = fragment[i];
    }
  }
  return operand;
}

// sums += left . right, of the first (0) or second (1) product that `right` is for.
template <DType dtype>
__device__ void multiply_add(Sums& sums, const Operand<dtype>& left, const Operand<dtype>& right, int which) {
  const int first = 2 * which, second = first + 1;
  if constexpr (dtype == DType::kFloat32) {
    // The small terms first, while the sum of this product is small.
    ptx::mma_tf32(sums, left.low, right.high[first], right.high[second]);
    ptx::mma_tf32(sums, left.high, right.low[first], right.low[second]);
    ptx::mma_tf32(sums, left.high, right.high[first], right.high[second]);
  } else if constexpr (dtype == DType::kBFloat16) {
    ptx::mma_bf16(sums, left.bits, right.bits[first], right.bits[second]);
  } else {
    static_assert(dtype == DType::kFloat16);
    ptx::mma_f16(sums, left.bits, right.bits[first], right.bits[second]);
  }
}

// Two values as they lie in memory, the first in the low half.
template <DType dtype>
__device__ uint32_t pack(float first, float second) {
  const ElementPair<dtype> pair = from_float2<dtype>({first, second});
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// The k-th kMmaDepth columns of sums, rounded to the dtype, as the left operand of a next product. Of
// float32 a lane keeps its columns 2q, 2q + 1 where the product has q, q + 4: what it sums over stands in
// another order, which the right operand must have too.
template <DType dtype, int kTiles>
__device__ void as_left_fragment(Fragment& left, const Sums (&sums)[kTiles], int k) {
  if constexpr (dtype == DType::kFloat32) {
    const Sums& columns = sums[k];
    left[0] = __float_as_uint(columns[0]);
    left[1] = __float_as_uint(columns[2]);
    left[2] = __float_as_uint(columns[1]);
    left[3] = __float_as_uint(columns[3]);
  } else {
    const Sums &columns_0 = sums[2 * k], &columns_8 = sums[2 * k + 1];
    left[0] = pack<dtype>(columns_0[0], columns_0[1]);
    left[1] = pack<dtype>(columns_0[2], columns_0[3]);
    left[2] = pack<dtype>(columns_8[0], columns_8[1]);
    left[3] = pack<dtype>(columns_8[2], columns_8[3]);
  }
}

}  // namespace dhp
