// The online softmax with one multiply-add a score: exp2(c score - reference), where the reference of a row
// is its running maximum times c, rounded.
//
// What the rounding leaves, up to 2^-24 of the reference, is the same factor for every key of a row, so it
// cancels in the output; earlier results are rescaled by the difference of two rounded references, and the
// sum's logarithm gets it back at the end. Where the reference is so large that this factor would take
// weights out of the range of float16, scores that differ at all differ by 16 in the exponent, and a power of
// two in the place of c makes the reference exact.

#pragma once

#include "device/ct.cuh"
#include "device/running_max.cuh"

namespace dhp {

// Of scores that are dot products.
struct FusedSoftmax : RunningMax {
  // Finite, so that a row in which nothing takes part needs no test.
  static constexpr float kLowest = -0x1p100f;
  static constexpr float kExactBelow = 0x1p28f;  // 2^-24 of it, halved by rounding: factors from 2^-8 to 2^8

  float reference[kStripRows];
  float sum[kStripRows] = {};  // this lane's share; not used where the product sums

  // c  positive, of the exponent
  __device__ explicit FusedSoftmax(float c) : RunningMax{{kLowest, kLowest}} {
    for (float& of_row : reference) of_row = kLowest * factor(kLowest, c);
  }

  // c or, for a large maximum, the next power of two.
  __device__ static float factor(float max, float c) {
    const float power = __uint_as_float((__float_as_uint(c) + 0x007fffffu) & 0x7f800000u);
    const int32_t size = static_cast<int32_t>(__float_as_uint(max * c) & 0x7fffffffu);
    return ct_select(ct_less(size, static_cast<int32_t>(__float_as_uint(kExactBelow))), c, power);
  }

  // What scores are compared with. Of a tile's, with the factors that it was taken with.
  __device__ float reference_of(int row) const { return reference[row]; }
  __device__ static float weight(float score, float factor, float reference) {
    return ct_exp2(fmaf(score, factor, -reference));
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
  // When all tiles have been looked at.
  __device__ void agree(float c, float (&factors)[kStripRows]) {
    agree_on_max();
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

}  // namespace dhp
