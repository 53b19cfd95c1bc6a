// The 32 lanes of a warp. What they tell each other goes by shuffles whose partners are fixed: the value may
// be secret, the lane is not.

#pragma once

#include <cstdint>

namespace dhp {

inline constexpr int kWarpLanes = 32;
inline constexpr uint32_t kAllLanes = 0xffffffffu;

// Keeps a loop's test at the head of the loop: `for (...; at_head(i < n); ++i)`. All lanes of the warp loop
// together.
//
// Left alone, the compiler moves the test to the end, and where the body takes more than 4 KiB ptxas for
// sm_8x then leaves the loop by a CALL that never returns. A kernel without calls is easier to prove. A
// barrier may not be duplicated, so the test stays; on a warp that is together it is a NOP.
__device__ inline bool at_head(bool goes_on) {
  __syncwarp();
  return goes_on;
}

// A value that all lanes of the warp have, in a way that the compiler knows so.
__device__ inline int uniform(int value) { return __shfl_sync(kAllLanes, value, 0); }

// Which warp of the block this is.
__device__ inline int warp_of_block() { return uniform(static_cast<int>(threadIdx.x) / kWarpLanes); }

// Word i of lane l goes to word l of lane i, in each four lanes. By masks: as many predicates as selections
// by lane would take push others out of their registers, into the bits of a word.
__device__ inline void transpose_in_quad(uint32_t (&words)[4]) {
  const int lane = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int distance = 1; distance < 4; distance *= 2) {
    const uint32_t upper = (lane & distance) != 0 ? ~0u : 0u;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if ((i & distance) != 0) continue;
      uint32_t &low = words[i], &high = words[i + distance];
      const uint32_t other = __shfl_xor_sync(kAllLanes, (low & upper) | (high & ~upper), distance);
      low = (other & upper) | (low & ~upper);
      high = (high & upper) | (other & ~upper);
    }
  }
}

}  // namespace dhp
