// Everything one launch needs, in the order an attention call names it.
//
// Axis letters, the same in every room:
//   V  mapped axis: what jax.vmap adds; 1 when nothing is mapped
//   B  batch             T  query position        S  key/value position
//   N  query heads       K  key/value heads       D  channels of one head
// Query head n reads key/value head n / (N / K).
//
// Public: every field of these structs, pointers included. Secret: what the pointers point to.
// A stride counts elements. A stride of 0 repeats one slice along an axis and costs no copy.

#pragma once

#include <cstdint>

namespace dhp {

enum class DType : int32_t { kFloat32, kBFloat16, kFloat16 };

struct Shape {
  int64_t V, B, T, S, N, K, D;
  int64_t group() const { return N / K; }  // query heads that share one key/value head
};

// query, key, value, out and their gradients: [V|1, B, T|S, N|K, D], D contiguous.
template <typename Pointer>
struct HeadRows {
  Pointer data = nullptr;
  int64_t stride_v = 0, stride_b = 0, stride_row = 0, stride_head = 0;
};
using InRows = HeadRows<const void*>;
using OutRows = HeadRows<void*>;

// bias, its gradient and mask: [V|1, B|1, N|1, T|1, S|1]; a size of 1 under a larger axis has stride 0.
template <typename Pointer>
struct ScorePlane {
  Pointer data = nullptr;  // nullptr: the operand is absent
  int64_t stride_v = 0, stride_b = 0, stride_n = 0, stride_t = 0, stride_s = 0;
};

// True lengths [V|1, B]. A position at or past its length takes no part. Any int32 is a legal value.
struct Lengths {
  const int32_t* data = nullptr;  // nullptr: every position takes part
  int64_t stride_v = 0, stride_b = 0;
};

// The public structure of a causal or windowed call: query t sees key s iff t - left <= s <= t + right.
// Positions are aligned top-left, as in jax.nn. "No limit" is left = T, right = S.
struct Band {
  int64_t left, right;
};

// What forward and backward share.
struct Problem {
  Shape shape;
  DType dtype;  // of query, key, value, out and their gradients
  float scale;  // score = scale * (q . k) + bias
  Band band;
  InRows query, key, value;
  DType bias_dtype = DType::kFloat32;
  ScorePlane<const void*> bias;     // bias_dtype
  ScorePlane<const uint8_t*> mask;  // 0 or 1; 1 = this key takes part
  Lengths query_lengths, key_value_lengths;
};

struct ForwardParams {
  Problem problem;
  OutRows out;
  // Both [V, B, T, N]; their sum is the log-sum-exp. Where no key takes part they are finite and -inf.
  float* row_max;  // largest score of the row
  float* log_sum;  // ln of the sum of exp(score - row_max)
  // Workspace of as many elements as forward_workspace (launch/workspace.h) says; nullptr where the call does
  // without, for which there is always a way.
  float* workspace = nullptr;
};

// Gradients of query, key and value.
struct BackwardParams {
  Problem problem;
  InRows out, d_out;
  const float *row_max, *log_sum;   // [V, B, T, N] from the forward pass
  const float* d_lse;               // [V, B, T, N] cotangent of the log-sum-exp
  OutRows d_query, d_key, d_value;  // V of these is the full V, also where the operand's is 1
  float* delta;                     // [V, B, T, N] workspace: sum over D of d_out * out, less d_lse
};

// Gradient of bias, summed over the axes along which bias repeats.
struct BiasBackwardParams {
  Problem problem;
  InRows out, d_out;
  const float *row_max, *log_sum;
  const float* d_lse;
  Shape bias_shape;          // sizes of d_bias along V, B, N, T, S: each 1 or the size in problem.shape
  ScorePlane<void*> d_bias;  // bias_dtype; V is the full V
  float* delta;              // [V, B, T, N] workspace, as in BackwardParams
};

// How a tensor lies in memory, as the driver's cuTensorMapEncodeTiled writes it for the copies of compute
// capability 9.0.
struct alignas(64) TensorMap {
  unsigned char bytes[128];
};

}  // namespace dhp
