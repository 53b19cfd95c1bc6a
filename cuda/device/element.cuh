// Elements of the operand dtypes, eight at a time, as float32 in registers.
//
// Every conversion is one fixed-latency instruction a pair. Rounding is to nearest, ties to even.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "params.h"

namespace dhp {

template <DType dtype>
struct ElementTypes;
template <>
struct ElementTypes<DType::kFloat32> {
  using One = float;
  using Two = float2;
};
template <>
struct ElementTypes<DType::kBFloat16> {
  using One = __nv_bfloat16;
  using Two = __nv_bfloat162;
};
template <>
struct ElementTypes<DType::kFloat16> {
  using One = __half;
  using Two = __half2;
};

template <DType dtype>
using Element = typename ElementTypes<dtype>::One;
template <DType dtype>
using ElementPair = typename ElementTypes<dtype>::Two;

__device__ inline float2 to_float2(float2 pair) { return pair; }
__device__ inline float2 to_float2(__nv_bfloat162 pair) { return __bfloat1622float2(pair); }
__device__ inline float2 to_float2(__half2 pair) { return __half22float2(pair); }

template <DType dtype>
__device__ ElementPair<dtype> from_float2(float2 pair) {
  if constexpr (dtype == DType::kFloat32) {
    return pair;
  } else if constexpr (dtype == DType::kBFloat16) {
    return __float22bfloat162_rn(pair);
  } else {
    static_assert(dtype == DType::kFloat16);
    return __float22half2_rn(pair);
  }
}

// Eight elements as they lie in memory, moved in loads of 16 bytes.
template <DType dtype>
union Eight {
  static constexpr int kWords = 8 * sizeof(Element<dtype>) / sizeof(uint4);
  uint4 words[kWords];
  ElementPair<dtype> pairs[4];
  __device__ Eight() {}
};

// `from` and `to` are aligned to 16 bytes.
template <DType dtype>
__device__ void load8(const Element<dtype>* from, float (&values)[8]) {
  Eight<dtype> eight;
#pragma unroll
  for (int i = 0; i < eight.kWords; ++i) eight.words[i] = reinterpret_cast<const uint4*>(from)[i];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = to_float2(eight.pairs[i]);
    values[2 * i] = pair.x;
    values[2 * i + 1] = pair.y;
  }
}

}  // namespace dhp
