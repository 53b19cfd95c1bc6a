// Forward attention on the CPU: one task is one block of query rows against every key block its band allows.
//
// Online softmax: for each row the running maximum m, the running sum l of exp(score - m), and the
// unnormalised output o. Every block rescales o and l, also when m did not move: skipping that would show
// which block holds the largest score. m starts finite, so a block in which no key takes part yields
// exp(-inf) = 0 and needs no test. Rows lie along the lanes, so all of this is arithmetic lane by lane.

#pragma once

#include "host/score.h"

namespace dhp::DHP_ISA {

struct SoftmaxState {
  float *max, *sum;  // [kBlockRows]
  float* scale;      // [kBlockRows]; what the last block multiplies sum and out by
  float* out;        // by channel, [D, kLaneStride]
};

struct ForwardScratch {
  float *by_row, *query, *key, *scores;
  ScoreScratch score;
  SoftmaxState state;
};

// Hands out one scratch buffer piece by piece.
struct Carver {
  float* next;
  float* take(int64_t floats) { return (next += floats) - floats; }
};

constexpr int64_t kRowTile = kBlockRows * kMaxChannels;       // by row
constexpr int64_t kKeyTile = kBlockKeys * kMaxChannels;       // by row
constexpr int64_t kChannelTile = kMaxChannels * kLaneStride;  // by channel
constexpr int64_t kScoreTile = kBlockKeys * kLaneStride;
constexpr int64_t kScoreScratch = 3 * kBlockRows + kBlockRows * kBlockKeys + kScoreTile;

inline constexpr int64_t forward_scratch_floats() {
  return kRowTile + 2 * kChannelTile + kKeyTile + kScoreTile + kScoreScratch + 3 * kBlockRows;
}

inline ScoreScratch carve_score(Carver& carver) {
  ScoreScratch s;
  s.first_key = carver.take(kBlockRows);
  s.last_key = carver.take(kBlockRows);
  s.valid = carver.take(kBlockRows);
  s.by_row = carver.take(kBlockRows * kBlockKeys);
  s.by_lane = carver.take(kScoreTile);
  return s;
}

inline ForwardScratch carve_forward(float* scratch) {
  Carver carver{scratch};
  ForwardScratch s;
  s.by_row = carver.take(kRowTile);
  s.query = carver.take(kChannelTile);
  s.key = carver.take(kKeyTile);
  s.scores = carver.take(kScoreTile);
  s.score = carve_score(carver);
  s.state = {carver.take(kBlockRows), carver.take(kBlockRows), carver.take(kBlockRows),
             carver.take(kChannelTile)};
  return s;
}

// scores -> exp(score - max), in place, for kVectors vectors of rows.
template <int kVectors>
inline void fold_lanes(int64_t keys, float* scores, float* max, float* sum, float* scale) {
  Vec best[kVectors], total[kVectors];
  for (int v = 0; v < kVectors; ++v) best[v] = load(max + v * kWidth);
  for (int64_t j = 0; j < keys; ++j)
    for (int v = 0; v < kVectors; ++v) best[v] = ct_max(load(scores + j * kLaneStride + v * kWidth), best[v]);
  for (int v = 0; v < kVectors; ++v) {
    const Vec factor = ct_exp(load(max + v * kWidth) - best[v]);
    total[v] = load(sum + v * kWidth) * factor;
    store(scale + v * kWidth, factor);
    store(max + v * kWidth, best[v]);
  }
  for (int64_t j = 0; j < keys; ++j)
    for (int v = 0; v < kVectors; ++v) {
      float* score = scores + j * kLaneStride + v * kWidth;
      const Vec p = ct_exp(load(score) - best[v]);
      store(score, p);
      total[v] += p;
    }
  for (int v = 0; v < kVectors; ++v) store(sum + v * kWidth, total[v]);
}

inline void fold_scores(int64_t keys, int64_t lanes, float* scores, SoftmaxState& state) {
  int64_t i = 0;
  for (; i + kTileVectors * kWidth <= lanes; i += kTileVectors * kWidth)
    fold_lanes<kTileVectors>(keys, scores + i, state.max + i, state.sum + i, state.scale + i);
  for (; i < lanes; i += kWidth)
    fold_lanes<1>(keys, scores + i, state.max + i, state.sum + i, state.scale + i);
}

inline void rescale_out(int64_t lanes, int64_t channels, SoftmaxState& state) {
  for (int64_t d = 0; d < channels; ++d)
    for (int64_t i = 0; i < lanes; i += kWidth) {
      float* out = state.out + d * kLaneStride + i;
      store(out, load(out) * load(state.scale + i));
    }
}

// max, sum -> log of the sum and out / sum; a row in which no key takes part has sum 0 and gets -inf and 0.
inline void normalise(int64_t lanes, int64_t channels, SoftmaxState& state) {
  for (int64_t i = 0; i < lanes; i += kWidth) {
    const Vec sum = load(state.sum + i);
    const IntVec empty = ct_equal(sum, Vec{});
    const Vec factor = ct_select(empty, Vec{}, ct_reciprocal(sum));
    store(state.sum + i, ct_select(empty, splat(-kInfinity), ct_log(sum)));
    for (int64_t d = 0; d < channels; ++d) {
      float* value = state.out + d * kLaneStride + i;
      store(value, ct_select(empty, Vec{}, load(value)) * factor);
    }
  }
}

// Rows of out or of d_query, by channel, to memory; `by_row` is scratch.
inline void store_query_rows(const Problem& problem, const OutRows& target, const RowBlock& rows,
                             const float* by_channel, float* by_row) {
  const int64_t ld = padded_channels(problem.shape);
  transpose(ld, rows.lanes(), by_channel, kLaneStride, by_row, ld);
  with_dtype(problem.dtype, [&](auto type) {
    using Type = decltype(type);
    auto* data = static_cast<typename Type::Storage*>(target.data);
    data += rows.v * target.stride_v + rows.b * target.stride_b;
    for (int64_t i = 0; i < rows.count; ++i)
      store_row<Type>(by_row + i * ld, problem.shape.D,
                      data + rows.position(i) * target.stride_row + rows.head(i) * target.stride_head);
  });
}

// Task numbers run from the last row block to the first: under a causal band the longest tasks start first.
inline RowBlock row_block_of_task(const Shape& shape, int64_t task) {
  const int64_t heads = num_heads(shape);
  const int64_t block = num_row_blocks(shape) - 1 - task / heads, head = task % heads;
  const int64_t first_row = block * kBlockRows, num_rows = shape.T * shape.group();
  return {head / (shape.B * shape.K),
          head / shape.K % shape.B,
          head % shape.K * shape.group(),
          shape.group(),
          first_row,
          min(kBlockRows, num_rows - first_row)};
}

inline void clear_statistics(int64_t lanes, SoftmaxState& state) {
  fill(state.max, lanes, kLowest);
  fill(state.sum, lanes, 0.0f);
}

// Folds the key blocks of a range into the state of a block of rows.
inline void fold_key_blocks(const Problem& problem, const RowBlock& rows, const BlockRange& blocks,
                            ForwardScratch& s) {
  const int64_t ld = padded_channels(problem.shape), channels = problem.shape.D, lanes = rows.lanes();
  load_row_tests(problem, rows, s.score);
  load_query_rows(problem, problem.query, rows, s.by_row);
  transpose(lanes, ld, s.by_row, ld, s.query, kLaneStride);
  clear_statistics(lanes, s.state);
  fill(s.state.out, ld * kLaneStride, 0.0f);
  for (int64_t block = blocks.first; block < blocks.last; ++block) {
    const KeyBlock keys = key_block(problem.shape, rows, block);
    load_key_rows(problem, problem.key, keys, s.key);
    compute_scores(problem, rows, keys, s.query, s.key, s.score, s.scores);
    fold_scores(keys.count, lanes, s.scores, s.state);
    rescale_out(lanes, channels, s.state);
    load_key_rows(problem, problem.value, keys, s.key);
    matmul<Start::kAccumulate>(channels, lanes, keys.count, {s.key, 1, ld}, s.scores, kLaneStride,
                               s.state.out, kLaneStride);
  }
}

// The state of a block of rows that has seen all its keys, to memory.
inline void store_forward(const ForwardParams& params, const RowBlock& rows, ForwardScratch& s) {
  const Problem& problem = params.problem;
  normalise(rows.lanes(), problem.shape.D, s.state);
  store_query_rows(problem, params.out, rows, s.state.out, s.by_row);
  for (int64_t i = 0; i < rows.count; ++i) {
    const int64_t index = rows.statistic_index(problem.shape, i);
    params.row_max[index] = s.state.max[i];
    params.log_sum[index] = s.state.sum[i];
  }
}

inline void attention_fwd_task(const ForwardParams& params, int64_t task, float* scratch) {
  const RowBlock rows = row_block_of_task(params.problem.shape, task);
  ForwardScratch s = carve_forward(scratch);
  fold_key_blocks(params.problem, rows, visible_key_blocks(params.problem, rows), s);
  store_forward(params, rows, s);
}

}  // namespace dhp::DHP_ISA
