// Ways to make ptxas keep what the source says.

#pragma once

constexpr int kWorkSteps = 64;

// A body that stays behind a branch: short ones become guarded instructions. Each step waits for the one
// before.
__device__ inline void long_work(float* out) {
#pragma unroll 1
  for (int step = 0; step < kWorkSteps; ++step) out[step] = fmaf(out[step], 0.5f, out[step + 1]);
}

// A value whose origin the compiler cannot see, so that it must keep it rather than compute it again.
__device__ inline int opaque(int value) {
  asm volatile("mov.b32 %0, %0;" : "+r"(value));
  return value;
}
__device__ inline float opaque(float value) { return __int_as_float(opaque(__float_as_int(value))); }
