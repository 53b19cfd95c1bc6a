// From the dot products of a tile to its scores, in the registers that hold the sums of a tensor-core
// product.
//
// Two instances. Where neither bias, mask nor lengths are there and the scale is positive, a score is scale
// times the dot product, and only the tiles that the edge of the band cuts are looked at more closely. Else a
// score is scale * dot + bias, or -inf where the key takes no part.

#pragma once

#include <cmath>

#include "device/band.cuh"
#include "device/ct.cuh"
#include "device/mma.cuh"
#include "device/product.cuh"
#include "device/rows.cuh"
#include "device/score.cuh"
#include "params.h"

namespace dhp {

// Which positions the rows of a product are; its columns are the others.
enum class Rows { kQueries, kKeys };

// The scores between the rows of one warp, kStrips strips, and tiles of 8 kTiles columns.
template <typename Config, Rows kRows, int kStrips, int kTiles>
class ScoreTile {
 public:
  using Scores = StripSums<kStrips, kTiles>;

  // `warp` is the first row of the warp, and the query head whose bias and mask count.
  __device__ ScoreTile(const Problem& problem, const Place& warp) : problem_(problem), warp_(warp) {
    if constexpr (Config::kHasScoreOperands) lengths_ = load_lengths(problem, warp.v, warp.b);
  }

  // The position that `half` (0 or 1) of a strip is.
  __device__ int32_t row(int strip, int half) const {
    return warp_row() + strip * kMmaRows + half * 8 + thread_of_block<Config::kRowBytes>() % kWarpLanes / 4;
  }

  // Of the rows' axis: whether a position lies before the true length.
  __device__ CtMask row_is_real(int32_t row) const {
    if constexpr (!Config::kHasScoreOperands) return {~0u};
    return ct_less(row, kRows == Rows::kQueries ? lengths_.query : lengths_.key_value);
  }

  // Dot products to scores, but for the scale where there is nothing else to do. `column` is the first.
  __device__ void finish_but_scale(Scores& scores, int32_t column) const {
    if constexpr (Config::kHasScoreOperands) {
      if (problem_.bias.data == nullptr) {
        scale(scores);
      } else if (problem_.bias_dtype == DType::kFloat32) {
        scale_and_add_bias<true>(scores, column);
      } else {
        scale_and_add_bias<false>(scores, column);
      }
      if (problem_.mask.data != nullptr) hide_masked(scores, column);
      hide_past_lengths(scores, column);
    }
    if (!all_seen(column)) hide_out_of_band(scores, column);
  }
  // What is left to multiply by.
  __device__ float scale_left() const { return Config::kHasScoreOperands ? 1.0f : problem_.scale; }

  // Dot products to scores.
  __device__ void finish(Scores& scores, int32_t column) const {
    if constexpr (!Config::kHasScoreOperands) scale(scores);
    finish_but_scale(scores, column);
  }

