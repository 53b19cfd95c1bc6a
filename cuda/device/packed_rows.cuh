// Query rows of all heads that share one key/value head, packed: row r is token r / group, head r % group of
// the group. What a score of theirs is.

#pragma once

#include <cmath>
#include <cstdint>

#include "device/band.cuh"
#include "device/ct.cuh"
#include "device/divisor.cuh"
#include "device/mma.cuh"
#include "device/rows.cuh"
#include "device/score.cuh"
#include "device/softmax.cuh"
#include "params.h"

namespace dhp {

// Where row `row` lies. `key_0` is row 0 of the key/value head.
__device__ inline Place packed_row(const Place& key_0, uint32_t row, const Divisor& group) {
  const uint32_t in_group = group.take_index(row);
  return {key_0.v, key_0.b, static_cast<int32_t>(row),
          static_cast<int32_t>(key_0.head * group.divisor + in_group)};
}

// The scores of two rows that a lane holds in part, against tiles of 8 kTiles keys.
//
// A score is scale * dot + bias, or -inf where the key takes no part. Rows past the last token have the
// scores of the last one.
template <DType dtype, int kTiles>
class PackedScores {
 public:
  __device__ PackedScores(const Problem& problem, const Place (&rows)[kStripRows]) : problem_(problem) {
    const TrueLengths lengths = load_lengths(problem, rows[0].v, rows[0].b);
    key_length_ = lengths.key_value;
#pragma unroll
    for (int half = 0; half < kStripRows; ++half) {
      const Place& at = rows[half];
      const int32_t token = min(at.row, static_cast<int32_t>(problem.shape.T) - 1);
      const Range seen = keys_seen(problem, token);
      begin_[half] = seen.begin;
      end_[half] =
          min(seen.end, lengths.key_value) & static_cast<int32_t>(ct_less(token, lengths.query).bits);
      first_[half] = {at.v, at.b, min(at.head, static_cast<int32_t>(problem.shape.N) - 1), token, 0};
    }
  }

  // Dot products to scores. `column` is the first key.
  __device__ void finish(Sums (&scores)[kTiles], int32_t column) const {
    if (problem_.bias.data == nullptr) {
      for_each(scores, column, [&](float& score, int, int32_t) { score *= problem_.scale; });
    } else if (problem_.bias_dtype == DType::kFloat32) {
      scale_and_add_bias<true>(scores, column);
    } else {
      scale_and_add_bias<false>(scores, column);
    }
    if (problem_.mask.data != nullptr) {
      const int64_t row[kStripRows] = {row_in(problem_.mask, 0), row_in(problem_.mask, 1)};
      for_each(scores, column, [&](float& score, int half, int32_t key) {
        const int64_t offset = row[half] + along(last_or(key), problem_.mask.stride_s);
        score = ct_select(ct_nonzero(problem_.mask.data[offset]), score, -INFINITY);
      });
    }
    for_each(scores, column, [&](float& score, int half, int32_t key) {
      score = ct_select(~ct_less(key, begin_[half]) & ct_less(key, end_[half]), score, -INFINITY);
    });
  }

  // For add_weighted_rows: the words that keep of value rows those before the true length, of the k-th 16
  // {2q and 2q + 1, 2q + 8 and 2q + 9}, two to a word.
  __device__ uint2 real_columns(int32_t column, int k) const {
    const int32_t first = column + k * kMmaDepth<dtype> + lane_column();
    return {real_pair(first), real_pair(first + 8)};
  }

 private:
  // The first of the two neighbouring columns that a lane holds of each 8.
  __device__ static int lane_column() { return static_cast<int>(threadIdx.x) % 4 * 2; }

  // Calls body(score, half, key).
  template <typename Body>
  __device__ static void for_each(Sums (&scores)[kTiles], int32_t column, Body body) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        body(scores[tile][i], i / 2, column + tile * kMmaColumns + lane_column() + i % 2);
      }
    }
  }

  // Bias and mask have nothing past the last key.
  __device__ int32_t last_or(int32_t key) const {
    return min(key, static_cast<int32_t>(problem_.shape.S) - 1);
  }

  // Where a row begins. Computed again for each tile: kept, it would take registers where few have either.
  template <typename Pointer>
  __device__ int64_t row_in(const ScorePlane<Pointer>& plane, int half) const {
    ScorePlace first = first_[half];
    first.t = ptx::opaque(first.t);
    return offset_in(plane, first);
  }

  template <bool kIsFloat32>
  __device__ void scale_and_add_bias(Sums (&scores)[kTiles], int32_t column) const {
    const int64_t row[kStripRows] = {row_in(problem_.bias, 0), row_in(problem_.bias, 1)};
    for_each(scores, column, [&](float& score, int half, int32_t key) {
      const int64_t offset = row[half] + along(last_or(key), problem_.bias.stride_s);
      score = fmaf(problem_.scale, score, load_bias<kIsFloat32>(problem_, offset));
    });
  }

  __device__ CtMask is_real(int32_t key) const { return ct_less(key, key_length_); }
  __device__ uint32_t real_pair(int32_t key) const {
    return (is_real(key).bits & 0x0000ffffu) | (is_real(key + 1).bits & 0xffff0000u);
  }

  const Problem& problem_;
  int32_t key_length_;            // secret
  int32_t begin_[kStripRows];     // of the keys that a row sees
  int32_t end_[kStripRows];       // secret
  ScorePlace first_[kStripRows];  // of key 0
};

}  // namespace dhp
