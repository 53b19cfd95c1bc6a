// Not leaks: what fast Hopper kernels do with barriers, elections, registers, clusters and matrix products.

#include "hopper.cuh"

using hopper::Barrier;
using hopper::TensorMap;

constexpr int kTileBytes = 64 * 128;
constexpr int kStages = 2;

// Waits for a phase, asking again until it is over: how often depends on scheduling, not on data.
//
// expect: SAFE
// sass: SYNCS.PHASECHK.TRANS64.TRYWAIT P\d
// sass: @!P\d BRA
__global__ void B09_wait_for_phase(const float* rows, float* out) {
  __shared__ Barrier full;
  if (threadIdx.x == 0) hopper::barrier_init(&full, blockDim.x);
  __syncthreads();
  const float row = rows[threadIdx.x];
  hopper::barrier_arrive(&full);
  hopper::barrier_wait(&full, 0);
  out[threadIdx.x] = row;
}

// The same with a pause between two questions.
//
// expect: SAFE
// sass: SYNCS.PHASECHK
// sass: NANOSLEEP 0x14
__global__ void B09_wait_with_pause(const float* rows, float* out) {
  __shared__ Barrier full;
  if (threadIdx.x == 0) hopper::barrier_init(&full, blockDim.x);
  __syncthreads();
  const float row = rows[threadIdx.x];
  hopper::barrier_arrive(&full);
  while (!hopper::barrier_try_wait(&full, 0)) __nanosleep(20);
  out[threadIdx.x] = row;
}

// One elected thread loads tile after tile into stages of shared memory; all others compute on them.
//
// expect: SAFE
// sass: ELECT P\d
// sass: UTMALDG
__global__ void B10_pipeline_of_tiles(const __grid_constant__ TensorMap map, int num_tiles, float* out) {
  alignas(1024) __shared__ float sTiles[kStages][kTileBytes / 4];
  __shared__ Barrier full[kStages], empty[kStages];
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      hopper::barrier_init(&full[stage], 1);
      hopper::barrier_init(&empty[stage], blockDim.x - 32);
    }
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    if (hopper::elect_one()) {
#pragma unroll 1
      for (int tile = 0; tile < num_tiles; ++tile) {
        const int stage = tile % kStages;
        hopper::barrier_wait(&empty[stage], tile / kStages % 2 ^ 1);
        hopper::barrier_expect_bytes(&full[stage], kTileBytes);
        hopper::tensor_load(sTiles[stage], &map, &full[stage], 0, 64 * tile);
      }
    }
  } else {
    float sum = 0.0f;
#pragma unroll 1
    for (int tile = 0; tile < num_tiles; ++tile) {
      const int stage = tile % kStages;
      hopper::barrier_wait(&full[stage], tile / kStages % 2);
      sum += sTiles[stage][threadIdx.x];
      hopper::barrier_arrive(&empty[stage]);
    }
    out[threadIdx.x] = sum;
  }
}

// Brings a tile to all blocks of a cluster, and stores one from shared memory.
//
// expect: SAFE
// sass: @P\d ELECT P\d
// sass: UTMALDG.2D.MULTICAST
// sass: BRA.U.ANY
// sass: UTMASTG
__global__ void __cluster_dims__(2)
    B10_multicast_and_store(const __grid_constant__ TensorMap from, const __grid_constant__ TensorMap to,
                            const float* factors) {
  const float factor = factors[threadIdx.x];
  alignas(1024) __shared__ float sTile[kTileBytes / 4];
  __shared__ Barrier full;
  if (threadIdx.x == 0) {
    hopper::barrier_init(&full, 1);
    hopper::barrier_expect_bytes(&full, kTileBytes);
  }
  hopper::cluster_arrive();
  hopper::cluster_wait();
  if (threadIdx.x == 0 && blockIdx.x % 2 == 0) {
    hopper::tensor_load_multicast(sTile, &from, &full, 0, 64 * blockIdx.x, 3);
  }
  hopper::barrier_wait(&full, 0);
  sTile[threadIdx.x] *= factor;
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  if (threadIdx.x == 0) hopper::tensor_store(&to, sTile, 0, 64 * blockIdx.x);
}

// Warpgroups give registers to each other; who takes them asks again until there are enough.
//
// expect: SAFE
// sass: USETMAXREG.TRY_ALLOC.CTAPOOL UP\d
// sass: @!P\d BRA
__global__ void __launch_bounds__(256, 1) B11_registers_by_role(const float* rows, float* out) {
  if (threadIdx.x < 128) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    out[threadIdx.x] = rows[threadIdx.x];
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    out[threadIdx.x] = 2.0f * rows[threadIdx.x];
  }
}

