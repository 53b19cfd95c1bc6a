// Backward attention on the CPU.
//
// With P = exp(score - log-sum-exp), dP = d_out . value and dS = P (dP - delta):
//
//   d_query = scale * dS key       one task is one block of query rows, over the key blocks it sees
//   d_key   = scale * dS^T query   one task is one block of keys, over the rows that see it, group included
//   d_value = P^T d_out            in the same task
//
// delta, the sum over D of d_out * out less the cotangent of the log-sum-exp, is computed first. No two tasks
// write the same place, and each adds in one fixed order: the bits do not depend on the number of threads.

#pragma once

#include "host/attention_fwd.h"

namespace dhp::DHP_ISA {

// What every backward kernel reads.
struct Cotangents {
  InRows out, d_out;
  const float *row_max, *log_sum, *d_lse;
  float* delta;  // [V, B, T, N]
};

struct BackwardScratch {
  float *query, *d_out, *key, *key_transposed, *value_transposed, *probs, *d_scores, *sum_a, *sum_b;
};

inline constexpr int64_t backward_scratch_floats() {
  return kMaxChannels * (2 * kBlockRows + 3 * kBlockKeys) + 2 * kBlockRows * kBlockKeys +
         2 * kBlockRows * kMaxChannels;
}

inline BackwardScratch carve_backward(float* scratch) {
  BackwardScratch s;
  auto take = [&](int64_t floats) { return (scratch += floats) - floats; };
  s.query = take(kBlockRows * kMaxChannels);
  s.d_out = take(kBlockRows * kMaxChannels);
  s.key = take(kBlockKeys * kMaxChannels);
  s.key_transposed = take(kBlockKeys * kMaxChannels);
  s.value_transposed = take(kBlockKeys * kMaxChannels);
  s.probs = take(kBlockRows * kBlockKeys);
  s.d_scores = take(kBlockRows * kBlockKeys);
  s.sum_a = take(kBlockRows * kMaxChannels);
  s.sum_b = take(kBlockRows * kMaxChannels);
  return s;
}

inline void delta_task(const Problem& problem, const Cotangents& cotangents, int64_t task, float* scratch) {
  const RowBlock rows = row_block_of_task(problem.shape, task);
  const int64_t ld = padded_channels(problem.shape);
  BackwardScratch s = carve_backward(scratch);
  load_query_rows(problem, cotangents.out, rows, s.query);
  load_query_rows(problem, cotangents.d_out, rows, s.d_out);
  for (int64_t i = 0; i < rows.count; ++i) {
    Vec sum{};
    for (int64_t d = 0; d < ld; d += kWidth) sum += load(s.query + i * ld + d) * load(s.d_out + i * ld + d);
    const int64_t index = rows.statistic_index(problem.shape, i);
    const IntVec keep = before_length(problem.query_lengths, rows.v, rows.b, rows.position(i));
    const Vec d_lse = ct_select(keep, splat(cotangents.d_lse[index]), Vec{});
    cotangents.delta[index] = sum_lanes(sum) - d_lse[0];
  }
}

// K and its transpose, and the transpose of V, of one block.
inline void load_keys_and_values(const Problem& problem, const KeyBlock& keys, BackwardScratch& s) {
  const int64_t ld = padded_channels(problem.shape);
  load_key_rows(problem, problem.value, keys, s.key);
  transpose(s.key, ld, s.value_transposed);
  load_key_rows(problem, problem.key, keys, s.key);
  transpose(s.key, ld, s.key_transposed);
}

// probs = P and d_scores = dS, both [rows, kBlockKeys], from the tiles in scratch.
inline void compute_score_gradients(const Problem& problem, const Cotangents& cotangents,
                                    const RowBlock& rows, const KeyBlock& keys, BackwardScratch& s) {
  const int64_t ld = padded_channels(problem.shape);
  compute_scores(problem, rows, keys, s.query, s.key_transposed, s.probs);
  fill(s.d_scores, rows.count * kBlockKeys, 0.0f);
  matmul_accumulate(rows.count, kBlockKeys, ld, {s.d_out, ld, 1}, s.value_transposed, kBlockKeys, s.d_scores,
                    kBlockKeys);
  for (int64_t i = 0; i < rows.count; ++i) {
    const int64_t index = rows.statistic_index(problem.shape, i);
    const Vec delta = splat(cotangents.delta[index]);
    const Vec row_max = splat(cotangents.row_max[index]);
    Vec log_sum = splat(cotangents.log_sum[index]);
    log_sum =
        ct_select(log_sum == splat(-kInfinity), splat(kInfinity), log_sum);  // empty row: P = exp(-inf) = 0
    for (int64_t j = 0; j < kBlockKeys; j += kWidth) {
      float *prob = s.probs + i * kBlockKeys + j, *d_score = s.d_scores + i * kBlockKeys + j;
      const Vec score = load(prob), exponent = (score - row_max) - log_sum;
      const Vec p = ct_exp(ct_select(exponent > Vec{}, Vec{}, exponent));  // rounding may lift P above 1
      store(prob, p);
      const Vec gradient = p * (load(d_score) - delta);
      store(d_score, ct_select(score == splat(-kInfinity), Vec{}, gradient));
    }
  }
}

inline void store_query_gradient(const BackwardParams& params, const RowBlock& rows, const float* tile) {
  const Problem& problem = params.problem;
  const int64_t ld = padded_channels(problem.shape);
  with_dtype(problem.dtype, [&](auto type) {
    using Type = decltype(type);
    auto* target = static_cast<typename Type::Storage*>(params.d_query.data);
    target += rows.v * params.d_query.stride_v + rows.b * params.d_query.stride_b;
    for (int64_t i = 0; i < rows.count; ++i)
      store_row<Type>(
          tile + i * ld, splat(problem.scale), problem.shape.D,
          target + rows.position(i) * params.d_query.stride_row + rows.head(i) * params.d_query.stride_head);
  });
}

inline void store_key_gradient(const Problem& problem, const OutRows& gradient, const KeyBlock& keys,
                               float factor, const float* tile) {
  const int64_t ld = padded_channels(problem.shape);
  with_dtype(problem.dtype, [&](auto type) {
    using Type = decltype(type);
    auto* target = static_cast<typename Type::Storage*>(gradient.data);
    target += keys.v * gradient.stride_v + keys.b * gradient.stride_b + keys.head * gradient.stride_head;
    for (int64_t j = 0; j < keys.count; ++j)
      store_row<Type>(tile + j * ld, splat(factor), problem.shape.D,
                      target + (keys.first_key + j) * gradient.stride_row);
  });
}

inline void query_gradient_task(const BackwardParams& params, const Cotangents& cotangents, int64_t task,
                                float* scratch) {
  const Problem& problem = params.problem;
  const RowBlock rows = row_block_of_task(problem.shape, task);
  const int64_t ld = padded_channels(problem.shape);
  BackwardScratch s = carve_backward(scratch);
  load_query_rows(problem, problem.query, rows, s.query);
  load_query_rows(problem, cotangents.d_out, rows, s.d_out);
  fill(s.sum_a, rows.count * ld, 0.0f);
  const BlockRange blocks = visible_key_blocks(problem, rows);
  for (int64_t block = blocks.first; block < blocks.last; ++block) {
    const KeyBlock keys = key_block(problem.shape, rows, block);
    load_keys_and_values(problem, keys, s);
    compute_score_gradients(problem, cotangents, rows, keys, s);
    matmul_accumulate(rows.count, ld, kBlockKeys, {s.d_scores, kBlockKeys, 1}, s.key, ld, s.sum_a, ld);
  }
  store_query_gradient(params, rows, s.sum_a);
}

inline int64_t num_key_blocks(const Shape& shape) { return div_up(shape.S, kBlockKeys); }

inline KeyBlock key_block_of_task(const Shape& shape, int64_t task) {
  const int64_t heads = shape.V * shape.B * shape.K, head = task % heads;
  const int64_t first = task / heads * kBlockKeys;
  return {head / (shape.B * shape.K), head / shape.K % shape.B, head % shape.K, first,
          min(kBlockKeys, shape.S - first)};
}

// Blocks of rows of the key's group whose positions see the block of keys.
inline BlockRange visible_row_blocks(const Problem& problem, const KeyBlock& keys, int64_t group) {
  const int64_t lowest = max(keys.first_key - problem.band.right, 0);
  const int64_t highest = min(keys.first_key + keys.count - 1 + problem.band.left, problem.shape.T - 1);
  return visible_blocks(lowest * group, (highest + 1) * group - 1, problem.shape.T * group, kBlockRows);
}

inline void key_value_gradient_task(const BackwardParams& params, const Cotangents& cotangents, int64_t task,
                                    float* scratch) {
  const Problem& problem = params.problem;
  const int64_t ld = padded_channels(problem.shape), group = problem.shape.group();
  const KeyBlock keys = key_block_of_task(problem.shape, task);
  BackwardScratch s = carve_backward(scratch);
  load_keys_and_values(problem, keys, s);
  fill(s.sum_a, kBlockKeys * ld, 0.0f);
  fill(s.sum_b, kBlockKeys * ld, 0.0f);
  const BlockRange blocks = visible_row_blocks(problem, keys, group);
  for (int64_t block = blocks.first; block < blocks.last; ++block) {
    const int64_t first_row = block * kBlockRows;
    const int64_t count = min(kBlockRows, problem.shape.T * group - first_row);
    const RowBlock rows{keys.v, keys.b, keys.head * group, group, first_row, count};
    load_query_rows(problem, problem.query, rows, s.query);
    load_query_rows(problem, cotangents.d_out, rows, s.d_out);
    compute_score_gradients(problem, cotangents, rows, keys, s);
    matmul_accumulate(keys.count, ld, rows.count, {s.d_scores, 1, kBlockKeys}, s.query, ld, s.sum_a, ld);
    matmul_accumulate(keys.count, ld, rows.count, {s.probs, 1, kBlockKeys}, s.d_out, ld, s.sum_b, ld);
  }
  store_key_gradient(problem, params.d_key, keys, problem.scale, s.sum_a);
  store_key_gradient(problem, params.d_value, keys, 1.0f, s.sum_b);
}

}  // namespace dhp::DHP_ISA
