// Tiles of query and key rows as float32 in scratch memory, and the blocks of rows and keys they come from.
//
// The query rows of one key/value head are numbered r = t * group + (query head within the group), so that
// the heads that share keys share the work of loading them, and a block of rows covers neighbouring
// positions.

#pragma once

#include "host/convert.h"

namespace dhp::DHP_ISA {

constexpr int64_t kBlockRows = 96;  // a multiple of kTileRows
constexpr int64_t kBlockKeys = 64;  // a multiple of kTileVectors * kWidth for every instruction set
constexpr int64_t kMaxChannels = 256;

inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t padded_channels(const Shape& shape) { return div_up(shape.D, kWidth) * kWidth; }

struct RowBlock {
  int64_t v, b;
  int64_t first_head, group;  // row r: query position r / group, query head first_head + r % group
  int64_t first_row, count;

  int64_t position(int64_t i) const { return (first_row + i) / group; }
  int64_t head(int64_t i) const { return first_head + (first_row + i) % group; }
  int64_t first_position() const { return position(0); }
  int64_t last_position() const { return position(count - 1); }
  int64_t statistic_index(const Shape& shape, int64_t i) const {  // into [V, B, T, N]
    return ((v * shape.B + b) * shape.T + position(i)) * shape.N + head(i);
  }
};

struct KeyBlock {
  int64_t v, b, head;
  int64_t first_key, count;
};

// Blocks [first, last) that the band lets a range of positions see.
struct BlockRange {
  int64_t first, last;
};
inline BlockRange visible_blocks(int64_t lowest, int64_t highest, int64_t size, int64_t block) {
  lowest = max(lowest, 0);
  highest = min(highest, size - 1);
  if (lowest > highest) return {0, 0};
  return {lowest / block, highest / block + 1};
}
inline BlockRange visible_key_blocks(const Problem& problem, const RowBlock& rows) {
  return visible_blocks(rows.first_position() - problem.band.left, rows.last_position() + problem.band.right,
                        problem.shape.S, kBlockKeys);
}

inline KeyBlock key_block(const Shape& shape, const RowBlock& rows, int64_t index) {
  const int64_t first = index * kBlockKeys;
  return {rows.v, rows.b, rows.first_head / shape.group(), first, min(kBlockKeys, shape.S - first)};
}

// All lanes -1 where `position` (public) lies before the true length (secret), else 0.
inline IntVec before_length(const Lengths& lengths, int64_t v, int64_t b, int64_t position) {
  if (!lengths.data) return splat_int(-1);
  const int32_t length = lengths.data[v * lengths.stride_v + b * lengths.stride_b];
  return splat_int(static_cast<int32_t>(position)) < splat_int(length);
}

// One row of D values to `target` [Dp]; all zeros where `keep` is 0. Channels past D are 0.
template <typename Type>
inline void load_row(const typename Type::Storage* source, int64_t channels, IntVec keep, float* target) {
  for (int64_t d = 0; d < channels; d += kWidth)
    store(target + d, ct_select(keep, load_part<Type>(source + d, channels - d), Vec{}));
}

// [count, Dp] of query, out or d_out. A row at or past the query length becomes 0, whatever it holds.
inline void load_query_rows(const Problem& problem, const InRows& rows, const RowBlock& block, float* tile) {
  const int64_t channels = problem.shape.D, ld = padded_channels(problem.shape);
  with_dtype(problem.dtype, [&](auto type) {
    using Type = decltype(type);
    const auto* data = static_cast<const typename Type::Storage*>(rows.data);
    data += block.v * rows.stride_v + block.b * rows.stride_b;
    for (int64_t i = 0; i < block.count; ++i) {
      const int64_t t = block.position(i);
      const IntVec keep = before_length(problem.query_lengths, block.v, block.b, t);
      load_row<Type>(data + t * rows.stride_row + block.head(i) * rows.stride_head, channels, keep,
                     tile + i * ld);
    }
  });
}

// [kBlockKeys, Dp] of key or value. A row at or past the key/value length becomes 0, whatever it holds: its
// weight is 0, but 0 * NaN is not. Rows past S are 0.
inline void load_key_rows(const Problem& problem, const InRows& rows, const KeyBlock& block, float* tile) {
  const int64_t channels = problem.shape.D, ld = padded_channels(problem.shape);
  with_dtype(problem.dtype, [&](auto type) {
    using Type = decltype(type);
    const auto* data = static_cast<const typename Type::Storage*>(rows.data);
    data += block.v * rows.stride_v + block.b * rows.stride_b + block.head * rows.stride_head;
    for (int64_t j = 0; j < block.count; ++j) {
      const int64_t s = block.first_key + j;
      const IntVec keep = before_length(problem.key_value_lengths, block.v, block.b, s);
      load_row<Type>(data + s * rows.stride_row, channels, keep, tile + j * ld);
    }
  });
  for (int64_t i = block.count * ld; i < kBlockKeys * ld; i += kWidth) store(tile + i, Vec{});
}

// [kBlockKeys, Dp] -> [Dp, kBlockKeys]
inline void transpose(const float* tile, int64_t ld, float* transposed) {
  for (int64_t d = 0; d < ld; ++d)
    for (int64_t j = 0; j < kBlockKeys; ++j) transposed[d * kBlockKeys + j] = tile[j * ld + d];
}

// Writes rows of a gradient or of out, scaled; tile [count, Dp].
template <typename Type>
inline void store_row(const float* tile, Vec factor, int64_t channels, typename Type::Storage* target) {
  for (int64_t d = 0; d < channels; d += kWidth)
    store_part<Type>(target + d, load(tile + d) * factor, channels - d);
}

inline void fill(float* target, int64_t count, float value) {
  for (int64_t i = 0; i < count; ++i) target[i] = value;
}

}  // namespace dhp::DHP_ISA
