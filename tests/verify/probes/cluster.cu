// Two blocks share what they compute: multicast loads, cluster barriers, remote arrivals, st.async through
// mapa, and a read of the other block's memory.

#include "hopper.cuh"

namespace {

constexpr int kTileBytes = 64 * 64 * 2;
constexpr int kThreads = 128;

struct Shared {
  alignas(1024) uint8_t tile[kTileBytes];
  alignas(16) float4 received[kThreads];
  float sums[kThreads];
  alignas(8) uint64_t loaded, arrived, consumed;
};

}  // namespace

// expect: SAFE
__global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(kThreads, 1)
    cluster_exchange(const __grid_constant__ TensorMap map, float* out) {
  __shared__ Shared shared;
  const uint32_t loaded = shared_address(&shared.loaded), arrived = shared_address(&shared.arrived);
  const uint32_t consumed = shared_address(&shared.consumed);
  const uint32_t rank = cluster_rank(), peer = rank ^ 1;
  if (threadIdx.x == 0) {
    mbarrier_init(loaded, 1);
    mbarrier_init(arrived, 1);
    mbarrier_init(consumed, 2);
    fence_mbarrier_init();
  }
  cluster_arrive_relaxed();
  cluster_wait();
  if (threadIdx.x < 32 && elect_one()) {
    mbarrier_expect_tx(loaded, 2 * kTileBytes);
    mbarrier_expect_tx(arrived, sizeof(shared.received));
    tma_load_2d_multicast(shared_address(shared.tile), &map, loaded, 0, 64 * (blockIdx.x + rank), 3);
  }
  mbarrier_wait(loaded, 0);
  float4 sum = {};
  for (int row = 0; row < 64; row += 4) {
    const float4 words = reinterpret_cast<const float4*>(shared.tile)[row * 2 + threadIdx.x % 8];
    sum = {sum.x + words.x, sum.y + words.y, sum.z + words.z, sum.w + words.w};
  }
  store_async(map_to_rank(shared_address(&shared.received[threadIdx.x]), peer), sum,
              map_to_rank(arrived, peer));
  mbarrier_arrive_remote(consumed, peer);
  mbarrier_wait(arrived, 0);
  const float4 other = shared.received[threadIdx.x];
  shared.sums[threadIdx.x] = sum.x + other.x + other.y;
  cluster_arrive();
  cluster_wait();
  const float theirs = load_remote(map_to_rank(shared_address(&shared.sums[threadIdx.x]), peer));
  out[blockIdx.x * kThreads + threadIdx.x] = theirs + other.z + other.w;
  cluster_arrive();
  cluster_wait();
}
