// Where the optional operands of a score lie: bias, mask, lengths.

#pragma once

#include <cstdint>

#include "device/ptx.cuh"
#include "device/rows.cuh"
#include "params.h"

namespace dhp {

// An element of an operand that may be absent. The address is made outside the branch: inside it, a guarded
// instruction would write the address over a register that last held a secret, and the proof, which does not
// compare guards, would take the address for a mixture of both.
template <typename T>
__device__ T load_if_present(const T* data, int64_t offset, T otherwise) {
  const size_t address = ptx::opaque(__cvta_generic_to_global(data + offset));
  return data == nullptr ? otherwise : *static_cast<const T*>(__cvta_global_to_generic(address));
}

// True lengths of one sequence: secret. They choose values, never work.
struct TrueLengths {
  int32_t query, key_value;
};

__device__ inline int32_t load_length(const Lengths& lengths, int32_t v, int32_t b) {
  return load_if_present(lengths.data, along(v, lengths.stride_v) + along(b, lengths.stride_b), INT32_MAX);
}

__device__ inline TrueLengths load_lengths(const Problem& problem, int32_t v, int32_t b) {
  return {load_length(problem.query_lengths, v, b), load_length(problem.key_value_lengths, v, b)};
}

struct ScorePlace {
  int32_t v, b, n, t, s;
};

template <typename Pointer>
__device__ int64_t offset_in(const ScorePlane<Pointer>& plane, const ScorePlace& at) {
  return along(at.v, plane.stride_v) + along(at.b, plane.stride_b) + along(at.n, plane.stride_n) +
         along(at.t, plane.stride_t) + along(at.s, plane.stride_s);
}

// An element of bias as float32. bfloat16 and float16 are told apart after the load: a switch over all three
// dtypes would become a jump table.
template <bool kIsFloat32>
__device__ float load_bias(const Problem& problem, int64_t offset) {
  if constexpr (kIsFloat32) return static_cast<const float*>(problem.bias.data)[offset];
  const __nv_bfloat16 bits = static_cast<const __nv_bfloat16*>(problem.bias.data)[offset];
  const float as_float16 = __half2float(reinterpret_cast<const __half&>(bits));
  return problem.bias_dtype == DType::kBFloat16 ? __bfloat162float(bits) : as_float16;
}

}  // namespace dhp
