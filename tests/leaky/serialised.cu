// A control of the build: a register of a product that is under way is used. ptxas waits for the product
// there and starts the next one after it; it only tells so, and the build must refuse it (cuda/nvcc.sh). With
// PROPER it must not.

#include <cstdint>

__device__ void start_product(float (&sums)[4], uint64_t left, uint64_t right) {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
  asm volatile("wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, %4, %5, 1, 1, 1, 0, 0;"
               : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
               : "l"(left), "l"(right));
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

__global__ void serialised(float* out, uint64_t left, uint64_t right) {
  float sums[4] = {};
  start_product(sums, left, right);
#ifndef PROPER
  sums[0] *= 2.0f;
#endif
  start_product(sums, left, right);
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  for (int i = 0; i < 4; ++i) out[4 * threadIdx.x + i] = sums[i];
}
