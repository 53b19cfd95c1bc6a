// From scores to probabilities and gradients of scores, in the registers that hold the sums of tensor-core
// products.

#pragma once

#include <cmath>

#include "device/ct.cuh"
#include "device/score_tile.cuh"

namespace dhp {

// What the backward pass knows of a query's row.
struct RowFacts {
  float max;
  float log2_sum;  // +inf where no key takes part, so that every probability is 0
  float delta;
};

// log_sum is -inf where no key takes part, and else not negative: the largest score adds exp(0) to the sum.
__device__ inline RowFacts row_facts(float max, float log_sum, float delta) {
  return {max, fabsf(log_sum) * kLog2E, delta};
}

// `score` becomes the probability P, `d_p` (d_out . value) becomes dS = P (dP - delta). A score of -inf gives
// 0, and a dS of 0 also in a row of NaN.
__device__ inline void score_to_gradient(float& score, float& d_p, const RowFacts& row) {
  const CtMask counts = ~ct_equal(score, -INFINITY);
  // max and log2_sum stay apart: their sum would lose log2_sum to rounding where the scores are large.
  score = ct_exp2(fmaf(score - row.max, kLog2E, -row.log2_sum));
  d_p = ct_keep(counts, score * (d_p - row.delta));
}

}  // namespace dhp
