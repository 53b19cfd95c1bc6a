// Gradient of bias on the CPU: dS summed over every axis along which bias repeats.
//
// One task owns one tile of d_bias (or, where the row or key axis repeats, all tiles along that axis) and
// adds the dS tiles of all batches and heads that share it, in one fixed order.

#pragma once

#include "host/attention_bwd.h"

namespace dhp::DHP_ISA {

struct BiasTask {
  int64_t v, first_b, last_b, first_n, last_n;  // batches and heads to sum over
  BlockRange row_blocks, key_blocks;            // tiles to sum over
};

inline int64_t num_position_blocks(const Shape& shape) { return div_up(shape.T, kBlockRows); }

inline int64_t num_bias_tasks(const BiasBackwardParams& params) {
  const Shape &shape = params.problem.shape, &bias = params.bias_shape;
  const int64_t row_tasks = bias.T == 1 ? 1 : num_position_blocks(shape);
  const int64_t key_tasks = bias.S == 1 ? 1 : num_key_blocks(shape);
  return shape.V * bias.B * bias.N * row_tasks * key_tasks;
}

inline BiasTask bias_task(const BiasBackwardParams& params, int64_t task) {
  const Shape &shape = params.problem.shape, &bias = params.bias_shape;
  auto take = [&task](int64_t size) {
    const int64_t index = task % size;
    task /= size;
    return index;
  };
  auto range = [&take](bool shared, int64_t blocks) {
    if (shared) return BlockRange{0, blocks};
    const int64_t block = take(blocks);
    return BlockRange{block, block + 1};
  };
  BiasTask work;
  work.key_blocks = range(bias.S == 1, num_key_blocks(shape));
  work.row_blocks = range(bias.T == 1, num_position_blocks(shape));
  const int64_t n = take(bias.N), b = take(bias.B);
  work.v = task;
  work.first_n = n;
  work.last_n = bias.N == shape.N ? n + 1 : shape.N;
  work.first_b = b;
  work.last_b = bias.B == shape.B ? b + 1 : shape.B;
  return work;
}

// Adds dS of one batch, head and tile to sum [keys, rows].
inline void add_score_gradient(const Problem& problem, const Cotangents& cotangents, const RowBlock& rows,
                               const KeyBlock& keys, BackwardScratch& s, float* sum) {
  load_rows(problem, cotangents, rows, s);
  load_key_rows(problem, problem.key, keys, s.key);
  load_key_rows(problem, problem.value, keys, s.value);
  compute_score_gradients(problem, rows, keys, s);
  for (int64_t i = 0; i < rows.lanes(); i += kWidth) {
    const IntVec is_row =
        lane_index() < static_cast<int32_t>(rows.count - i);  // a lane past them holds anything
    for (int64_t j = 0; j < keys.count; ++j) {
      float* line = sum + j * kLaneStride + i;
      store(line, load(line) + ct_select(is_row, load(s.d_scores + j * kLaneStride + i), Vec{}));
    }
  }
}

// Adds up what the bias shares: all keys into the first line, all rows into the first of their line.
inline void reduce_shared(const Shape& bias, float* sum) {
  if (bias.S == 1)
    for (int64_t j = 1; j < kBlockKeys; ++j)
      for (int64_t i = 0; i < kBlockRows; i += kWidth)
        store(sum + i, load(sum + i) + load(sum + j * kLaneStride + i));
  if (bias.T == 1)
    for (int64_t j = 0; j < kBlockKeys; ++j) {
      Vec row{};
      for (int64_t i = 0; i < kBlockRows; i += kWidth) row += load(sum + j * kLaneStride + i);
      sum[j * kLaneStride] = sum_lanes(row);
    }
}

inline void store_bias_gradient(const BiasBackwardParams& params, const BiasTask& work, const float* by_row) {
  const Shape& bias = params.bias_shape;
  const int64_t first_t = bias.T == 1 ? 0 : work.row_blocks.first * kBlockRows;
  const int64_t first_s = bias.S == 1 ? 0 : work.key_blocks.first * kBlockKeys;
  const int64_t rows = min(kBlockRows, bias.T - first_t), keys = min(kBlockKeys, bias.S - first_s);
  with_dtype(params.problem.bias_dtype, [&](auto type) {
    using Type = decltype(type);
    auto* target = static_cast<typename Type::Storage*>(params.d_bias.data);
    for (int64_t i = 0; i < rows; ++i)
      store_row<Type>(
          by_row + i * kBlockKeys, keys,
          target + row_offset(params.d_bias, work.v, work.first_b, work.first_n, first_t + i) + first_s);
  });
}

inline void bias_gradient_task(const BiasBackwardParams& params, const Cotangents& cotangents, int64_t task,
                               float* scratch) {
  const Problem& problem = params.problem;
  const Shape& shape = problem.shape;
  const BiasTask work = bias_task(params, task);
  BackwardScratch s = carve_backward(scratch);
  float* sum = s.d_query;  // [keys, rows]; no task of this kernel has a use for d_query
  fill(sum, kScoreTile, 0.0f);
  for (int64_t row_block = work.row_blocks.first; row_block < work.row_blocks.last; ++row_block) {
    const int64_t first = row_block * kBlockRows, count = min(kBlockRows, shape.T - first);
    const BlockRange visible = visible_key_blocks(problem, {work.v, 0, 0, 1, first, count});
    const int64_t last = min(work.key_blocks.last, visible.last);
    for (int64_t block = max(work.key_blocks.first, visible.first); block < last; ++block)
      for (int64_t b = work.first_b; b < work.last_b; ++b)
        for (int64_t n = work.first_n; n < work.last_n; ++n) {
          const RowBlock rows{work.v, b, n, 1, first, count};
          add_score_gradient(problem, cotangents, rows, key_block(shape, rows, block), s, sum);
        }
  }
  reduce_shared(params.bias_shape, sum);
  transpose(kBlockKeys, kBlockRows, sum, kLaneStride, s.score.by_row, kBlockKeys);
  store_bias_gradient(params, work, s.score.by_row);
}

}  // namespace dhp::DHP_ISA
