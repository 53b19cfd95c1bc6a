// Control flow of every sort: loops, switches, calls, pointers to functions, divergence, warp collectives,
// barriers, clocks and traps. Only the def/use of each instruction and the graph are held against nvdisasm.

#include <cooperative_groups.h>

#include <cstdint>

namespace {

__device__ __noinline__ float polynomial(float x, int n) {
  float sum = 0.0f;
  for (int i = 0; i < n; ++i) sum = fmaf(sum, x, static_cast<float>(i));
  return sum;
}
__device__ __noinline__ float first(float x) { return x * 3.0f + 1.0f; }
__device__ __noinline__ float second(float x) { return x * x - 2.0f; }
using Function = float (*)(float);
__device__ Function const kFunctions[2] = {first, second};

__device__ __noinline__ int fibonacci(int n) { return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2); }

}  // namespace

__global__ void calls(const float* in, float* out, int n) {
  out[0] = polynomial(in[threadIdx.x], n) + polynomial(in[threadIdx.x + 1], 2 * n);
  out[1] = in[2] / in[3];
  out[2] = static_cast<float>(fibonacci(n));
}

__global__ void indirect(const float* in, float* out, int which) {
  out[0] = kFunctions[which & 1](in[threadIdx.x]);
}

__global__ void cases(const float* in, float* out, int n) {
  float x = in[threadIdx.x];
  switch (n) {
    case 0: x = sinf(x); break;
    case 1: x = logf(x) * x; break;
    case 2: x = expf(x) - 1.0f; break;
    case 3: x = rsqrtf(x); break;
    case 4: x = x * x * x; break;
    case 5: out[64] = x; break;
    case 6: x = tanhf(x); break;
    case 7: x = out[96] + x; break;
    default: x = 0.0f;
  }
  out[threadIdx.x] = x;
}

__global__ void warps(const int* in, int* out, int lane) {
  int x = in[threadIdx.x];
  out[0] = __shfl_sync(~0u, x, lane) + __shfl_up_sync(~0u, x, 1) + __shfl_down_sync(~0u, x, 2);
  out[1] = __shfl_xor_sync(~0u, x, 4) + __ballot_sync(~0u, x > 0);
  out[2] = __any_sync(~0u, x > 3) + __all_sync(~0u, x < 9);
  out[3] = __reduce_add_sync(~0u, x) + __reduce_max_sync(~0u, x) + __reduce_or_sync(~0u, x);
  out[4] = __match_any_sync(~0u, x);
  int all_same;
  out[5] = __match_all_sync(~0u, x, &all_same) + all_same;
  out[6] = __activemask();
  if (x > 7) {
    auto group = cooperative_groups::coalesced_threads();
    out[7] = group.size() + group.shfl(x, 0);
    __syncwarp(group.thread_rank() == 0 ? 1u : ~0u);
  }
  if (threadIdx.x & 4) __nanosleep(x);
  if (x == 12345) __trap();
  out[8] = __syncthreads_count(x > 0) + __syncthreads_or(x) + __syncthreads_and(x);
}

__global__ void divergent_loop(int* out, const int* in, int n) {
  int steps = 0;
  for (int i = threadIdx.x; i < n; i += in[i]) {
    if (in[i] & 1) {
      int j = in[i];
      while (j > steps) j -= in[j], ++steps;
    } else if (in[i] == 99) {
      break;
    }
  }
  out[threadIdx.x] = steps;
}

__global__ void barriers(float* data) {
  asm volatile("bar.sync 1, 64;");
  asm volatile("bar.arrive 2, 96;");
  data[threadIdx.x] += 1.0f;
  __threadfence();
  __threadfence_block();
  __threadfence_system();
  __syncthreads();
  asm volatile("bar.sync %0, %1;" ::"r"(static_cast<int>(threadIdx.x) / 64 + 3), "r"(64));
}

__global__ void clocks(int64_t* out) {
  const int64_t start = clock64();
  out[1] = clock();
  uint64_t nanoseconds;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(nanoseconds));
  uint32_t place;
  asm volatile("mov.u32 %0, %%smid;" : "=r"(place));
  out[2] = nanoseconds + place;
  out[0] = clock64() - start;
}
