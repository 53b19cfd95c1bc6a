// The tensor memory accelerator and its barriers: what it is told must be public, what it brings is secret.

#include "hopper.cuh"

using hopper::Barrier;
using hopper::TensorMap;

constexpr int kTileBytes = 64 * 32 * 4;

// Loads the tile at a secret row: the accelerator touches its lines.
//
// sass: R2UR UR\d+, R\d+
// sass: UTMALDG.2D
__global__ void L23_tile_at_token(const __grid_constant__ TensorMap map, const int* tokens, float* out) {
  alignas(1024) __shared__ float sTile[kTileBytes / 4];
  __shared__ Barrier loaded;
  if (threadIdx.x == 0) {
    hopper::barrier_init(&loaded, 1);
    hopper::barrier_expect_bytes(&loaded, kTileBytes);
    hopper::tensor_load(sTile, &map, &loaded, 0, tokens[blockIdx.x]);  // expect: CT02
  }
  __syncthreads();
  hopper::barrier_wait(&loaded, 0);
  out[threadIdx.x] = sTile[threadIdx.x];
}

// Stores a tile behind the true length.
//
// sass: R2UR UR\d+, R\d+
// sass: UTMASTG.2D
__global__ void L23_tile_stored_at_length(const __grid_constant__ TensorMap map, const int* lengths) {
  alignas(1024) __shared__ float sTile[kTileBytes / 4];
  const int length = lengths[blockIdx.x];
  sTile[threadIdx.x] = 1.0f;
  __syncthreads();
  if (threadIdx.x == 0) hopper::tensor_store(&map, sTile, 0, length);  // expect: CT02
}

// Prefetches a tile at a secret row: nothing is loaded, and still the cache tells.
//
// sass: R2UR UR\d+, R\d+
// sass: UTMAPF.L2.2D
__global__ void L23_tile_prefetched_at_token(const __grid_constant__ TensorMap map, const int* tokens) {
  const int token = tokens[blockIdx.x];
  if (threadIdx.x == 0) hopper::tensor_prefetch(&map, 0, token);  // expect: CT02
}

// Picks one of two tensors by a secret.
//
// sass: VOTEU.ANY UP\d, P\d
// sass: USEL
// sass: UTMAPF
__global__ void L23_map_chosen_by_score(const __grid_constant__ TensorMap a,
                                        const __grid_constant__ TensorMap b, const float* scores) {
  const float score = scores[blockIdx.x];
  const TensorMap* chosen = score > 0.0f ? &a : &b;
  if (threadIdx.x == 0) hopper::tensor_prefetch(chosen, 0, 0);  // expect: CT02
}

// Sends the tile to the blocks that a secret names.
//
// sass: UTMALDG.2D.MULTICAST \[UR\d+\], \[UR\d+\], UR\d+
__global__ void __cluster_dims__(4)
    L23_multicast_to_secret_blocks(const __grid_constant__ TensorMap map, const int* tokens, float* out) {
  alignas(1024) __shared__ float sTile[kTileBytes / 4];
  __shared__ Barrier loaded;
  const uint16_t blocks = 1 << (tokens[0] & 3);
  if (threadIdx.x == 0) {
    hopper::barrier_init(&loaded, 1);
    hopper::barrier_expect_bytes(&loaded, kTileBytes);
    hopper::tensor_load_multicast(sTile, &map, &loaded, 0, 0, blocks);  // expect: CT02
  }
  __syncthreads();
  hopper::barrier_wait(&loaded, 0);
  out[threadIdx.x] = sTile[threadIdx.x];
}

// Copies as many bytes as are true.
//
// sass: UBLKCP
__global__ void L23_bulk_copy_of_length(const int* lengths, const float4* values, float* out) {
  alignas(128) __shared__ float4 sValues[64];
  __shared__ Barrier loaded;
  const uint32_t num_bytes = 16 * lengths[0];
  if (threadIdx.x == 0) {
    hopper::barrier_init(&loaded, 1);
    hopper::barrier_expect_bytes(&loaded, sizeof(sValues));
    hopper::bulk_load(sValues, values, &loaded, num_bytes);  // expect: CT02
  }
  __syncthreads();
  hopper::barrier_wait(&loaded, 0);
  out[threadIdx.x] = sValues[threadIdx.x].x;
}

// Loads a tile only if its mask summary says so.
//
// sass: @P\d BRA
// sass: UTMALDG
__global__ void L25_tensor_load_under_summary(const __grid_constant__ TensorMap map, const int* summary,
                                              float* out) {
  alignas(1024) __shared__ float sTile[kTileBytes / 4];
  __shared__ Barrier loaded;
  const int holds_keys = summary[blockIdx.x];
  if (threadIdx.x == 0) hopper::barrier_init(&loaded, 1);
  __syncthreads();
  if (threadIdx.x == 0 && holds_keys != 0) {  // expect: CT01
    hopper::barrier_expect_bytes(&loaded, kTileBytes);
    hopper::tensor_load(sTile, &map, &loaded, 0, 0);
  }
  __syncthreads();
  out[threadIdx.x] = sTile[threadIdx.x];
}

// A coordinate that is public in both cases, chosen by a vote over secrets: through predicates of the uniform
// path.
//
// sass: VOTEU.ANY UP\d, P\d
// sass: @!UP\d ULDC
// sass: UTMAPF
__global__ void L29i_vote_into_uniform_path(const __grid_constant__ TensorMap map, const int* lengths, int a,
                                            int b) {
  const bool all_long = __all_sync(0xffffffffu, lengths[threadIdx.x] > 7);
  if (threadIdx.x < 32) hopper::tensor_prefetch(&map, 0, all_long ? a : b);  // expect: CT02, CT03
}

// Data that the accelerator brought, used as an index.
//
// sass: UTMALDG
// sass: LDS
__global__ void L29k_tile_used_as_index(const __grid_constant__ TensorMap map, const float* table,
                                        float* out) {
  alignas(1024) __shared__ int sTile[kTileBytes / 4];
  __shared__ Barrier loaded;
  if (threadIdx.x == 0) {
    hopper::barrier_init(&loaded, 1);
    hopper::barrier_expect_bytes(&loaded, kTileBytes);
    hopper::tensor_load(sTile, &map, &loaded, 0, 0);
  }
  __syncthreads();
  hopper::barrier_wait(&loaded, 0);
  out[threadIdx.x] = table[sTile[threadIdx.x]];  // expect: CT02
}
