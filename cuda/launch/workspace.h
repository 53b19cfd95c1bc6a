// How much workspace a forward call needs. Follows from public facts of the call alone: from no GPU, since a
// program is lowered before it is known where it will run, and from no length, which is secret.

#pragma once

#include <cstdint>

#include "launch/splits.h"
#include "params.h"

namespace dhp {

// What of a forward call it depends on.
struct WorkspaceFacts {
  Shape shape;
  bool has_16_bits;  // of an element
  bool has_key_value_lengths;
  bool maps_keys;  // key, value or their lengths differ along V
};

inline WorkspaceFacts workspace_facts(const Problem& problem) {
  return {
      problem.shape, problem.dtype != DType::kFloat32, problem.key_value_lengths.data != nullptr,
      problem.key.stride_v != 0 || problem.value.stride_v != 0 || problem.key_value_lengths.stride_v != 0};
}

// Copies of key and of value as attention_fwd_sm90 reads them where lengths are given, bytes of one of them.
inline int64_t real_rows_bytes(const WorkspaceFacts& facts) {
  const Shape& shape = facts.shape;
  return (facts.maps_keys ? shape.V : 1) * shape.B * shape.S * shape.K * shape.D * 2;
}
inline bool needs_real_rows(const WorkspaceFacts& facts) {
  return facts.has_16_bits && facts.has_key_value_lengths && !is_decode(facts.shape, facts.has_16_bits);
}

// Elements of ForwardParams::workspace.
inline int64_t forward_workspace(const WorkspaceFacts& facts) {
  if (is_decode(facts.shape, facts.has_16_bits)) return decode_workspace(facts.shape);
  return needs_real_rows(facts) ? 2 * real_rows_bytes(facts) / static_cast<int64_t>(sizeof(float)) : 0;
}

}  // namespace dhp
