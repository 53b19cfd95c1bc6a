// Rows of D channels: where they lie, and the dot product of two.
//
// As a partner in a dot product a row is read whole by one lane, 8 channels at a time, mostly against a row
// that the warp has staged in shared memory. As a term of a weighted sum (row_sum.cuh) it is read by the
// whole warp, 8 channels a lane.

#pragma once

#include <type_traits>

#include "device/ct.cuh"
#include "device/element.cuh"
#include "device/warp.cuh"
#include "params.h"

namespace dhp {

inline constexpr int kLaneChannels = 8;                          // of a row, held by one lane
inline constexpr int kMaxChannels = kLaneChannels * kWarpLanes;  // largest D
inline constexpr int kWarpsResident = 16;  // on an SM, at least: allows 128 registers, enough not to spill

// One row of query, key, value, out or a gradient: `row` is t or s, `head` counts that tensor's own heads.
// Positions and heads are never negative. They have 32 bits, offsets 64.
struct Place {
  int32_t v, b, row, head;
};

// Splits the fastest axis, of `size`, off a flat index. 32-bit division: the 64-bit one is a call.
__device__ inline int32_t take_index(uint32_t& flat, int64_t size) {
  const uint32_t whole = flat / static_cast<uint32_t>(size);
  const uint32_t index = flat - whole * static_cast<uint32_t>(size);
  flat = whole;
  return static_cast<int32_t>(index);
}

// The row that the block owns: one warp a block, counted along rows, then heads, batch and V. That all lanes
// of a block are in one warp tells the compiler which branches cannot split a warp; it then needs no slow
// path at the shuffles.
__device__ inline Place place_of_block(int64_t rows, int64_t heads, int64_t batch) {
  uint32_t rest;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(rest));  // volatile: a second call computes again
  const int32_t row = take_index(rest, rows);
  const int32_t head = take_index(rest, heads);
  const int32_t b = take_index(rest, batch);
  return {.v = static_cast<int32_t>(rest), .b = b, .row = row, .head = head};
}

// An index times a stride, in 64 bits.
__device__ inline int64_t along(int32_t index, int64_t stride) {
  return static_cast<uint32_t>(index) * stride;
}

template <DType dtype, typename Pointer>
__device__ auto row_at(const HeadRows<Pointer>& rows, const Place& at) {
  using Typed = std::conditional_t<std::is_same_v<Pointer, void*>, Element<dtype>*, const Element<dtype>*>;
  return static_cast<Typed>(rows.data) + along(at.v, rows.stride_v) + along(at.b, rows.stride_b) +
         along(at.row, rows.stride_row) + along(at.head, rows.stride_head);
}

// Query heads that share one key/value head, and the one that query head n reads.
__device__ inline int32_t group_size(const Shape& shape) {
  return static_cast<int32_t>(static_cast<uint32_t>(shape.N) / static_cast<uint32_t>(shape.K));
}
__device__ inline int32_t key_value_head(const Shape& shape, int32_t n) {
  return static_cast<int32_t>(static_cast<uint32_t>(n) / static_cast<uint32_t>(group_size(shape)));
}

// row_max, log_sum, d_lse and delta: [V, B, T, N].
__device__ inline int64_t statistic_index(const Shape& shape, const Place& query) {
  return ((query.v * shape.B + query.b) * shape.T + query.row) * shape.N + query.head;
}

// The channels of a row that this lane holds, in kernels of one warp a block. A lane that would start past D
// repeats the last channels instead, and must not count: no warp splits.
struct LaneChannels {
  int first;
  bool counts;
};
__device__ inline LaneChannels lane_channels(int channels) {
  const int first = kLaneChannels * static_cast<int>(threadIdx.x);
  return {min(first, channels - kLaneChannels), first < channels};
}

inline constexpr DType kStaged = DType::kFloat32;  // of a row in shared memory

// Copies a row to shared memory as float32, or zeros where `keep` does not hold. Needs a __syncwarp after.
//   row   [channels] global
//   sRow  [channels] shared
template <DType dtype>
__device__ void stage_row(const Element<dtype>* row, CtMask keep, int channels, float* sRow) {
  const int first = lane_channels(channels).first;
  float values[kLaneChannels];
  load8<dtype>(row + first, values);
#pragma unroll
  for (float& value : values) value = ct_keep(keep, value);
  store8<kStaged>(sRow + first, values);
}

// Forward and backward add in the same order, so that both see the same bits of a score.
//   a, b  [channels], each aligned to 16 bytes
template <DType dtype_a, DType dtype_b>
__device__ float dot(const Element<dtype_a>* a, const Element<dtype_b>* b, int channels) {
  float sum = 0.0f;
#pragma unroll 1
  for (int d = 0; d < channels; d += 8) {
    float of_a[8], of_b[8];
    load8<dtype_a>(a + d, of_a);
    load8<dtype_b>(b + d, of_b);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum = fmaf(of_a[i], of_b[i], sum);
  }
  return sum;
}

}  // namespace dhp
