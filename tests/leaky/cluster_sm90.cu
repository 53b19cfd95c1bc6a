// Clusters: shared memory of other blocks, their barriers, and the barriers of one block.

#include "hopper.cuh"

using hopper::Barrier;

// Reads from the block that a secret names.
//
// sass: PRMT R\d+, R\d+, 0x654
// sass: LD.E R\d+, \[R\d+\]
__global__ void __cluster_dims__(4) L22_rank_from_token(const int* tokens, float* out) {
  __shared__ float sRow[128];
  sRow[threadIdx.x] = out[threadIdx.x];
  hopper::cluster_arrive();
  hopper::cluster_wait();
  const uint32_t rank = tokens[threadIdx.x] & 3;
  out[threadIdx.x] =
      hopper::load_from_cluster(hopper::address_in_block(&sRow[threadIdx.x], rank));  // expect: CT02
  hopper::cluster_arrive();
  hopper::cluster_wait();
}

// Writes to the block that holds the end of the sequence.
//
// sass: PRMT R\d+, R\d+, 0x654
// sass: ST.E \[R\d+\]
__global__ void __cluster_dims__(4) L22_rank_from_length(const int* lengths, float* out) {
  __shared__ float sRow[128];
  sRow[threadIdx.x] = 0.0f;
  hopper::cluster_arrive();
  hopper::cluster_wait();
  const uint32_t rank = lengths[0] / 128 & 3;
  hopper::store_to_cluster(hopper::address_in_block(&sRow[threadIdx.x], rank), 1.0f);  // expect: CT02
  hopper::cluster_arrive();
  hopper::cluster_wait();
  out[threadIdx.x] = sRow[threadIdx.x];
}

// The same without waiting: the other block's barrier counts the bytes.
//
// sass: STAS \[R\d+
__global__ void __cluster_dims__(4) L22_asynchronous_store_to_secret_rank(const int* tokens, uint32_t* out) {
  __shared__ uint32_t sRow[128];
  __shared__ Barrier arrived;
  if (threadIdx.x == 0) hopper::barrier_init(&arrived, 1);
  hopper::cluster_arrive();
  hopper::cluster_wait();
  const uint32_t rank = tokens[threadIdx.x] & 3;
  const uint32_t place = hopper::address_in_block(&sRow[threadIdx.x], rank);
  hopper::store_async(place, 7, hopper::address_in_block(&arrived, rank));  // expect: CT02
  hopper::cluster_arrive();
  hopper::cluster_wait();
  out[threadIdx.x] = sRow[threadIdx.x];
}

// Asks for a phase that a secret chooses.
//
// sass: SYNCS.PHASECHK.TRANS64.TRYWAIT P\d, \[UR\d+\], R\d+
__global__ void L15_phase_from_token(const int* tokens, int* out) {
  __shared__ Barrier full;
  if (threadIdx.x == 0) hopper::barrier_init(&full, 1);
  __syncthreads();
  const int token = tokens[threadIdx.x];
  out[threadIdx.x] = hopper::barrier_try_wait(&full, token & 1);  // expect: CT06
}

// Arrives only for rows before the true length: who waits, waits for them.
//
// sass: @!P\d SYNCS.ARRIVE
__global__ void L15_arrival_before_length(const int* lengths, int* out) {
  __shared__ Barrier empty;
  if (threadIdx.x == 0) hopper::barrier_init(&empty, 32);
  __syncthreads();
  const int length = lengths[0];
  hopper::barrier_arrive(&empty);
  if (static_cast<int>(threadIdx.x) < length) hopper::barrier_arrive(&empty);  // expect: CT06
  out[threadIdx.x] = length;
}

// Expects as many bytes as are true.
//
// sass: SYNCS.ARRIVE.TRANS64 RZ, \[UR\d+\], R\d+
__global__ void L15_bytes_from_length(const int* lengths, int* out) {
  __shared__ Barrier full;
  if (threadIdx.x == 0) hopper::barrier_init(&full, 1);
  __syncthreads();
  const int length = lengths[0];
  hopper::barrier_expect_bytes(&full, 4 * length);  // expect: CT06
  out[threadIdx.x] = length;
}

// Sets up a barrier for a secret number of arrivals.
//
// sass: R2UR UR\d+, R\d+
// sass: SYNCS.EXCH.64
__global__ void L15_arrivals_from_length(const int* lengths, int* out) {
  __shared__ Barrier full;
  const int length = lengths[0];
  hopper::barrier_init(&full, length);  // expect: CT06
  out[threadIdx.x] = length;
}

// One of two barriers, by a secret.
//
// sass: SYNCS.ARRIVE.TRANS64.A1T0 RZ, \[R\d+\+UR\d+\]
__global__ void L15_barrier_of_token(const int* tokens, int* out) {
  __shared__ Barrier full[4];
  if (threadIdx.x == 0) {
    for (int i = 0; i < 4; ++i) hopper::barrier_init(&full[i], 1);
  }
  __syncthreads();
  const int token = tokens[blockIdx.x];
  hopper::barrier_arrive(&full[token & 3]);  // expect: CT02
  out[threadIdx.x] = token;
}

// Arrives at the barrier of the cluster only where a score is positive.
//
// sass: @!P\d BRA
// sass: UCGABAR_ARV
__global__ void __cluster_dims__(2) L15_cluster_arrival_under_score(const float* scores, float* out) {
  const float score = scores[blockIdx.x];
  if (score > 0.0f) hopper::cluster_arrive();  // expect: CT01
  out[threadIdx.x] = score;
}

// Gives registers back where a score is positive.
//
// sass: @!P\d BRA
// sass: USETMAXREG.DEALLOC
__global__ void __launch_bounds__(384, 1) X02_registers_under_score(const float* scores, float* out) {
  const float score = scores[blockIdx.x];
  if (score > 0.0f) asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");  // expect: CT01
  out[threadIdx.x] = score;
}

// Lets the next kernel begin where a score is positive.
//
// sass: @P\d PREEXIT
__global__ void X02_next_kernel_under_score(const float* scores, float* out) {
  const float score = scores[blockIdx.x];
  if (score > 0.0f) asm volatile("griddepcontrol.launch_dependents;");  // expect: CT06
  out[threadIdx.x] = score;
}
