// Tensor maps: how rows of heads lie in memory, for the copies of compute capability 9.0.

#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "params.h"

namespace dhp {

// What the cache fetches from memory where a line of 128 bytes is missing: that line, or the one beside it
// too.
enum class Fetch { kOneLine, kTwoLines };

// The most general form; `strides` count elements, of the axes after the channels. An axis of stride 0 is
// repeated, and has one position in the map.
//   sizes     channels, positions, heads, B, V
//   box_rows  positions of one copy, of 64 channels
// Empty, or what the driver objects to.
std::string encode_tensor_map(TensorMap& map, const void* data, std::array<int64_t, 5> sizes,
                              const std::array<int64_t, 4>& strides, DType dtype, int box_rows, Fetch fetch);

template <typename Pointer>
std::string encode_tensor_map(TensorMap& map, const HeadRows<Pointer>& rows,
                              const std::array<int64_t, 5>& sizes, DType dtype, int box_rows,
                              Fetch fetch = Fetch::kTwoLines) {
  return encode_tensor_map(map, rows.data, sizes,
                           {rows.stride_row, rows.stride_head, rows.stride_b, rows.stride_v}, dtype, box_rows,
                           fetch);
}

}  // namespace dhp
