// From a dot product to a score, and from a score to its gradient: the only place that knows scale, bias,
// mask and lengths.

#pragma once

#include <cfloat>
#include <cmath>

#include "device/ct.cuh"
#include "device/element.cuh"
#include "device/rows.cuh"
#include "params.h"

namespace dhp {

// An element of an operand that may be absent. The address is made outside the branch: inside it, a guarded
// instruction would write the address over a register that last held a secret, and the proof, which does not
// compare guards, would take the address for a mixture of both.
template <typename T>
__device__ T load_if_present(const T* data, int64_t offset, T otherwise) {
  size_t address = __cvta_generic_to_global(data + offset);
  asm volatile("" : "+l"(address));
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

__device__ inline float load_bias(const Problem& problem, const ScorePlace& at) {
  const int64_t offset = offset_in(problem.bias, at);
  const void* data = problem.bias.data;
  switch (problem.bias_dtype) {
    case DType::kFloat32: return static_cast<const float*>(data)[offset];
    case DType::kBFloat16: return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[offset]);
    case DType::kFloat16: return __half2float(static_cast<const __half*>(data)[offset]);
  }
  return NAN;  // not reached: the launcher admits no other dtype
}

// Where a running row maximum starts: finite, so that a row of -inf scores gives p = exp(-inf) = 0 without a
// test for "nothing seen yet".
inline constexpr float kRowMaxInit = -FLT_MAX;

struct Score {
  float value;        // -inf where the key takes no part
  CtMask takes_part;  // secret: mask and lengths
};

// A score that takes no part is replaced, so NaN in its key row or bias is lost.
//   at       a place inside the problem
//   in_band  public; does not hold where the band hides the key, or where the lane has no key of its own
__device__ inline Score score_at(const Problem& problem, const TrueLengths& lengths, const ScorePlace& at,
                                 CtMask in_band, float query_dot_key) {
  const uint8_t mask = load_if_present(problem.mask.data, offset_in(problem.mask, at), uint8_t{1});
  const CtMask takes_part =
      in_band & ct_less(at.t, lengths.query) & ct_less(at.s, lengths.key_value) & ct_nonzero(mask);
  const float bias = problem.bias.data == nullptr ? 0.0f : load_bias(problem, at);
  const float score = fmaf(problem.scale, query_dot_key, bias);
  return {ct_select(takes_part, score, -INFINITY), takes_part};
}

// What the backward pass knows of a query's row. max and log_sum stay apart: their sum would lose log_sum to
// rounding where the scores are large, as under a bias of -1e9.
struct RowStatistics {
  float max, log_sum, delta;
};

template <typename Params>
__device__ RowStatistics load_statistics(const Params& params, int64_t index) {
  return {params.row_max[index], params.log_sum[index], params.delta[index]};
}

struct ScoreGradient {
  float p;        // probability
  float d_score;  // dS = P * (dP - delta)
};

// Both are exactly 0 where the key takes no part; d_score also where the score is -inf, a corner where the
// product would be 0 * inf.
//   row    of the query; its log_sum is -inf where no key takes part
//   d_p    d_out . value
__device__ inline ScoreGradient score_gradient(const Score& score, const RowStatistics& row, float d_p) {
  const float finite_or_inf = ct_select(ct_equal(row.log_sum, -INFINITY), INFINITY, row.log_sum);
  const float p = ct_keep(score.takes_part, ct_exp((score.value - row.max) - finite_or_inf));
  const CtMask has_gradient = score.takes_part & ~ct_equal(score.value, -INFINITY);
  return {p, ct_keep(has_gradient, p * (d_p - row.delta))};
}

}  // namespace dhp
