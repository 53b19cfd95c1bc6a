// Division by numbers that a launch knows: a multiplication, where the machine's division takes a score of
// instructions one after the other.

#pragma once

#include <cstdint>

namespace dhp {

// A divisor from 1 to 2^31 - 1. Exact for dividends below 2^31: factor is 2^shift / divisor rounded up, and
// 2^shift is at least 2^31 times the divisor, so that what is too much stays below 1 / divisor. [Granlund and
// Montgomery, Division by invariant integers using multiplication, 1994]
struct Divisor {
  uint32_t divisor, factor;
  int shift;

  static Divisor of(int64_t divisor) {
    int bits = 0;
    while (int64_t{1} << bits < divisor) ++bits;
    const int shift = 31 + bits;
    const uint64_t factor = ((uint64_t{1} << shift) + divisor - 1) / divisor;
    return {static_cast<uint32_t>(divisor), static_cast<uint32_t>(factor), shift};
  }

  // Splits the fastest axis, of this size, off a flat index.
  __device__ uint32_t take_index(uint32_t& flat) const {
    const uint32_t whole = static_cast<uint32_t>(static_cast<uint64_t>(flat) * factor >> shift);
    const uint32_t index = flat - whole * divisor;
    flat = whole;
    return index;
  }
};

}  // namespace dhp