// Secret operands in shared memory, and the result fed to a second product from registers.
//
// expect: SAFE
// sass: HGMMA.*R\d+, gdesc\[UR\d+\], RZ, !UPT
// sass: HGMMA.*R\d+, R\d+, gdesc\[UR\d+\], R\d+, UP\d
__global__ void __launch_bounds__(128)
    B13_matrix_products(const uint4* tiles, const float* biases, int num_steps, float* out) {
  const float bias = biases[threadIdx.x];
  alignas(1024) __shared__ uint4 sTiles[2 * kTileBytes / 16];
  hopper::copy_to_shared(sTiles, tiles, 2 * kTileBytes);
  float scores[4], sums[4];
#pragma unroll 1
  for (int step = 0; step < num_steps; ++step) {
    hopper::wgmma(scores, hopper::tile_descriptor(sTiles), hopper::tile_descriptor(sTiles + kTileBytes / 16),
                  false);
    hopper::wgmma_wait();
    const uint32_t p[4] = {__float_as_uint(scores[0]), __float_as_uint(scores[1]), __float_as_uint(scores[2]),
                           __float_as_uint(scores[3])};
    hopper::wgmma(sums, p, hopper::tile_descriptor(sTiles + kTileBytes / 16), step > 0);
    hopper::wgmma_wait();
  }
  for (int i = 0; i < 4; ++i) out[4 * threadIdx.x + i] = sums[i] + bias;
}

// Reads and writes the neighbour's shared memory: whose it is follows from the rank.
//
// expect: SAFE
// sass: STAS
// sass: UCGABAR_WAIT
__global__ void __cluster_dims__(4) Y01_neighbour_in_cluster(const float* rows, uint32_t* out) {
  __shared__ uint32_t sRow[128];
  __shared__ Barrier arrived;
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  if (threadIdx.x == 0) {
    hopper::barrier_init(&arrived, 1);
    hopper::barrier_expect_bytes(&arrived, sizeof(sRow));
  }
  hopper::cluster_arrive();
  hopper::cluster_wait();
  const uint32_t next = (rank + 1) % 4;
  hopper::store_async(hopper::address_in_block(&sRow[threadIdx.x], next), __float_as_uint(rows[threadIdx.x]),
                      hopper::address_in_block(&arrived, next));
  hopper::barrier_wait(&arrived, 0);
  out[threadIdx.x] = sRow[threadIdx.x];
  hopper::cluster_arrive();
  hopper::cluster_wait();
}

// Begins before the kernel ahead of it has ended, and lets the next one begin.
//
// expect: SAFE
// sass: ACQBULK
// sass: PREEXIT
__global__ void Y02_overlap_of_kernels(const float* rows, float* out) {
  asm volatile("griddepcontrol.wait;" ::: "memory");
  const float row = rows[threadIdx.x];
  asm volatile("griddepcontrol.launch_dependents;");
  out[threadIdx.x] = 2.0f * row;
}

// Maxima and minima of three and packed ones.
//
// expect: SAFE
// sass: VIMNMX3
// sass: VIADDMNMX
__global__ void Y03_integer_maxima(const int* tokens, int low, int* out) {
  const int a = tokens[threadIdx.x], b = tokens[threadIdx.x + 32], c = tokens[threadIdx.x + 64];
  out[threadIdx.x] = __vimax3_s32(a, b, c) + __vimin3_s32_relu(a, b, low) + __viaddmax_s32(a, b, c);
}

// Each of four threads sets up a barrier of its own: the address, uniform by design, is taken from one lane
// after the other.
//
// expect: SAFE
// sass: @P\d R2UR P\d, UR\d+, R\d+
// sass: @P\d BRA.U.ANY
__global__ void Y05_barriers_set_up_by_threads(const float* rows, float* out) {
  __shared__ Barrier full[4];
  if (threadIdx.x < 4) hopper::barrier_init(&full[threadIdx.x], blockDim.x);
  __syncthreads();
  const float row = rows[threadIdx.x];
  hopper::barrier_arrive(&full[blockIdx.x & 3]);
  hopper::barrier_wait(&full[blockIdx.x & 3], 0);
  out[threadIdx.x] = row;
}
