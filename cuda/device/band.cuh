// Which keys a query sees: public, so the rest is skipped.

#pragma once

#include "params.h"

namespace dhp {

// Positions [begin, end).
struct Range {
  int32_t begin, end;
};

// The part of [from, to] that lies in an axis of `size`. The launcher holds the band to the shape, so that
// the result fits 32 bits.
__device__ inline Range clip(int64_t from, int64_t to, int64_t size) {
  return {static_cast<int32_t>(max(from, int64_t{0})), static_cast<int32_t>(min(to + 1, size))};
}

// The keys that query t sees: t - left <= s <= t + right.
__device__ inline Range keys_seen(const Problem& problem, int32_t t) {
  return clip(t - problem.band.left, t + problem.band.right, problem.shape.S);
}

// The queries that see key s.
__device__ inline Range queries_seeing(const Problem& problem, int32_t s) {
  return clip(s - problem.band.right, s + problem.band.left, problem.shape.T);
}

}  // namespace dhp
