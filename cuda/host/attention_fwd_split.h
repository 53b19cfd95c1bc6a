// Forward attention for few query rows: a token at a time against a key/value cache.
//
// Few rows would leave most lanes of attention_fwd.h idle, so both products have channels or keys along the
// lanes here, and only the softmax has rows there. The keys are split by S alone: a first task folds one
// split of one head into a partial softmax state, a second merges the states of a head in order. Tasks of
// neighbouring numbers read neighbouring memory: the heads of one split lie side by side, so few pages are in
// use at a time.

#pragma once

#include "host/attention_fwd.h"
#include "host/kernels.h"

namespace dhp::DHP_ISA {

constexpr int64_t kFewRows = 8;      // of one key/value head
constexpr int64_t kFewLanes = 16;    // that hold them; a multiple of kWidth
constexpr int64_t kSplitBlocks = 8;  // key blocks in a split
static_assert(kFewRows <= kFewLanes && kFewLanes % kWidth == 0);

inline bool has_few_rows(const Shape& shape) { return shape.T * shape.group() <= kFewRows; }
inline int64_t num_splits(const Shape& shape) { return div_up(num_key_blocks(shape), kSplitBlocks); }

struct SplitScratch {
  float *key_by_channel, *scores_by_row, *out_by_row;
};

inline constexpr int64_t split_scratch_floats() {
  return forward_scratch_floats() + kMaxChannels * (kBlockKeys + kFewLanes) + kFewLanes * kBlockKeys;
}

inline SplitScratch carve_split(float* scratch) {
  Carver carver{scratch + forward_scratch_floats()};
  return {carver.take(kMaxChannels * kBlockKeys), carver.take(kFewLanes * kBlockKeys),
          carver.take(kFewLanes * kMaxChannels)};
}

// s.scores [keys, rows] = finished scores of a block; query and key by row.
inline void compute_few_scores(const Problem& problem, const RowBlock& rows, const KeyBlock& keys,
                               ForwardScratch& s, SplitScratch& few) {
  const int64_t ld = padded_channels(problem.shape), whole_keys = whole_vectors(keys.count);
  transpose(whole_keys, ld, s.key, ld, few.key_by_channel, kBlockKeys);
  matmul<Start::kZero>(rows.count, whole_keys, problem.shape.D, {s.by_row, ld, 1}, few.key_by_channel,
                       kBlockKeys, few.scores_by_row, kBlockKeys);
  transpose(rows.lanes(), whole_keys, few.scores_by_row, kBlockKeys, s.scores, kLaneStride);
  finish_scores(problem, rows, keys, s.score, s.scores);
}

// As fold_key_blocks, for few rows.
inline void fold_key_blocks_few(const Problem& problem, const RowBlock& rows, const BlockRange& blocks,
                                ForwardScratch& s, SplitScratch& few) {
  const int64_t ld = padded_channels(problem.shape), lanes = rows.lanes();
  load_row_tests(problem, rows, s.score);
  load_query_rows(problem, problem.query, rows, s.by_row);
  clear_statistics(lanes, s.state);
  fill(few.out_by_row, lanes * ld, 0.0f);
  for (int64_t block = blocks.first; block < blocks.last; ++block) {
    const KeyBlock keys = key_block(problem.shape, rows, block);
    load_key_rows(problem, problem.key, keys, s.key);
    compute_few_scores(problem, rows, keys, s, few);
    fold_scores(keys.count, lanes, s.scores, s.state);
    for (int64_t i = 0; i < rows.count; ++i)
      for (int64_t d = i * ld; d < (i + 1) * ld; d += kWidth)
        store(few.out_by_row + d, load(few.out_by_row + d) * s.state.scale[i]);
    load_key_rows(problem, problem.value, keys, s.key);
    matmul<Start::kAccumulate>(rows.count, ld, keys.count, {s.scores, 1, kLaneStride}, s.key, ld,
                               few.out_by_row, ld);
  }
  transpose(lanes, ld, few.out_by_row, ld, s.state.out, kLaneStride);
}

// One partial state in the workspace: max and sum [kFewLanes], out [Dp, kFewLanes].
inline int64_t partial_floats(const Shape& shape) { return (2 + padded_channels(shape)) * kFewLanes; }
inline int64_t split_workspace_floats(const Shape& shape) {
  return num_heads(shape) * num_splits(shape) * partial_floats(shape);
}

inline void attention_fwd_split_task(const ForwardParams& params, int64_t task, const TaskMemory& memory) {
  const Problem& problem = params.problem;
  const Shape& shape = problem.shape;
  const int64_t head = task % num_heads(shape), split = task / num_heads(shape);
  const RowBlock rows = row_block_of_task(shape, head);
  const BlockRange seen = visible_key_blocks(problem, rows);
  const BlockRange blocks{max(seen.first, split * kSplitBlocks), min(seen.last, (split + 1) * kSplitBlocks)};
  ForwardScratch s = carve_forward(memory.scratch);
  SplitScratch few = carve_split(memory.scratch);
  fold_key_blocks_few(problem, rows, blocks, s, few);
  float* partial = memory.workspace + (head * num_splits(shape) + split) * partial_floats(shape);
  for (int64_t i = 0; i < rows.lanes(); i += kWidth) {
    store(partial + i, load(s.state.max + i));
    store(partial + kFewLanes + i, load(s.state.sum + i));
    for (int64_t d = 0; d < shape.D; ++d)
      store(partial + (2 + d) * kFewLanes + i, load(s.state.out + d * kLaneStride + i));
  }
}

// Folds one partial state into another: both are brought to the larger maximum. Where neither has a key, both
// factors are exp(0), and the sums stay 0.
inline void merge_partial(const float* partial, int64_t lanes, int64_t channels, SoftmaxState& state) {
  for (int64_t i = 0; i < lanes; i += kWidth) {
    const Vec old_max = load(state.max + i), other_max = load(partial + i), best = ct_max(other_max, old_max);
    const Vec scale = ct_exp(old_max - best), other_scale = ct_exp(other_max - best);
    store(state.max + i, best);
    store(state.sum + i, load(state.sum + i) * scale + load(partial + kFewLanes + i) * other_scale);
    for (int64_t d = 0; d < channels; ++d) {
      float* out = state.out + d * kLaneStride + i;
      store(out, load(out) * scale + load(partial + (2 + d) * kFewLanes + i) * other_scale);
    }
  }
}

inline void attention_fwd_merge_task(const ForwardParams& params, int64_t task, const TaskMemory& memory) {
  const Shape& shape = params.problem.shape;
  const RowBlock rows = row_block_of_task(shape, task);
  ForwardScratch s = carve_forward(memory.scratch);
  clear_statistics(rows.lanes(), s.state);
  fill(s.state.out, padded_channels(shape) * kLaneStride, 0.0f);
  for (int64_t split = 0; split < num_splits(shape); ++split)
    merge_partial(memory.workspace + (task * num_splits(shape) + split) * partial_floats(shape), rows.lanes(),
                  shape.D, s.state);
  store_forward(params, rows, s);
}

}  // namespace dhp::DHP_ISA