  // Only where the band's edge cuts the tile is there something to hide.
  __device__ void hide_out_of_band(Scores& scores, int32_t column) const {
    for_each_row([&](int strip, int half) {
      // Seen from the lane's first column, so that the others are constants.
      const Range range = seen(row(strip, half));
      const int32_t begin = range.begin - column - lane_column(), end = range.end - column - lane_column();
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int32_t position = tile * kMmaColumns + i;
          float& score = scores[strip][tile][2 * half + i];
          score = position >= begin && position < end ? score : -INFINITY;
        }
      }
    });
  }

  // As rows of a weighted sum, the words that keep of the columns those before the true length, for
  // add_weighted_rows: of the k-th 16, {2q and 2q + 1, 2q + 8 and 2q + 9}, two to a word; of float32, of the
  // k-th 8, {2q, 2q + 1}.
  __device__ uint2 real_columns(int32_t column, int k) const {
    if constexpr (!Config::kHasScoreOperands) return {~0u, ~0u};
    const int32_t first = column + k * kMmaDepth<Config::kDType> + lane_column();
    if constexpr (Config::kIsWide) return {column_is_real(first).bits, column_is_real(first + 1).bits};
    return {real_pair(first), real_pair(first + 8)};
  }

 private:
  // The first of the two neighbouring columns that a lane holds of each 8.
  __device__ static int lane_column() { return static_cast<int>(threadIdx.x) % 4 * 2; }

  template <typename Body>
  __device__ static void for_each_row(Body body) {
#pragma unroll
    for (int strip = 0; strip < kStrips; ++strip) {
#pragma unroll
      for (int half = 0; half < 2; ++half) body(strip, half);
    }
  }

  // Calls body(score, position) for all that this lane holds of one row.
  template <typename Body>
  __device__ void for_each_column(Sums (&scores)[kTiles], int half, int32_t column, Body body) const {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        body(scores[tile][2 * half + i], column + tile * kMmaColumns + lane_column() + i);
      }
    }
  }

  // The warp's first row; opaque where thread_of_block is.
  __device__ int32_t warp_row() const { return Config::kRowBytes > 128 ? ptx::opaque(warp_.row) : warp_.row; }

  __device__ int32_t last_row() const {
    return static_cast<int32_t>(kRows == Rows::kQueries ? problem_.shape.T : problem_.shape.S) - 1;
  }

  // The columns that the band lets a row see; rows past the last see what that sees.
  __device__ Range seen(int32_t row) const {
    row = min(row, last_row());
    return kRows == Rows::kQueries ? keys_seen(problem_, row) : queries_seeing(problem_, row);
  }

  // `&`, not `&&`: the branch of the latter leaves a bool in half a register, beside what is left of a
  // secret, and the proof follows whole registers.
  __device__ bool all_seen(int32_t column) const {
    const int32_t first = warp_row();
    return (column >= seen(first + kStrips * kMmaRows - 1).begin) &
           (column + kTiles * kMmaColumns <= seen(first).end);
  }

  __device__ CtMask column_is_real(int32_t column) const {
    return ct_less(column, kRows == Rows::kQueries ? lengths_.key_value : lengths_.query);
  }
  __device__ uint32_t real_pair(int32_t column) const {
    return (column_is_real(column).bits & 0x0000ffffu) | (column_is_real(column + 1).bits & 0xffff0000u);
  }

  __device__ void hide_past_lengths(Scores& scores, int32_t column) const {
    for_each_row([&](int strip, int half) {
      const CtMask is_real = row_is_real(row(strip, half));
      for_each_column(scores[strip], half, column, [&](float& score, int32_t position) {
        score = ct_select(is_real & column_is_real(position), score, -INFINITY);
      });
    });
  }

  // Where bias or mask has its elements for one row. Positions outside the problem repeat the last one: what
  // they yield is hidden afterwards, or not stored.
  struct PlaneRow {
    int64_t offset;  // of column 0
    int64_t stride_column;
    int32_t last_column;
    __device__ int64_t at(int32_t column) const {
      return offset + along(min(column, last_column), stride_column);
    }
  };
  template <typename Pointer>
  __device__ PlaneRow plane_row(const ScorePlane<Pointer>& plane, int32_t row) const {
    const int32_t last_query = static_cast<int32_t>(problem_.shape.T) - 1;
    const int32_t last_key = static_cast<int32_t>(problem_.shape.S) - 1;
    if constexpr (kRows == Rows::kQueries) {
      const ScorePlace first{warp_.v, warp_.b, warp_.head, min(row, last_query), 0};
      return {offset_in(plane, first), plane.stride_s, last_key};
    } else {
      const ScorePlace first{warp_.v, warp_.b, warp_.head, 0, min(row, last_key)};
      return {offset_in(plane, first), plane.stride_t, last_query};
    }
  }

  // Whether the two neighbours that a lane has of each 8 columns can be loaded at once, all of this tile with
  // one address a row.
  template <typename Pointer>
  __device__ bool is_in_pairs(const ScorePlane<Pointer>& plane, int32_t column, int element_bytes) const {
    if constexpr (kRows == Rows::kKeys) return false;
    const int64_t strides = plane.stride_v | plane.stride_b | plane.stride_n | plane.stride_t;
    return plane.stride_s == 1 & strides % 2 == 0 &
           reinterpret_cast<size_t>(plane.data) % (2 * element_bytes) == 0 &
           column + kTiles * kMmaColumns <= static_cast<int32_t>(problem_.shape.S);
  }

  __device__ void hide_masked(Scores& scores, int32_t column) const {
    const bool in_pairs = is_in_pairs(problem_.mask, column, 1);
    for_each_row([&](int strip, int half) {
      const PlaneRow mask = plane_row(problem_.mask, row(strip, half));
      if (in_pairs) {
        const uint8_t* const first = problem_.mask.data + mask.offset + column + lane_column();
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
          const uint32_t two = *reinterpret_cast<const uint16_t*>(first + tile * kMmaColumns);
          float* const score = scores[strip][tile] + 2 * half;
          score[0] = ct_select(ct_nonzero(two & 0xffu), score[0], -INFINITY);
          score[1] = ct_select(ct_nonzero(two >> 8), score[1], -INFINITY);
        }
      } else {
        for_each_column(scores[strip], half, column, [&](float& score, int32_t position) {
          score = ct_select(ct_nonzero(problem_.mask.data[mask.at(position)]), score, -INFINITY);
        });
      }
    });
  }

  template <bool kIsFloat32>
  __device__ void scale_and_add_bias(Scores& scores, int32_t column) const {
    for_each_row([&](int strip, int half) {
      const PlaneRow bias = plane_row(problem_.bias, row(strip, half));
      for_each_column(scores[strip], half, column, [&](float& score, int32_t position) {
        score = fmaf(problem_.scale, score, load_bias<kIsFloat32>(problem_, bias.at(position)));
      });
    });
  }

  __device__ void scale(Scores& scores) const {
#pragma unroll
    for (auto& strip : scores) {
#pragma unroll
      for (Sums& sums : strip) {
#pragma unroll
        for (float& score : sums) score *= problem_.scale;
      }
    }
  }

  const Problem& problem_;
  Place warp_;
  TrueLengths lengths_;
};

}  // namespace dhp
