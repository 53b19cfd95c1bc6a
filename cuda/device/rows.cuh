// Where the rows of an attention call lie, and which of them a block owns.

#pragma once

#include <cstdint>
#include <type_traits>

#include "device/element.cuh"
#include "device/ptx.cuh"
#include "params.h"

namespace dhp {

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

// What the block owns, where blocks are counted along `rows` (or tiles of them), then heads, batch and V.
__device__ inline Place place_of_block(int64_t rows, int64_t heads, int64_t batch) {
  uint32_t rest = ptx::block_index();
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

}  // namespace dhp
