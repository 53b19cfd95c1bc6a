// How much workspace a forward call needs. Follows from public facts of the call alone: from no GPU, since a
// program is lowered before it is known where it will run, and from no length, which is secret.

#pragma once

#include <cstdint>

#include "launch/splits.h"
#include "params.h"

namespace dhp {

// Sizes of a mask along all axes but the keys, 1 where its elements are shared; all 0 without one.
struct MaskSizes {
  int64_t V, B, N, T;
  int64_t rows() const { return V * B * N * T; }
};

// What of a forward call it depends on.
struct WorkspaceFacts {
  Shape shape;
  bool has_16_bits;  // of an element
  bool has_key_value_lengths;
  bool maps_keys;  // key, value or their lengths differ along V
  MaskSizes mask;  // of one whose bits are read
};

// A mask is read as bits unless there is a bias, or a scale that is not positive, to each score besides. One
// that is the same for all keys is not: its bits would be more than it.
inline MaskSizes mask_sizes(const Problem& problem) {
  const ScorePlane<const uint8_t*>& mask = problem.mask;
  const Shape& shape = problem.shape;
  if (mask.data == nullptr || problem.bias.data != nullptr || !(problem.scale > 0) ||
      (mask.stride_s == 0 && shape.S != 1)) {
    return {};
  }
  return {mask.stride_v != 0 ? shape.V : 1, mask.stride_b != 0 ? shape.B : 1,
          mask.stride_n != 0 ? shape.N : 1, mask.stride_t != 0 ? shape.T : 1};
}

inline WorkspaceFacts workspace_facts(const Problem& problem) {
  return {problem.shape, problem.dtype != DType::kFloat32, problem.key_value_lengths.data != nullptr,
          problem.key.stride_v != 0 || problem.value.stride_v != 0 || problem.key_value_lengths.stride_v != 0,
          mask_sizes(problem)};
}

// Copies of key and of value as attention_fwd_sm90 reads them where lengths are given, bytes of one of them.
inline int64_t real_rows_bytes(const WorkspaceFacts& facts) {
  const Shape& shape = facts.shape;
  return (facts.maps_keys ? shape.V : 1) * shape.B * shape.S * shape.K * shape.D * 2;
}
inline bool needs_real_rows(const WorkspaceFacts& facts) {
  return facts.has_16_bits && facts.has_key_value_lengths && !is_decode(facts.shape, facts.has_16_bits);
}

// Keys in a tile of attention_fwd_sm90 that reads bits of a mask.
constexpr int64_t mask_tile_keys(int64_t channels) { return channels <= 128 ? 128 : 80; }

inline int64_t mask_tiles(const Shape& shape) {
  return (shape.S + mask_tile_keys(shape.D) - 1) / mask_tile_keys(shape.D);
}
// Four words for each row and tile.
inline int64_t mask_words(const Shape& shape, int64_t rows) { return rows * mask_tiles(shape) * 4; }
inline bool needs_mask_bits(const WorkspaceFacts& facts) {
  return facts.has_16_bits && facts.mask.rows() > 0 && !is_decode(facts.shape, facts.has_16_bits);
}

// Elements of ForwardParams::workspace: copies of keys and values, then bits of the mask.
inline int64_t forward_workspace(const WorkspaceFacts& facts) {
  if (is_decode(facts.shape, facts.has_16_bits)) return decode_workspace(facts.shape);
  const int64_t rows = needs_real_rows(facts) ? 2 * real_rows_bytes(facts) : 0;
  const int64_t words = needs_mask_bits(facts) ? mask_words(facts.shape, facts.mask.rows()) : 0;
  return rows / static_cast<int64_t>(sizeof(float)) + words;
}

}  // namespace dhp
