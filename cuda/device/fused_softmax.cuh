// The online softmax with one multiply-add a score: exp2(c score - reference), where the reference of a row
// is its running maximum times c, rounded.
//
// What the rounding leaves, up to 2^-24 of the reference, is the same factor for every key of a row, so it
// cancels in the output; earlier results are rescaled by the difference of two rounded references, and the
// sum's logarithm gets it back at the end. Where the reference is so large that this factor could overflow,
// scores that differ at all differ by more than exp2 can show, and a power of two in the place of c makes the
// reference exact.
//
// Finished scores, with a bias, may be the lowest finite number, and c is then log2(e). The power is 1 for
// them: 2 would overflow, and from 2^30 on scores differ by 2^7 at least.

#pragma once

#include <cfloat>

#include "device/ct.cuh"
#include "device/mma.cuh"
#include "device/softmax.cuh"

namespace dhp {

// Of the two rows that a lane has of 64.
template <bool kIsOfFinishedScores>
struct FusedSoftmaxOf {
  // Finite, so that a row in which nothing takes part needs no test.
  static constexpr float kLowest = kIsOfFinishedScores ? -FLT_MAX : -0x1p100f;
  static constexpr float kExactBelow = 0x1p31f;

  float max[kStripRows] = {kLowest, kLowest};
  float reference[kStripRows];
  float sum[kStripRows] = {};  // this lane's share; not used where the product sums

  // c  positive, of the exponent
  __device__ explicit FusedSoftmaxOf(float c) {
    for (float& of_row : reference) of_row = kLowest * factor(kLowest, c);
  }

  // c or, for a large maximum, the power of two.
  __device__ static float factor(float max, float c) {
    const uint32_t next = (__float_as_uint(c) + 0x007fffffu) & 0x7f800000u;
    const float power = kIsOfFinishedScores ? 1.0f : __uint_as_float(next);
    const int32_t size = static_cast<int32_t>(__float_as_uint(max * c) & 0x7fffffffu);
    return ct_select(ct_less(size, static_cast<int32_t>(__float_as_uint(kExactBelow))), c, power);
  }

  // Takes the maxima of a tile into account; returns what earlier results must be multiplied by.
  //   factors  to be used for this tile
  template <int kTiles>
  __device__ void take_max(const Sums (&scores)[kTiles], float c, float (&factors)[kStripRows],
                           float (&rescale)[kStripRows]) {
    look_at(scores);
    const float old[kStripRows] = {reference[0], reference[1]};
    agree(c, factors);
#pragma unroll
    for (int row = 0; row < kStripRows; ++row) rescale[row] = ct_exp2(old[row] - reference[row]);
  }

  // The same in two steps, for a maximum over several tiles: first this lane's share of each.
  template <int kTiles>
  __device__ void look_at(const Sums (&scores)[kTiles]) {
    // Both rows step by step: the exponentials of one must not start, and take registers, while the other's
    // maximum is looked for.
    float odd[kStripRows];
#pragma unroll
    for (int row = 0; row < kStripRows; ++row) odd[row] = scores[0][2 * row + 1];
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
#pragma unroll
      for (int row = 0; row < kStripRows; ++row) {
        max[row] = fmaxf(max[row], scores[i][2 * row]);
        if (i > 0) odd[row] = fmaxf(odd[row], scores[i][2 * row + 1]);
      }
    }
#pragma unroll
    for (int row = 0; row < kStripRows; ++row) max[row] = fmaxf(max[row], odd[row]);
  }
  // Then what the four lanes of a row agree on.
  __device__ void agree(float c, float (&factors)[kStripRows]) {
#pragma unroll
    for (int distance = 1; distance < 4; distance *= 2) {
      float others[kStripRows];
#pragma unroll
      for (int row = 0; row < kStripRows; ++row) others[row] = __shfl_xor_sync(kAllLanes, max[row], distance);
#pragma unroll
      for (int row = 0; row < kStripRows; ++row) max[row] = fmaxf(max[row], others[row]);
    }
#pragma unroll
    for (int row = 0; row < kStripRows; ++row) {
      factors[row] = factor(max[row], c);
      reference[row] = max[row] * factors[row];
    }
  }

  // Takes in the softmax over other keys; sums are of whole rows then. Returns what results must be
  // multiplied by, this one's and the other's. The reference grows with the maximum, so the larger one is
  // that of the larger maximum.
  //   other  reference of both rows, then sum of both
  __device__ void merge(const float (&other)[2 * kStripRows], float (&weights)[kStripRows],
                        float (&other_weights)[kStripRows]) {
#pragma unroll
    for (int row = 0; row < kStripRows; ++row) {
      const float new_reference = fmaxf(reference[row], other[row]);
      weights[row] = ct_exp2(reference[row] - new_reference);
      other_weights[row] = ct_exp2(other[row] - new_reference);
      reference[row] = new_reference;
      sum[row] = weights[row] * sum[row] + other_weights[row] * other[kStripRows + row];
    }
  }

  // Base-2 logarithm of the sum of exp2(c (score - max)), from the sum over the row.
  __device__ float log2_sum(int row, float row_sum, float c) const {
    return ct_log2(row_sum) - fmaf(max[row], factor(max[row], c), -reference[row]);
  }
};

using FusedSoftmax = FusedSoftmaxOf<false>;

}  // namespace dhp
