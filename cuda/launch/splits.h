// Into how many parts the keys of a call with few query tokens are split, so that it fills a GPU.
//
// Follows from sizes alone: from no GPU, since a program is lowered before it is known where it will run, and
// from no length, which is secret.

#pragma once

#include <algorithm>
#include <cstdint>

#include "params.h"

namespace dhp {

inline constexpr int64_t kDecodeTokens = 16;  // T, at most
inline constexpr int64_t kDecodeRows = 16;    // of a block: query tokens times the heads of a group

// Whether attention_fwd_decode_sm90 is for such sizes.
inline bool is_decode(const Shape& shape, bool has_16_bits) {
  return has_16_bits && shape.T <= kDecodeTokens && shape.S > 0 && shape.K > 0;
}

// Blocks that share a key/value head, each with other query rows.
inline int64_t decode_row_blocks(const Shape& shape) {
  return (shape.T * shape.group() + kDecodeRows - 1) / kDecodeRows;
}

// The number that takes least time. A GPU of kBlocks blocks at a time works in rounds; a block takes as long
// as its keys, in steps, and one step more to begin and to end; joining the parts takes half a step. Beyond
// four rounds there is little to gain, and much to join. But where blocks for one part each would do, and
// parts stay long in ten rounds, ten are faster: memory serves some multiprocessors better than others, and
// those then take more of the blocks.
inline int64_t decode_splits(const Shape& shape) {
  constexpr int64_t kBlocks = 132, kStepKeys = 128, kMostRounds = 4, kEvenRounds = 10, kLongSteps = 40;
  const auto divide_up = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const int64_t units = std::max<int64_t>(shape.V * shape.B * shape.K * decode_row_blocks(shape), 1);
  const int64_t steps = divide_up(shape.S, kStepKeys);
  int64_t best = 1, least = INT64_MAX;
  const int64_t most = std::min(steps, kMostRounds * kBlocks / units);
  for (int64_t splits = 1; splits <= most; ++splits) {
    const int64_t half_steps =
        2 * divide_up(units * splits, kBlocks) * (divide_up(steps, splits) + 1) + (splits > 1);
    if (half_steps < least) best = splits, least = half_steps;
  }
  const int64_t even = divide_up(kEvenRounds * kBlocks, units);
  return best == 1 && steps >= even * kLongSteps ? even : best;
}

// Elements of the workspace: for each part and query row, its share of the output, its largest score and its
// sum.
inline int64_t decode_workspace(const Shape& shape) {
  const int64_t splits = decode_splits(shape);
  return splits == 1 ? 0 : splits * shape.V * shape.B * shape.T * shape.N * (shape.D + 2);
}

}  // namespace dhp
