// The online softmax with one multiply-add a score: exp2(c score - reference), where the reference of a row
// is its running maximum times c, rounded.
//
// What the rounding leaves, up to 2^-24 of the reference, is the same factor for every key of a row, so it
// cancels in the output; earlier results are rescaled by the difference of two rounded references, and the
// sum's logarithm gets it back at the end. Where the reference is so large that this factor could overflow,
// scores that differ at all differ by more than exp2 can show, and a power of two in the place of c makes the
// reference exact.

#pragma once

#include "device/ct.cuh"
#include "device/mma.cuh"
#include "device/softmax.cuh"

namespace dhp {

// Of the two rows that a lane has of 64.
struct FusedSoftmax {
  static constexpr float kLowest =
      -0x1p100f;  // finite, so that a row in which nothing takes part needs no test
  static constexpr float kExactBelow = 0x1p31f;

  float max[kStripRows] = {kLowest, kLowest};
  float reference[kStripRows];
  float sum[kStripRows] = {};  // this lane's share; not used where the product sums

  // c  positive, of the exponent
  __device__ explicit FusedSoftmax(float c) {
    for (float& of_row : reference) of_row = kLowest * factor(kLowest, c);
  }

  // c or, for a large maximum, the next power of two.
  __device__ static float factor(float max, float c) {
    const uint32_t power = (__float_as_uint(c) + 0x007fffffu) & 0x7f800000u;
    const int32_t size = static_cast<int32_t>(__float_as_uint(max * c) & 0x7fffffffu);
    return ct_select(ct_less(size, static_cast<int32_t>(__float_as_uint(kExactBelow))), c,
                     __uint_as_float(power));
  }

  // Takes the maxima of a tile into account; returns what earlier results must be multiplied by.
  //   factors  to be used for this tile
  template <int kTiles>
  __device__ void take_max(const Sums (&scores)[kTiles], float c, float (&factors)[kStripRows],
                           float (&rescale)[kStripRows]) {
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
      const float new_reference = max[row] * factors[row];
      rescale[row] = ct_exp2(reference[row] - new_reference);
      reference[row] = new_reference;
    }
  }

  // Base-2 logarithm of the sum of exp2(c (score - max)), from the sum over the row.
  __device__ float log2_sum(int row, float row_sum, float c) const {
    return ct_log2(row_sum) - fmaf(max[row], factor(max[row], c), -reference[row]);
  }
};

}  // namespace dhp
