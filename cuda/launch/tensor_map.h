// Tensor maps: how rows of heads lie in memory, for the copies of compute capability 9.0.

#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "params.h"

namespace dhp {

// The most general form; `strides` count elements, of the axes after the channels. An axis of stride 0 is
// repeated, and has one position in the map.
//   sizes     channels, positions, heads, B, V
//   box_rows  positions of one copy, of 64 channels
// Empty, or what the driver objects to.
std::string encode_tensor_map(TensorMap& map, const void* data, std::array<int64_t, 5> sizes,
                              const std::array<int64_t, 4>& strides, DType dtype, int box_rows);

template <typename Pointer>
std::string encode_tensor_map(TensorMap& map, const HeadRows<Pointer>& rows,
                              const std::array<int64_t, 5>& sizes, DType dtype, int box_rows) {
  return encode_tensor_map(map, rows.data, sizes,
                           {rows.stride_row, rows.stride_head, rows.stride_b, rows.stride_v}, dtype,
                           box_rows);
}

}  // namespace dhp
