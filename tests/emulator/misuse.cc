// Kernels that do what a GPU punishes, some of them only now and then: the emulator must, always.

#include "misuse.h"

#include "device/ptx.cuh"
#include "device/warp.cuh"

namespace dhp {
extern unsigned char sMemory[];
namespace {

constexpr int kThreads = 64;
alignas(16) float ones[kThreads * 4];
float (&results)[128] = misuse::results;

float shared_float(uint32_t at) { return ptx::load_shared_2(at & ~7u).x; }

void proper(int thread) {
  const uint32_t base = ptx::shared_address(sMemory);
  ptx::copy_16_async(base + 16 * thread, ones + 4 * thread, 16);
  ptx::close_copy_group();
  ptx::wait_for_copies<0>();
  __syncthreads();
  results[thread] = shared_float(base + 16 * (kThreads - 1 - thread));
  results[thread] += __shfl_xor_sync(kAllLanes, results[thread], 1);
}
void copy_that_nobody_waits_for(int thread) {
  const uint32_t base = ptx::shared_address(sMemory);
  ptx::copy_16_async(base + 16 * thread, ones + 4 * thread, 16);
  ptx::close_copy_group();
  results[thread] = shared_float(base + 16 * thread);
  ptx::wait_for_copies<0>();
}
void missing_barrier(int thread) {
  const uint32_t base = ptx::shared_address(sMemory);
  ptx::copy_16_async(base + 16 * thread, ones + 4 * thread, 16);
  ptx::close_copy_group();
  ptx::wait_for_copies<0>();
  results[thread] = shared_float(base + 16 * (kThreads - 1 - thread));
}
void store_under_a_copy(int thread) {
  const uint32_t place = ptx::shared_address(sMemory) + 16 * thread;
  ptx::copy_16_async(place, ones, 16);
  ptx::close_copy_group();
  ptx::store_shared(place + 4, 0);
  ptx::wait_for_copies<0>();
}
void copy_under_way_at_the_end(int thread) {
  ptx::copy_16_async(ptx::shared_address(sMemory) + 16 * thread, ones, 16);
  ptx::close_copy_group();
}
void barrier_for_one_warp(int thread) {
  if (thread < kWarpLanes) __syncthreads();
}
void lanes_apart(int thread) {
  if (thread % 2 == 0) {
    __syncwarp();
  } else {
    results[thread] = __shfl_xor_sync(kAllLanes, 1.0f, 1);
  }
}
void lane_that_never_comes(int thread) {
  if (thread != 5) __syncwarp();
}
void outside_of_shared_memory(int thread) {
  ptx::store_shared(ptx::shared_address(sMemory) + 16 * kThreads + 4 * thread, 0);
}
void shared_address_not_aligned(int) { ptx::load_shared_4(ptx::shared_address(sMemory) + 8); }
void global_address_not_aligned(int) { ptx::copy_16_async(ptx::shared_address(sMemory), ones + 1, 16); }

constexpr misuse::Named kChecks[] = {
    {"proper", proper},
    {"copy_that_nobody_waits_for", copy_that_nobody_waits_for},
    {"missing_barrier", missing_barrier},
    {"store_under_a_copy", store_under_a_copy},
    {"copy_under_way_at_the_end", copy_under_way_at_the_end},
    {"barrier_for_one_warp", barrier_for_one_warp},
    {"lanes_apart", lanes_apart},
    {"lane_that_never_comes", lane_that_never_comes},
    {"outside_of_shared_memory", outside_of_shared_memory},
    {"shared_address_not_aligned", shared_address_not_aligned},
    {"global_address_not_aligned", global_address_not_aligned},
};

}  // namespace
}  // namespace dhp

int main(int, char** arguments) {
  std::fill(std::begin(dhp::ones), std::end(dhp::ones), 1.0f);
  return misuse::run(dhp::kChecks, arguments[1], dhp::kThreads, 16 * dhp::kThreads);
}
