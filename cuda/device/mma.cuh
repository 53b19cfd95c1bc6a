// Tensor-core products of one warp, m16n8k16 with float32 sums, and the shared-memory reads that feed them.
//
// Which lane holds what, for the 16x16 left operand, the 16x8 right operand and the 16x8 sums, is fixed by
// the PTX ISA (mma.m16n8k16). With g = lane / 4 and q = lane % 4 a lane holds
//
//   left    rows g, g + 8; columns 2q, 2q + 1 and 2q + 8, 2q + 9
//   right   rows 2q, 2q + 1 and 2q + 8, 2q + 9; column g
//   sums    rows g, g + 8; columns 2q, 2q + 1
//
// so that sums, rounded to pairs, are the left operand of a next product as they lie.

#pragma once

#include <cstdint>

#include "device/element.cuh"
#include "params.h"

namespace dhp {

inline constexpr int kMmaRows = 16;    // of the left operand and the sums
inline constexpr int kMmaColumns = 8;  // of the right operand and the sums
inline constexpr int kMmaDepth = 16;   // summed over

// Four 8x8 matrices: a left operand, or the right operands of two neighbouring products.
using Fragment = uint32_t[4];
using Sums = float[4];  // (g, 2q), (g, 2q + 1), (g + 8, 2q), (g + 8, 2q + 1)

// sums += left * right, right = {rows 0 to 7, rows 8 to 15}.
template <DType dtype>
__device__ void multiply_add(Sums& sums, const Fragment& left, uint32_t right_0, uint32_t right_8) {
  if constexpr (dtype == DType::kBFloat16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right_0), "r"(right_8));
  } else {
    static_assert(dtype == DType::kFloat16);
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right_0), "r"(right_8));
  }
}

// Lane 8 i + r names row r, 16 bytes in shared memory, of matrix i. Lane 4 g + q gets columns 2q, 2q + 1 of
// row g of each.
__device__ inline void load_matrices(Fragment& to, uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(row)
               : "memory");
}

// The same with each matrix transposed: lane 4 g + q gets rows 2q, 2q + 1 of column g.
__device__ inline void load_matrices_transposed(Fragment& to, uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(row)
               : "memory");
}

// Two values as they lie in memory, the first in the low half.
template <DType dtype>
__device__ uint32_t pack(float first, float second) {
  const ElementPair<dtype> pair = from_float2<dtype>({first, second});
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// The sums of two neighbouring products as the left operand of a next one.
template <DType dtype>
__device__ void as_left_operand(Fragment& left, const Sums& columns_0, const Sums& columns_8) {
  left[0] = pack<dtype>(columns_0[0], columns_0[1]);
  left[1] = pack<dtype>(columns_0[2], columns_0[3]);
  left[2] = pack<dtype>(columns_8[0], columns_8[1]);
  left[3] = pack<dtype>(columns_8[2], columns_8[3]);
}

}  // namespace dhp
