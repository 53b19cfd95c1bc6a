// Tiles of query and key rows as float32 in scratch memory, and the blocks of rows and keys they come from.
//
// The query rows of one key/value head are numbered r = t * group + (query head within the group), so that
// the heads that share keys share the work of loading them, and a block of rows covers neighbouring
// positions.
//
// A tile comes in two layouts. "By row" is that of memory: [rows or keys, channels]. "By channel" has the
// query rows along the lanes of a vector, [channels or keys, rows]: each lane is one row of attention, so the
// softmax works lane by lane, and keys and values enter every product as scalars, in the layout of memory.

#pragma once

#include "host/convert.h"

namespace dhp::DHP_ISA {

constexpr int64_t kBlockRows = 128;  // a multiple of kTileVectors * kWidth for every instruction set
constexpr int64_t kBlockKeys = 64;   // a multiple of kWidth
constexpr int64_t kMaxChannels = 256;

// From one line of a tile with query rows along its lanes to the next. Not a power of two: the lines of a
// column would share few sets of the cache.
constexpr int64_t kLaneStride = kBlockRows + 16;

inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t whole_vectors(int64_t count) { return div_up(count, kWidth) * kWidth; }
inline int64_t padded_channels(const Shape& shape) { return whole_vectors(shape.D); }

inline int64_t num_heads(const Shape& shape) { return shape.V * shape.B * shape.K; }
inline int64_t num_row_blocks(const Shape& shape) { return div_up(shape.T * shape.group(), kBlockRows); }
inline int64_t num_key_blocks(const Shape& shape) { return div_up(shape.S, kBlockKeys); }

struct RowBlock {
  int64_t v, b;
  int64_t first_head, group;  // row r: query position r / group, query head first_head + r % group
  int64_t first_row, count;

  int64_t lanes() const { return whole_vectors(count); }  // lanes past count hold no row, and are not stored
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

// The next two must agree, or a task would wait for a turn that never ends: a block of rows sees a block of
// keys if and only if the keys are seen by it. A band in which no row sees a key is empty for both.
inline bool is_empty(const Band& band) { return band.left + band.right < 0; }

inline BlockRange visible_key_blocks(const Problem& problem, const RowBlock& rows) {
  if (is_empty(problem.band)) return {0, 0};
  return visible_blocks(rows.first_position() - problem.band.left, rows.last_position() + problem.band.right,
                        problem.shape.S, kBlockKeys);
}

// Blocks of rows of the keys' group.
inline BlockRange visible_row_blocks(const Problem& problem, const KeyBlock& keys) {
  if (is_empty(problem.band)) return {0, 0};
  const int64_t group = problem.shape.group();
  const int64_t lowest = max(keys.first_key - problem.band.right, 0);
  const int64_t highest = min(keys.first_key + keys.count - 1 + problem.band.left, problem.shape.T - 1);
  return visible_blocks(lowest * group, (highest + 1) * group - 1, problem.shape.T * group, kBlockRows);
}

inline KeyBlock key_block(const Shape& shape, const RowBlock& rows, int64_t index) {
  const int64_t first = index * kBlockKeys;
  return {rows.v, rows.b, rows.first_head / shape.group(), first, min(kBlockKeys, shape.S - first)};
}

// All lanes -1 where `position` (public) lies before the true length (secret), else 0.
inline IntVec before_length(const Lengths& lengths, int64_t v, int64_t b, int64_t position) {
  if (!lengths.data) return splat_int(-1);
  const int32_t length = lengths.data[v * lengths.stride_v + b * lengths.stride_b];
  return ct_less(splat_int(static_cast<int32_t>(position)), splat_int(length));
}

// One row of D values to `target` [Dp]; all zeros where `keep` is 0. Channels past D are 0.
template <typename Type>
inline void load_row(const typename Type::Storage* source, int64_t channels, IntVec keep, float* target) {
  for (int64_t d = 0; d < channels; d += kWidth)
    store(target + d, ct_select(keep, load_part<Type>(source + d, channels - d), Vec{}));
}

// By row, [lanes, Dp], of query, out or d_out. A row at or past the query length becomes 0, whatever it
// holds.
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
  for (int64_t i = block.count * ld; i < block.lanes() * ld; i += kWidth) store(tile + i, Vec{});
}

// Rows of one head lie too far apart for the processor to guess the next one.
template <typename Storage>
inline void prefetch_row(const Storage* row, int64_t channels) {
  constexpr int64_t kCacheLine = 64 / sizeof(Storage);
  for (int64_t d = 0; d < channels; d += kCacheLine) __builtin_prefetch(row + d);
}

// By row, [keys, Dp], of key or value. A row at or past the key/value length becomes 0, whatever it holds:
// its weight is 0, but 0 * NaN is not.
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
      prefetch_row(data + min(s + kBlockKeys, problem.shape.S - 1) * rows.stride_row, channels);
    }
  });
}

// tile [rows, columns] -> transposed [columns, rows]; both sizes are multiples of kWidth.
inline void transpose(int64_t rows, int64_t columns, const float* tile, int64_t ld, float* transposed,
                      int64_t ld_transposed) {
  for (int64_t i = 0; i < rows; i += kWidth)
    for (int64_t j = 0; j < columns; j += kWidth) {
      Vec square[kWidth];
      for (int k = 0; k < kWidth; ++k) square[k] = load(tile + (i + k) * ld + j);
      transpose_square(square);
      for (int k = 0; k < kWidth; ++k) store(transposed + (j + k) * ld_transposed + i, square[k]);
    }
}

// One row of D values from `tile` [Dp] to memory.
template <typename Type>
inline void store_row(const float* tile, int64_t channels, typename Type::Storage* target) {
  for (int64_t d = 0; d < channels; d += kWidth) store_part<Type>(target + d, load(tile + d), channels - d);
}

inline void fill(float* target, int64_t count, float value) {
  for (int64_t i = 0; i < count; ++i) target[i] = value;
}

}  // namespace dhp::DHP_ISA
