// From the dot products of a tile to its scores, in the registers that hold the sums of a tensor-core
// product.
//
// Two instances. Where neither bias, mask nor lengths are there and the scale is positive, a score is the dot
// product itself and the scale goes into the exponent: only what the band hides is touched, in the tiles that
// its edge cuts. Else a score is scale * dot + bias, or -inf where the key takes no part.

#pragma once

#include <cmath>

#include "device/band.cuh"
#include "device/ct.cuh"
#include "device/mma.cuh"
#include "device/rows.cuh"
#include "device/score.cuh"
#include "params.h"

namespace dhp {

inline constexpr float kLog2E = 1.4426950408889634f;

// The scores between the query rows of one warp and one tile of keys.
template <typename Config, typename Tiles>
class ScoreTile {
 public:
  using Scores = Sums[Tiles::kStrips][Tiles::kKeyTiles];

  // `warp` is the first query row of the warp.
  __device__ ScoreTile(const Problem& problem, const Place& warp) : problem_(problem), warp_(warp) {
    if constexpr (Config::kHasScoreOperands) lengths_ = load_lengths(problem, warp.v, warp.b);
  }

  // p = exp2(exponent_scale * (score - row maximum)).
  __device__ float exponent_scale() const {
    return Config::kHasScoreOperands ? kLog2E : problem_.scale * kLog2E;
  }
  // What a row maximum is multiplied by to be one of scale * dot + bias.
  __device__ float row_max_scale() const { return Config::kHasScoreOperands ? 1.0f : problem_.scale; }

  // The row of the problem that `half` (0 or 1) of a strip is.
  __device__ int32_t row(int strip, int half) const {
    return warp_.row + strip * kMmaRows + half * 8 + static_cast<int>(threadIdx.x) % kWarpLanes / 4;
  }

  // Dot products to scores. `key` is the first of the tile.
  __device__ void finish(Scores& scores, int32_t key) const {
    if constexpr (Config::kHasScoreOperands) {
      scale_and_add_bias(scores, key);
      if (problem_.mask.data != nullptr) hide_masked(scores, key);
      hide_past_lengths(scores, key);
    }
    const bool all_seen = key >= keys_seen(problem_, warp_.row + Tiles::kWarpRows - 1).begin &&
                          key + Tiles::kKeyRows <= keys_seen(problem_, warp_.row).end;
    if (!all_seen) hide_out_of_band(scores, key);
  }

  // The words that keep, of registers with two neighbouring value rows each, those before the true length:
  // {rows 2q, 2q + 1, rows 2q + 8, 2q + 9} of the k-th 16 rows of the tile.
  __device__ uint2 real_rows(int32_t key, int k) const {
    const int32_t row = key + k * kMmaDepth + lane_column();
    return {real_pair(row), real_pair(row + 8)};
  }

 private:
  // The first of the two neighbouring columns that a lane holds of each 8.
  __device__ static int lane_column() { return static_cast<int>(threadIdx.x) % 4 * 2; }

  template <typename Body>
  __device__ static void for_each_row(Body body) {
#pragma unroll
    for (int strip = 0; strip < Tiles::kStrips; ++strip) {
#pragma unroll
      for (int half = 0; half < 2; ++half) body(strip, half);
    }
  }

  // Calls body(score, key position) for all that this lane holds of one row.
  template <typename Body>
  __device__ void for_each_key(Sums (&scores)[Tiles::kKeyTiles], int half, int32_t key, Body body) const {
#pragma unroll
    for (int tile = 0; tile < Tiles::kKeyTiles; ++tile) {
#pragma unroll
      for (int column = 0; column < 2; ++column) {
        body(scores[tile][2 * half + column], key + tile * kMmaColumns + lane_column() + column);
      }
    }
  }

  __device__ uint32_t real_pair(int32_t row) const {
    const CtMask low = ct_less(row, lengths_.key_value), high = ct_less(row + 1, lengths_.key_value);
    return (low.bits & 0x0000ffffu) | (high.bits & 0xffff0000u);
  }

  __device__ void hide_out_of_band(Scores& scores, int32_t key) const {
    for_each_row([&](int strip, int half) {
      const Range seen = keys_seen(problem_, row(strip, half));
      for_each_key(scores[strip], half, key, [&](float& score, int32_t s) {
        score = s >= seen.begin && s < seen.end ? score : -INFINITY;
      });
    });
  }

  __device__ void hide_past_lengths(Scores& scores, int32_t key) const {
    for_each_row([&](int strip, int half) {
      const CtMask is_real = ct_less(row(strip, half), lengths_.query);
      for_each_key(scores[strip], half, key, [&](float& score, int32_t s) {
        score = ct_select(is_real & ct_less(s, lengths_.key_value), score, -INFINITY);
      });
    });
  }

  // Places outside the problem repeat the last one; what they yield is hidden afterwards, or not stored.
  template <typename Pointer>
  __device__ int64_t row_offset(const ScorePlane<Pointer>& plane, int strip, int half) const {
    const int32_t t = min(row(strip, half), static_cast<int32_t>(problem_.shape.T) - 1);
    return offset_in(plane, {warp_.v, warp_.b, warp_.head, t, 0});
  }
  __device__ int32_t inside(int32_t s) const { return min(s, static_cast<int32_t>(problem_.shape.S) - 1); }

  __device__ void hide_masked(Scores& scores, int32_t key) const {
    for_each_row([&](int strip, int half) {
      const uint8_t* const mask = problem_.mask.data + row_offset(problem_.mask, strip, half);
      for_each_key(scores[strip], half, key, [&](float& score, int32_t s) {
        const CtMask takes_part = ct_nonzero(mask[along(inside(s), problem_.mask.stride_s)]);
        score = ct_select(takes_part, score, -INFINITY);
      });
    });
  }

  template <typename Element>
  __device__ void add_bias(Scores& scores, int32_t key) const {
    for_each_row([&](int strip, int half) {
      const Element* const bias =
          static_cast<const Element*>(problem_.bias.data) + row_offset(problem_.bias, strip, half);
      for_each_key(scores[strip], half, key, [&](float& score, int32_t s) {
        const float term = static_cast<float>(bias[along(inside(s), problem_.bias.stride_s)]);
        score = fmaf(problem_.scale, score, term);
      });
    });
  }

  __device__ void scale_and_add_bias(Scores& scores, int32_t key) const {
    if (problem_.bias.data == nullptr) {
      for_each_row([&](int strip, int half) {
        for_each_key(scores[strip], half, key, [&](float& score, int32_t) { score *= problem_.scale; });
      });
      return;
    }
    switch (problem_.bias_dtype) {
      case DType::kFloat32: return add_bias<float>(scores, key);
      case DType::kBFloat16: return add_bias<__nv_bfloat16>(scores, key);
      case DType::kFloat16: return add_bias<__half>(scores, key);
    }
  }

  const Problem& problem_;
  Place warp_;
  TrueLengths lengths_;
};

}  // namespace dhp
