// Forward attention on the CPU: one task is one block of query rows against every key block its band allows.
//
// Online softmax: for each row the running maximum m, the running sum l of exp(score - m), and the
// unnormalised output o. Every block rescales o and l, also when m did not move: skipping that would show
// which block holds the largest score. m starts finite, so a block in which no key takes part yields
// exp(-inf) = 0 and needs no test.

#pragma once

#include "host/score.h"

namespace dhp::DHP_ISA {

struct SoftmaxState {
  float* max;    // [kBlockRows]
  float* scale;  // [kBlockRows] what the last block multiplies o and l by
  float* sum;    // [kBlockRows, kWidth] partial sums, one for each lane; added up once at the end
  float* out;    // [kBlockRows, Dp]
};

struct ForwardScratch {
  float *query, *key, *key_transposed, *scores, *new_max;
  SoftmaxState state;
};

inline constexpr int64_t forward_scratch_floats() {
  return kMaxChannels * (2 * kBlockRows + 2 * kBlockKeys) + kBlockRows * (kBlockKeys + kWidth + 3);
}

inline ForwardScratch carve_forward(float* scratch) {
  ForwardScratch s;
  auto take = [&](int64_t floats) { return (scratch += floats) - floats; };
  s.query = take(kBlockRows * kMaxChannels);
  s.key = take(kBlockKeys * kMaxChannels);
  s.key_transposed = take(kBlockKeys * kMaxChannels);
  s.scores = take(kBlockRows * kBlockKeys);
  s.new_max = take(kBlockRows);
  s.state.max = take(kBlockRows);
  s.state.scale = take(kBlockRows);
  s.state.sum = take(kBlockRows * kWidth);
  s.state.out = take(kBlockRows * kMaxChannels);
  return s;
}

// The largest lane, in every lane.
inline Vec spread_max(Vec value) {
  for (int step = kWidth / 2; step > 0; step /= 2) {
    Vec other;
    for (int i = 0; i < kWidth; ++i) other[i] = value[i ^ step];
    value = ct_max(other, value);
  }
  return value;
}

inline void update_max(int64_t count, const float* scores, float* new_max, SoftmaxState& state) {
  for (int64_t i = 0; i < count; ++i) {
    Vec best = splat(state.max[i]);
    for (int64_t j = 0; j < kBlockKeys; j += kWidth) best = ct_max(load(scores + i * kBlockKeys + j), best);
    new_max[i] = spread_max(best)[0];
  }
  for (int64_t i = 0; i < kBlockRows; i += kWidth) {
    store(state.scale + i, ct_exp(load(state.max + i) - load(new_max + i)));
    store(state.max + i, load(new_max + i));
  }
}

// scores -> exp(score - max), in place; rescales what came before.
inline void fold_scores(int64_t count, int64_t ld, float* scores, float* new_max, SoftmaxState& state) {
  update_max(count, scores, new_max, state);
  for (int64_t i = 0; i < count; ++i) {
    const Vec row_max = splat(state.max[i]), row_scale = splat(state.scale[i]);
    Vec sum = load(state.sum + i * kWidth) * row_scale;
    for (int64_t j = 0; j < kBlockKeys; j += kWidth) {
      const Vec p = ct_exp(load(scores + i * kBlockKeys + j) - row_max);
      store(scores + i * kBlockKeys + j, p);
      sum += p;
    }
    store(state.sum + i * kWidth, sum);
    float* out = state.out + i * ld;
    for (int64_t d = 0; d < ld; d += kWidth) store(out + d, load(out + d) * row_scale);
  }
}

// out = o / l; a row in which no key takes part has l = 0 and gets out 0 and log-sum -inf.
inline void store_result(const ForwardParams& params, const RowBlock& rows, const SoftmaxState& state) {
  const Problem& problem = params.problem;
  const int64_t channels = problem.shape.D, ld = padded_channels(problem.shape);
  with_dtype(problem.dtype, [&](auto type) {
    using Type = decltype(type);
    auto* out = static_cast<typename Type::Storage*>(params.out.data);
    out += rows.v * params.out.stride_v + rows.b * params.out.stride_b;
    for (int64_t i = 0; i < rows.count; ++i) {
      const Vec sum = splat(sum_lanes(load(state.sum + i * kWidth)));
      const IntVec empty = sum == Vec{};
      float* row = state.out + i * ld;
      for (int64_t d = 0; d < ld; d += kWidth) store(row + d, ct_select(empty, Vec{}, load(row + d)));
      store_row<Type>(row, ct_select(empty, Vec{}, ct_reciprocal(sum)), channels,
                      out + rows.position(i) * params.out.stride_row + rows.head(i) * params.out.stride_head);
      const int64_t index = rows.statistic_index(problem.shape, i);
      params.row_max[index] = state.max[i];
      params.log_sum[index] = ct_select(empty, splat(-kInfinity), ct_log(sum))[0];
    }
  });
}

inline int64_t num_row_blocks(const Shape& shape) { return div_up(shape.T * shape.group(), kBlockRows); }

// Task numbers run from the last row block to the first: under a causal band the longest tasks start first.
inline RowBlock row_block_of_task(const Shape& shape, int64_t task) {
  const int64_t heads = shape.V * shape.B * shape.K;
  const int64_t block = num_row_blocks(shape) - 1 - task / heads, head = task % heads;
  const int64_t first_row = block * kBlockRows, num_rows = shape.T * shape.group();
  return {head / (shape.B * shape.K),
          head / shape.K % shape.B,
          head % shape.K * shape.group(),
          shape.group(),
          first_row,
          min(kBlockRows, num_rows - first_row)};
}

inline void attention_fwd_task(const ForwardParams& params, int64_t task, float* scratch) {
  const Problem& problem = params.problem;
  const RowBlock rows = row_block_of_task(problem.shape, task);
  const int64_t ld = padded_channels(problem.shape);
  ForwardScratch s = carve_forward(scratch);
  load_query_rows(problem, problem.query, rows, s.query);
  fill(s.state.max, kBlockRows, kLowest);
  fill(s.new_max, kBlockRows, kLowest);
  fill(s.state.sum, kBlockRows * kWidth, 0.0f);
  fill(s.state.out, kBlockRows * ld, 0.0f);
  const BlockRange blocks = visible_key_blocks(problem, rows);
  for (int64_t block = blocks.first; block < blocks.last; ++block) {
    const KeyBlock keys = key_block(problem.shape, rows, block);
    load_key_rows(problem, problem.key, keys, s.key);
    transpose(s.key, ld, s.key_transposed);
    compute_scores(problem, rows, keys, s.query, s.key_transposed, s.scores);
    fold_scores(rows.count, ld, s.scores, s.new_max, s.state);
    load_key_rows(problem, problem.value, keys, s.key);
    matmul_accumulate(rows.count, ld, kBlockKeys, {s.scores, kBlockKeys, 1}, s.key, ld, s.state.out, ld);
  }
  store_result(params, rows, s.state);
}

}  // namespace dhp::DHP_ISA
