// What the 32 lanes of a warp tell each other. Who reads from whom is fixed: the value may be secret, the
// lane is not.

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

// The reductions pair lanes that differ in one bit. Both partners add the same two numbers, so every lane
// ends with the same bits.
__device__ inline float warp_sum(float value) {
#pragma unroll
  for (int distance = kWarpLanes / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, distance);
  }
  return value;
}

// A NaN loses against any number; the caller must carry it on by other means.
__device__ inline float warp_max(float value) {
#pragma unroll
  for (int distance = kWarpLanes / 2; distance > 0; distance /= 2) {
    value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, distance));
  }
  return value;
}

// The value that `lane` holds. `lane` is public and the same in all lanes.
__device__ inline float warp_broadcast(float value, int lane) { return __shfl_sync(kAllLanes, value, lane); }

}  // namespace dhp
