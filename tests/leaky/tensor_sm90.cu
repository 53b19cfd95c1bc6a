// The asynchronous matrix products of Hopper: descriptors and flags must be public, operands may be secret.

#include "force.cuh"
#include "hopper.cuh"

constexpr int kTileBytes = 64 * 128;
constexpr int kThreads = 128;

// Multiplies with the tile that a secret names: one of two in shared memory.
//
// sass: R2UR UR\d+, R\d+
// sass: HGMMA.* gdesc\[UR\d+\]
__global__ void __launch_bounds__(kThreads)
    L24_descriptor_from_token(const uint4* tiles, const int* tokens, float* out) {
  alignas(1024) __shared__ uint4 sTiles[3 * kTileBytes / 16];
  const int token = tokens[blockIdx.x];
  hopper::copy_to_shared(sTiles, tiles, 3 * kTileBytes);
  float d[4] = {};
  const uint64_t a = hopper::tile_descriptor(sTiles);
  const uint64_t b = hopper::tile_descriptor(sTiles + kTileBytes / 16 * (1 + (token & 1)));
  hopper::wgmma(d, a, b, false);  // expect: CT02
  hopper::wgmma_wait();
  out[threadIdx.x] = d[0];
}

// Starts in the pipeline stage that a length leads to.
//
// sass: R2UR UR\d+, R\d+
// sass: HGMMA.* R\d+, R\d+, gdesc\[UR\d+\]
__global__ void __launch_bounds__(kThreads)
    L24_stage_from_length(const uint4* tiles, const int* lengths, const uint32_t* queries, float* out) {
  float* place = out + threadIdx.x;
  *place = 0.0f;
  alignas(1024) __shared__ uint4 sTiles[4 * kTileBytes / 16];
  const int stage = lengths[0] / 64 % 4;
  const uint32_t a[4] = {queries[threadIdx.x], queries[threadIdx.x + 128], queries[threadIdx.x + 256],
                         queries[threadIdx.x + 384]};
  hopper::copy_to_shared(sTiles, tiles, 4 * kTileBytes);
  float d[4] = {};
  const uint64_t b = hopper::tile_descriptor(sTiles + kTileBytes / 16 * stage);
  hopper::wgmma(d, a, b, false);  // expect: CT02
  hopper::wgmma_wait();
  *place = d[0];
}

// Keeps or drops what is accumulated so far, by a flag of the product.
//
// sass: HGMMA.* gdesc\[UR\d+\], R\d+, UP\d
__global__ void __launch_bounds__(kThreads)
    L28_accumulation_flag_from_score(const uint4* tiles, const float* scores, float* out) {
  alignas(1024) __shared__ uint4 sTiles[2 * kTileBytes / 16];
  const float score = scores[blockIdx.x];
  hopper::copy_to_shared(sTiles, tiles, 2 * kTileBytes);
  float d[4] = {score, score, score, score};
  const uint64_t a = hopper::tile_descriptor(sTiles);
  const uint64_t b = hopper::tile_descriptor(sTiles + kTileBytes / 16);
  hopper::wgmma(d, a, b, score > 0.0f);  // expect: CT03
  hopper::wgmma_wait();
  out[threadIdx.x] = d[0];
}

// The same by a segment: starts anew where it changes.
//
// sass: HGMMA.* R\d+, R\d+, gdesc\[UR\d+\], R\d+, !UP\d
__global__ void __launch_bounds__(kThreads)
    L28_accumulation_flag_from_segment(const uint4* tiles, const int* segments, const uint32_t* queries,
                                       float* out) {
  float* place = out + threadIdx.x;
  *place = 0.0f;
  alignas(1024) __shared__ uint4 sTiles[kTileBytes / 16];
  const int segment = segments[blockIdx.x];
  const uint32_t a[4] = {queries[threadIdx.x], queries[threadIdx.x + 128], queries[threadIdx.x + 256],
                         queries[threadIdx.x + 384]};
  hopper::copy_to_shared(sTiles, tiles, kTileBytes);
  float d[4] = {1.0f, 2.0f, 3.0f, 4.0f};
  const uint64_t b = hopper::tile_descriptor(sTiles);
  hopper::wgmma(d, a, b, segment == 7);  // expect: CT03
  hopper::wgmma_wait();
  *place = d[0];
}

// Skips a product where the mask holds no key: ptxas branches around it.
//
// sass: @!P\d BRA
// sass: HGMMA
__global__ void __launch_bounds__(kThreads)
    L28_product_under_mask_summary(const uint4* tiles, const int* summary, float* out) {
  alignas(1024) __shared__ uint4 sTiles[2 * kTileBytes / 16];
  const int holds_keys = summary[blockIdx.x];
  hopper::copy_to_shared(sTiles, tiles, 2 * kTileBytes);
  float d[4] = {1.0f, 2.0f, 3.0f, 4.0f};
  const uint64_t a = hopper::tile_descriptor(sTiles);
  const uint64_t b = hopper::tile_descriptor(sTiles + kTileBytes / 16);
  if (holds_keys != 0) {  // expect: CT01
    hopper::wgmma(d, a, b, true);
    hopper::wgmma_wait();
  }
  out[threadIdx.x] = d[0];
}

// Scores in the accumulators of a product, then a branch on one of them.
//
// sass: HGMMA
// sass: @!P\d BRA
__global__ void __launch_bounds__(kThreads) L29j_branch_on_accumulator(const uint4* tiles, float* out) {
  alignas(1024) __shared__ uint4 sTiles[2 * kTileBytes / 16];
  hopper::copy_to_shared(sTiles, tiles, 2 * kTileBytes);
  float d[4] = {};
  hopper::wgmma(d, hopper::tile_descriptor(sTiles), hopper::tile_descriptor(sTiles + kTileBytes / 16), false);
  hopper::wgmma_wait();
  if (d[2] > 0.0f) long_work(out);  // expect: CT01
  out[threadIdx.x] = d[0];
}
