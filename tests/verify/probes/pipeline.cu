// A producer warp group feeds two consumer warp groups through a ring of tiles, as the fast Hopper kernels
// do: tensor loads, barrier waits with back-off, setmaxnreg, elections, wgmma with A in shared memory and in
// registers.

#include "hopper.cuh"

namespace {

constexpr int kStages = 2;
constexpr int kTileBytes = 64 * 64 * 2;
constexpr int kThreads = 384;

struct Shared {
  alignas(1024) uint8_t tiles[kStages][kTileBytes];
  alignas(8) uint64_t full[kStages], empty[kStages];
};

}  // namespace

// expect: SAFE
__global__ void __launch_bounds__(kThreads, 1)
    pipeline(const __grid_constant__ TensorMap map, float* out, int num_tiles) {
  extern __shared__ __align__(1024) uint8_t memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  if (threadIdx.x == 0) {
    tma_prefetch(&map);
    for (int stage = 0; stage < kStages; ++stage) {
      mbarrier_init(shared_address(&shared.full[stage]), 1);
      mbarrier_init(shared_address(&shared.empty[stage]), 2);
    }
    fence_mbarrier_init();
  }
  __syncthreads();

  const int warp_group = __shfl_sync(0xffffffff, threadIdx.x / 128, 0);
  if (warp_group == 0) {
    release_registers<40>();
    if (threadIdx.x / 32 == 0 && elect_one()) {
      for (int tile = 0; tile < num_tiles; ++tile) {
        const int stage = tile % kStages;
        mbarrier_wait(shared_address(&shared.empty[stage]), (tile / kStages & 1) ^ 1);
        mbarrier_expect_tx(shared_address(&shared.full[stage]), kTileBytes);
        tma_load_2d(shared_address(shared.tiles[stage]), &map, shared_address(&shared.full[stage]), 0,
                    64 * tile);
      }
    }
    return;
  }

  take_registers<232>();
  float scores[8] = {}, sums[8] = {};
  for (int tile = 0; tile < num_tiles; ++tile) {
    const int stage = tile % kStages;
    mbarrier_wait(shared_address(&shared.full[stage]), tile / kStages & 1);
    const uint64_t descriptor = 0x4000004000010000ull | shared_address(shared.tiles[stage]) >> 4;
    wgmma_fence();
    wgmma_shared(scores, descriptor, descriptor, 0);
    wgmma_shared(scores, descriptor + 2, descriptor + 2, 1);
    wgmma_commit();
    wgmma_wait<0>();
    uint32_t packed[4];
    for (int i = 0; i < 4; ++i) {
      asm("ex2.approx.ftz.f32 %0, %0;" : "+f"(scores[2 * i]));
      asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed[i]) : "f"(scores[2 * i]), "f"(scores[2 * i + 1]));
    }
    wgmma_fence();
    wgmma_registers(sums, packed, descriptor);
    wgmma_commit();
    wgmma_wait<0>();
    if (threadIdx.x % 128 == 0) mbarrier_arrive(shared_address(&shared.empty[stage]));
  }
  for (int i = 0; i < 8; ++i) out[(blockIdx.x * kThreads + threadIdx.x) * 8 + i] = sums[i];
}
