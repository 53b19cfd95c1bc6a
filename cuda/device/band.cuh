// Which keys a query sees: public, so the rest is skipped.

#pragma once

#include "params.h"

namespace dhp {

// Positions [begin, end).
struct Range {
  int32_t begin, end;
};

// The part of [from, to] that lies in an axis of `size`.
__device__ inline Range clip(int32_t from, int32_t to, int64_t size) {
  return {max(from, 0), min(to, static_cast<int32_t>(size) - 1) + 1};
}

// The keys that query t sees: t - left <= s <= t + right. The launcher holds the band to the shape, whose
// axes have at most 2^30 positions, so that 32 bits suffice for any t of the problem.
//   problem  has a band and a shape
template <typename SomeProblem>
__device__ Range keys_seen(const SomeProblem& problem, int32_t t) {
  const int32_t left = static_cast<int32_t>(problem.band.left);
  const int32_t right = static_cast<int32_t>(problem.band.right);
  return clip(t - left, t + right, problem.shape.S);
}

// The queries that see key s.
__device__ inline Range queries_seeing(const Problem& problem, int32_t s) {
  const int32_t left = static_cast<int32_t>(problem.band.left);
  const int32_t right = static_cast<int32_t>(problem.band.right);
  return clip(s - right, s + left, problem.shape.T);
}

}  // namespace dhp
