// From dot products to scores: scale, bias, and -inf for every key that takes no part.

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
  if (stride == 0) return splat_int(*source) != 0;
  uint8_t padded[kWidth] = {};
  if (count < kWidth) {
    for (int64_t i = 0; i < count; ++i) padded[i] = source[i];
    source = padded;
  }
  return __builtin_convertvector(*reinterpret_cast<const ByteVec*>(source), IntVec) != 0;
}

template <typename Pointer>
inline int64_t row_offset(const ScorePlane<Pointer>& plane, int64_t v, int64_t b, int64_t n, int64_t t) {
  return v * plane.stride_v + b * plane.stride_b + n * plane.stride_n + t * plane.stride_t;
}

// Which tests a tile of scores needs; public, so a tile inside the band skips them.
struct TileTests {
  bool edge;     // the tile crosses the band or the end of the keys
  bool secrets;  // a mask or lengths exist
};

inline TileTests tile_tests(const Problem& problem, const RowBlock& rows, const KeyBlock& keys) {
  const int64_t first_key = keys.first_key, last_key = keys.first_key + keys.count - 1;
  const bool inside = keys.count == kBlockKeys && first_key >= rows.last_position() - problem.band.left &&
                      last_key <= rows.first_position() + problem.band.right;
  return {!inside, problem.mask.data || problem.query_lengths.data || problem.key_value_lengths.data};
}

// Lanes -1 where the key takes part in the row; every secret enters as a lane mask, none as a condition.
inline IntVec takes_part(const Problem& problem, TileTests tests, int64_t v, int64_t b, int64_t n, int64_t t,
                         IntVec row_valid, int64_t key) {
  const IntVec s = lane_index() + static_cast<int32_t>(key);
  IntVec valid = row_valid;
  if (tests.edge) {
    const int64_t lowest = max(t - problem.band.left, 0);
    const int64_t highest = min(t + problem.band.right, problem.shape.S - 1);
    valid &= (s >= static_cast<int32_t>(lowest)) & (s <= static_cast<int32_t>(highest));
  }
  if (problem.key_value_lengths.data) {
    const Lengths& lengths = problem.key_value_lengths;
    valid &= s < splat_int(lengths.data[v * lengths.stride_v + b * lengths.stride_b]);
  }
  if (problem.mask.data) {
    const ScorePlane<const uint8_t*>& mask = problem.mask;
    const uint8_t* source = mask.data + row_offset(mask, v, b, n, t) + key * mask.stride_s;
    valid &= load_mask(source, mask.stride_s, problem.shape.S - key);
  }
  return valid;
}

inline void add_bias(const Problem& problem, int64_t v, int64_t b, int64_t n, int64_t t, int64_t key,
                     int64_t count, float* scores) {
  const ScorePlane<const void*>& bias = problem.bias;
  with_dtype(problem.bias_dtype, [&](auto type) {
    using Type = decltype(type);
    const auto* source = static_cast<const typename Type::Storage*>(bias.data) + row_offset(bias, v, b, n, t);
    for (int64_t j = 0; j < count; j += kWidth)
      store(scores + j,
            load(scores + j) + load_bias<Type>(source + (key + j) * bias.stride_s, bias.stride_s, count - j));
  });
}

// scores [rows, kBlockKeys]: q . k in, scale * (q . k) + bias or -inf out.
inline void finish_scores(const Problem& problem, const RowBlock& rows, const KeyBlock& keys, float* scores) {
  const TileTests tests = tile_tests(problem, rows, keys);
  for (int64_t i = 0; i < rows.count; ++i) {
    float* row = scores + i * kBlockKeys;
    const int64_t t = rows.position(i), n = rows.head(i);
    for (int64_t j = 0; j < kBlockKeys; j += kWidth) store(row + j, load(row + j) * problem.scale);
    if (problem.bias.data) add_bias(problem, rows.v, rows.b, n, t, keys.first_key, keys.count, row);
    if (!tests.edge && !tests.secrets) continue;
    const IntVec row_valid = before_length(problem.query_lengths, rows.v, rows.b, t);
    for (int64_t j = 0; j < keys.count; j += kWidth) {
      const IntVec valid = takes_part(problem, tests, rows.v, rows.b, n, t, row_valid, keys.first_key + j);
      store(row + j, ct_select(valid, load(row + j), splat(-kInfinity)));
    }
    for (int64_t j = div_up(keys.count, kWidth) * kWidth; j < kBlockKeys; j += kWidth)
      store(row + j, splat(-kInfinity));
  }
}

// scores [rows, kBlockKeys] = finished scores of a block; query [rows, Dp], key_transposed [Dp, kBlockKeys].
inline void compute_scores(const Problem& problem, const RowBlock& rows, const KeyBlock& keys,
                           const float* query, const float* key_transposed, float* scores) {
  const int64_t ld = padded_channels(problem.shape);
  fill(scores, rows.count * kBlockKeys, 0.0f);
  matmul_accumulate(rows.count, kBlockKeys, ld, {query, ld, 1}, key_transposed, kBlockKeys, scores,
                    kBlockKeys);
  finish_scores(problem, rows, keys, scores);
}

}  // namespace dhp::DHP_ISA
