// From dot products to scores: scale, bias, and -inf for every key that takes no part.
//
// A tile of scores is [keys, rows]: one line for each key, with the query rows along its lanes. Bias and mask
// lie in memory the other way round, so their tiles are turned before use.

#pragma once

#include "host/matmul.h"
#include "host/tile.h"

namespace dhp::DHP_ISA {

typedef uint8_t ByteVec __attribute__((vector_size(kWidth), aligned(1), may_alias));

// kWidth values of bias from `source`, of which `count` exist; stride 0 repeats the first.
template <typename Type>
inline Vec load_bias(const typename Type::Storage* source, int64_t stride, int64_t count) {
  if (stride == 0) return splat(load_part<Type>(source, 1)[0]);
  return load_part<Type>(source, count);
}

// Lanes -1 where the mask lets the key take part.
inline IntVec load_mask(const uint8_t* source, int64_t stride, int64_t count) {
  if (stride == 0) return ~ct_equal(splat_int(*source), IntVec{});
  uint8_t padded[kWidth] = {};
  if (count < kWidth) {
    for (int64_t i = 0; i < count; ++i) padded[i] = source[i];
    source = padded;
  }
  return ~ct_equal(__builtin_convertvector(*reinterpret_cast<const ByteVec*>(source), IntVec), IntVec{});
}

template <typename Pointer>
inline int64_t row_offset(const ScorePlane<Pointer>& plane, int64_t v, int64_t b, int64_t n, int64_t t) {
  return v * plane.stride_v + b * plane.stride_b + n * plane.stride_n + t * plane.stride_t;
}

// Which tests a tile of scores needs; public, so a tile inside the band skips them.
struct TileTests {
  bool edge;     // the tile crosses the band
  bool lengths;  // true lengths exist
};

inline TileTests tile_tests(const Problem& problem, const RowBlock& rows, const KeyBlock& keys) {
  const int64_t first_key = keys.first_key, last_key = keys.first_key + keys.count - 1;
  const bool inside = first_key >= rows.last_position() - problem.band.left &&
                      last_key <= rows.first_position() + problem.band.right;
  return {!inside, problem.query_lengths.data || problem.key_value_lengths.data};
}

// What the rows of a block bring to those tests, one lane for each row, as int32; and scratch for one tile of
// bias or mask.
struct ScoreScratch {
  float *first_key, *last_key;  // [kBlockRows]; that the band lets the row see
  float* valid;                 // [kBlockRows]; -1 before the true query length, else 0; secret
  float* by_row;                // [kBlockRows, kBlockKeys]
  float* by_lane;               // [kBlockKeys, kLaneStride]
};

inline void load_row_tests(const Problem& problem, const RowBlock& rows, const ScoreScratch& scratch) {
  for (int64_t first = 0; first < rows.lanes(); first += kWidth) {
    IntVec first_key, last_key, valid;
    for (int lane = 0; lane < kWidth; ++lane) {
      const int64_t t = rows.position(min(first + lane, rows.count - 1));
      first_key[lane] = static_cast<int32_t>(max(t - problem.band.left, 0));
      last_key[lane] = static_cast<int32_t>(min(t + problem.band.right, problem.shape.S - 1));
      valid[lane] = before_length(problem.query_lengths, rows.v, rows.b, t)[0];
    }
    store(scratch.first_key + first, from_bits(first_key));
    store(scratch.last_key + first, from_bits(last_key));
    store(scratch.valid + first, from_bits(valid));
  }
}

// plane -> by_lane [keys, rows]; load_values(row of the plane, index of the key in it, keys left) gives a
// vector of values along the keys.
template <typename Pointer, typename LoadValues>
inline void load_plane(const ScorePlane<Pointer>& plane, const RowBlock& rows, const KeyBlock& keys,
                       const ScoreScratch& scratch, LoadValues load_values) {
  for (int64_t i = 0; i < rows.count; ++i) {
    const int64_t offset = row_offset(plane, rows.v, rows.b, rows.head(i), rows.position(i));
    for (int64_t j = 0; j < keys.count; j += kWidth)
      store(scratch.by_row + i * kBlockKeys + j,
            load_values(offset + (keys.first_key + j) * plane.stride_s, keys.count - j));
  }
  transpose(rows.lanes(), whole_vectors(keys.count), scratch.by_row, kBlockKeys, scratch.by_lane,
            kLaneStride);
}

inline void add_bias(const Problem& problem, const RowBlock& rows, const KeyBlock& keys,
                     const ScoreScratch& scratch, float* scores) {
  with_dtype(problem.bias_dtype, [&](auto type) {
    using Type = decltype(type);
    const auto* data = static_cast<const typename Type::Storage*>(problem.bias.data);
    const int64_t stride = problem.bias.stride_s;
    load_plane(problem.bias, rows, keys, scratch, [data, stride](int64_t index, int64_t count) {
      return load_bias<Type>(data + index, stride, count);
    });
  });
  for (int64_t j = 0; j < keys.count; ++j)
    for (int64_t i = j * kLaneStride; i < j * kLaneStride + rows.lanes(); i += kWidth)
      store(scores + i, load(scores + i) + load(scratch.by_lane + i));
}

inline void apply_mask(const Problem& problem, const RowBlock& rows, const KeyBlock& keys,
                       const ScoreScratch& scratch, float* scores) {
  const uint8_t* data = problem.mask.data;
  const int64_t stride = problem.mask.stride_s;
  load_plane(problem.mask, rows, keys, scratch, [data, stride](int64_t index, int64_t count) {
    return from_bits(load_mask(data + index, stride, count));
  });
  for (int64_t j = 0; j < keys.count; ++j)
    for (int64_t i = j * kLaneStride; i < j * kLaneStride + rows.lanes(); i += kWidth)
      store(scores + i, ct_select(bits(load(scratch.by_lane + i)), load(scores + i), splat(-kInfinity)));
}

// Every secret enters as a lane mask, none as a condition.
inline void apply_band_and_lengths(const Problem& problem, const RowBlock& rows, const KeyBlock& keys,
                                   const ScoreScratch& scratch, float* scores) {
  for (int64_t j = 0; j < keys.count; ++j) {
    const int64_t key = keys.first_key + j;
    const IntVec s = splat_int(static_cast<int32_t>(key));
    const IntVec key_valid = before_length(problem.key_value_lengths, rows.v, rows.b, key);
    float* line = scores + j * kLaneStride;
    for (int64_t i = 0; i < rows.lanes(); i += kWidth) {
      const IntVec seen =
          ~ct_less(s, bits(load(scratch.first_key + i))) & ~ct_less(bits(load(scratch.last_key + i)), s);
      const IntVec valid = seen & key_valid & bits(load(scratch.valid + i));
      store(line + i, ct_select(valid, load(line + i), splat(-kInfinity)));
    }
  }
}

// scores [keys, rows]: q . k in, scale * (q . k) + bias or -inf out.
inline void finish_scores(const Problem& problem, const RowBlock& rows, const KeyBlock& keys,
                          const ScoreScratch& scratch, float* scores) {
  const TileTests tests = tile_tests(problem, rows, keys);
  for (int64_t j = 0; j < keys.count; ++j)
    for (int64_t i = j * kLaneStride; i < j * kLaneStride + rows.lanes(); i += kWidth)
      store(scores + i, load(scores + i) * problem.scale);
  if (problem.bias.data) add_bias(problem, rows, keys, scratch, scores);
  if (problem.mask.data) apply_mask(problem, rows, keys, scratch, scores);
  if (tests.edge || tests.lengths) apply_band_and_lengths(problem, rows, keys, scratch, scores);
}

// scores [keys, rows] = finished scores of a block; query by channel [D, rows], key by row [keys, Dp].
inline void compute_scores(const Problem& problem, const RowBlock& rows, const KeyBlock& keys,
                           const float* query, const float* key, const ScoreScratch& scratch, float* scores) {
  matmul<Start::kZero>(keys.count, rows.lanes(), problem.shape.D, {key, padded_channels(problem.shape), 1},
                       query, kLaneStride, scores, kLaneStride);
  finish_scores(problem, rows, keys, scratch, scores);
}

}  // namespace dhp::DHP_ISA
