// Backward attention on the CPU: one task is one block of query rows against every key block its band allows.
//
// With P = exp(score - log-sum-exp), dP = d_out . value and dS = P (dP - delta), a task adds
//
//   d_query = scale * dS key       to its own rows, which no other task touches
//   d_key   = scale * dS^T query   to the keys it sees, in its turn (turns.h): one key block is summed over
//   d_value = P^T d_out            its row blocks from the last to the first, whoever computes them
//
// delta, the sum over D of d_out * out less the cotangent of the log-sum-exp, is computed first. Every sum
// has one order, so the bits do not depend on the number of threads.

#pragma once

#include "host/attention_fwd.h"
#include "host/kernels.h"
#include "host/turns.h"

namespace dhp::DHP_ISA {

// What every backward kernel reads.
struct Cotangents {
  InRows out, d_out;
  const float *row_max, *log_sum, *d_lse;
  float* delta;  // [V, B, T, N]
};

struct BackwardScratch {
  float *query, *d_out;                                  // by row
  float *query_by_channel, *d_out_by_channel, *d_query;  // by channel
  float *key, *value;                                    // by row
  float *probs, *d_scores;                               // [keys, rows]
  float *row_max, *log_sum, *delta;                      // [kBlockRows]
  ScoreScratch score;
};

inline constexpr int64_t backward_scratch_floats() {
  return 2 * kRowTile + 3 * kChannelTile + 2 * kKeyTile + 2 * kScoreTile + 3 * kBlockRows + kScoreScratch;
}

inline BackwardScratch carve_backward(float* scratch) {
  Carver carver{scratch};
  BackwardScratch s;
  s.query = carver.take(kRowTile);
  s.d_out = carver.take(kRowTile);
  s.query_by_channel = carver.take(kChannelTile);
  s.d_out_by_channel = carver.take(kChannelTile);
  s.d_query = carver.take(kChannelTile);
  s.key = carver.take(kKeyTile);
  s.value = carver.take(kKeyTile);
  s.probs = carver.take(kScoreTile);
  s.d_scores = carver.take(kScoreTile);
  s.row_max = carver.take(kBlockRows);
  s.log_sum = carver.take(kBlockRows);
  s.delta = carver.take(kBlockRows);
  s.score = carve_score(carver);
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

// Everything about a block of rows that a tile needs: query and d_out in both layouts, and the statistics.
inline void load_rows(const Problem& problem, const Cotangents& cotangents, const RowBlock& rows,
                      BackwardScratch& s) {
  const int64_t ld = padded_channels(problem.shape), lanes = rows.lanes();
  load_row_tests(problem, rows, s.score);
  load_query_rows(problem, problem.query, rows, s.query);
  load_query_rows(problem, cotangents.d_out, rows, s.d_out);
  transpose(lanes, ld, s.query, ld, s.query_by_channel, kLaneStride);
  transpose(lanes, ld, s.d_out, ld, s.d_out_by_channel, kLaneStride);
  for (int64_t i = 0; i < lanes; ++i) {
    const int64_t index = rows.statistic_index(problem.shape, min(i, rows.count - 1));
    s.row_max[i] = cotangents.row_max[index];
    s.log_sum[i] = cotangents.log_sum[index];
    s.delta[i] = cotangents.delta[index];
  }
  for (int64_t i = 0; i < lanes; i += kWidth) {  // an empty row: P = exp(-inf) = 0
    const Vec log_sum = load(s.log_sum + i);
    store(s.log_sum + i, ct_select(ct_equal(log_sum, splat(-kInfinity)), splat(kInfinity), log_sum));
  }
}

// probs = P and d_scores = dS, both [keys, rows], of the rows and keys in scratch.
inline void compute_score_gradients(const Problem& problem, const RowBlock& rows, const KeyBlock& keys,
                                    BackwardScratch& s) {
  const int64_t ld = padded_channels(problem.shape), lanes = rows.lanes();
  compute_scores(problem, rows, keys, s.query_by_channel, s.key, s.score, s.probs);
  matmul<Start::kZero>(keys.count, lanes, problem.shape.D, {s.value, ld, 1}, s.d_out_by_channel, kLaneStride,
                       s.d_scores, kLaneStride);
  for (int64_t j = 0; j < keys.count; ++j)
    for (int64_t i = 0; i < lanes; i += kWidth) {
      float *prob = s.probs + j * kLaneStride + i, *d_score = s.d_scores + j * kLaneStride + i;
      const Vec score = load(prob), exponent = (score - load(s.row_max + i)) - load(s.log_sum + i);
      const Vec p =
          ct_exp(ct_select(ct_less(Vec{}, exponent), Vec{}, exponent));  // rounding may lift P above 1
      store(prob, p);
      const Vec gradient = p * (load(d_score) - load(s.delta + i));
      store(d_score, ct_select(ct_equal(score, splat(-kInfinity)), Vec{}, gradient));
    }
}

// Sums of the gradients of key and value, float32, shared by all tasks of a call.
struct KeySums {
  float *d_key, *d_value;  // by row, [V, B, K, S, Dp]
};

inline int64_t key_sum_floats(const Shape& shape) {
  return num_heads(shape) * 2 * shape.S * padded_channels(shape);
}

inline KeySums carve_key_sums(const Shape& shape, float* workspace) {
  const int64_t floats = num_heads(shape) * shape.S * padded_channels(shape);
  return {workspace, workspace + floats};
}

// Turns: [V, B, K, key blocks].
inline int64_t num_turns(const Shape& shape) { return num_heads(shape) * num_key_blocks(shape); }

// Adds P^T d_out and dS^T query of one tile to the sums over row blocks.
template <Start kStart>
inline void add_to_keys(const RowBlock& rows, const KeyBlock& keys, int64_t ld, const BackwardScratch& s,
                        float* d_key, float* d_value) {
  matmul<kStart>(keys.count, ld, rows.count, {s.probs, kLaneStride, 1}, s.d_out, ld, d_value, ld);
  matmul<kStart>(keys.count, ld, rows.count, {s.d_scores, kLaneStride, 1}, s.query, ld, d_key, ld);
}

inline void add_to_keys_in_turn(const Problem& problem, const RowBlock& rows, const KeyBlock& keys,
                                const BackwardScratch& s, const KeySums& sums, int32_t* turns) {
  const Shape& shape = problem.shape;
  const int64_t ld = padded_channels(shape), head = (keys.v * shape.B + keys.b) * shape.K + keys.head;
  const int64_t first_float = (head * shape.S + keys.first_key) * ld;
  float *d_key = sums.d_key + first_float, *d_value = sums.d_value + first_float;
  int32_t* turn = turns + head * num_key_blocks(shape) + keys.first_key / kBlockKeys;
  const int64_t last_row_block = visible_row_blocks(problem, keys).last - 1;
  const int32_t mine = static_cast<int32_t>(last_row_block - rows.first_row / kBlockRows);
  await_turn(turn, mine);
  if (mine == 0)
    add_to_keys<Start::kZero>(rows, keys, ld, s, d_key, d_value);
  else
    add_to_keys<Start::kAccumulate>(rows, keys, ld, s, d_key, d_value);
  end_turn(turn, mine);
}

inline void attention_bwd_task(const BackwardParams& params, const Cotangents& cotangents, int64_t task,
                               const TaskMemory& memory) {
  const Problem& problem = params.problem;
  const RowBlock rows = row_block_of_task(problem.shape, task);
  const int64_t ld = padded_channels(problem.shape), channels = problem.shape.D;
  const KeySums sums = carve_key_sums(problem.shape, memory.workspace);
  BackwardScratch s = carve_backward(memory.scratch);
  load_rows(problem, cotangents, rows, s);
  fill(s.d_query, ld * kLaneStride, 0.0f);
  const BlockRange blocks = visible_key_blocks(problem, rows);
  for (int64_t block = blocks.first; block < blocks.last; ++block) {
    const KeyBlock keys = key_block(problem.shape, rows, block);
    load_key_rows(problem, problem.key, keys, s.key);
    load_key_rows(problem, problem.value, keys, s.value);
    compute_score_gradients(problem, rows, keys, s);
    matmul<Start::kAccumulate>(channels, rows.lanes(), keys.count, {s.key, 1, ld}, s.d_scores, kLaneStride,
                               s.d_query, kLaneStride);
    add_to_keys_in_turn(problem, rows, keys, s, sums, memory.turns);
  }
  for (int64_t i = 0; i < channels * kLaneStride; i += kWidth)
    store(s.d_query + i, load(s.d_query + i) * problem.scale);
  store_query_rows(problem, params.d_query, rows, s.d_query, s.query);
}

inline KeyBlock key_block_of_task(const Shape& shape, int64_t task) {
  const int64_t heads = num_heads(shape), head = task % heads;
  const int64_t first = task / heads * kBlockKeys;
  return {head / (shape.B * shape.K), head / shape.K % shape.B, head % shape.K, first,
          min(kBlockKeys, shape.S - first)};
}

inline void store_key_rows(const Problem& problem, const OutRows& target, const KeyBlock& keys,
                           const float* tile) {
  const int64_t ld = padded_channels(problem.shape);
  with_dtype(problem.dtype, [&](auto type) {
    using Type = decltype(type);
    auto* data = static_cast<typename Type::Storage*>(target.data);
    data += keys.v * target.stride_v + keys.b * target.stride_b + keys.head * target.stride_head;
    for (int64_t j = 0; j < keys.count; ++j)
      store_row<Type>(tile + j * ld, problem.shape.D, data + (keys.first_key + j) * target.stride_row);
  });
}

// One task is one block of keys, after all rows have added to it.
inline void store_key_gradients_task(const BackwardParams& params, int64_t task, float* workspace) {
  const Problem& problem = params.problem;
  const Shape& shape = problem.shape;
  const KeyBlock keys = key_block_of_task(shape, task);
  const int64_t ld = padded_channels(shape), head = (keys.v * shape.B + keys.b) * shape.K + keys.head;
  const int64_t first_float = (head * shape.S + keys.first_key) * ld;
  const KeySums sums = carve_key_sums(shape, workspace);
  float *d_key = sums.d_key + first_float, *d_value = sums.d_value + first_float;
  const BlockRange seen_by = visible_row_blocks(problem, keys);
  if (seen_by.first == seen_by.last) {
    fill(d_key, keys.count * ld, 0.0f);
    fill(d_value, keys.count * ld, 0.0f);
  }
  for (int64_t i = 0; i < keys.count * ld; i += kWidth) store(d_key + i, load(d_key + i) * problem.scale);
  store_key_rows(problem, params.d_key, keys, d_key);
  store_key_rows(problem, params.d_value, keys, d_value);
}

}  // namespace dhp::DHP_ISA
