// Barriers and waits that depend on a secret: who takes part, which one, how many, and when.

// A block meets at a barrier only where its score is positive: how long it takes tells.
//
// sass: @P\d BAR.SYNC
__global__ void L15_barrier_under_score(const float* scores, float* out) {
  const float score = scores[blockIdx.x];
  if (score > 0.0f) __syncthreads();  // expect: CT06
  out[threadIdx.x] = score;
}

// The same before the true length.
//
// sass: @!P\d BAR.SYNC
__global__ void L15_barrier_under_length(const int* lengths, float* out) {
  const int length = lengths[0];
  if (static_cast<int>(blockIdx.x) < length) __syncthreads();  // expect: CT06
  out[threadIdx.x] = 1.0f;
}

// Waits at the barrier that a secret names.
//
// sass: BAR.SYNC.DEFER_BLOCKING R\d+, 0x40
__global__ void L15_barrier_named_by_token(const int* tokens, int* out) {
  const int token = tokens[blockIdx.x];
  asm volatile("bar.sync %0, 64;" ::"r"(token & 7) : "memory");  // expect: CT06
  out[threadIdx.x] = token;
}

// Waits for as many threads as are true.
//
// sass: BAR.SYNC.DEFER_BLOCKING 0x1, R\d+
__global__ void L15_barrier_of_length_threads(const int* lengths, int* out) {
  const int length = lengths[0];
  asm volatile("bar.sync 1, %0;" ::"r"(length) : "memory");  // expect: CT06
  out[threadIdx.x] = length;
}

// Counts the threads of the block whose score is positive, and works if there are any. The count is as
// secret as its terms, and nobody has measured the counting.
//
// sass: BAR.RED.POPC.DEFER_BLOCKING 0x0, P\d
// sass: B2R.RESULT R\d+
// sass: @!P\d EXIT
__global__ void L15_branch_on_barrier_count(const float* scores, float* out) {
  const float score = scores[threadIdx.x];
  const int count = __syncthreads_count(score > 0.0f);  // expect: CT04
  if (count > 7) out[threadIdx.x] = 1.0f;               // expect: CT01
}

// The warp waits for the lanes that a secret names. On sm_80 through a subroutine of ptxas.
//
// sass: WARPSYNC R\d+
// sass on sm_80: BRA.CONV UR\d+
__global__ void L15_warp_barrier_of_secret_lanes(const unsigned* members, unsigned active, unsigned* out) {
  const unsigned lanes = members[blockIdx.x];
  if (threadIdx.x < active) __syncwarp(lanes);  // expect: CT01
  out[threadIdx.x] = lanes;
}  // expect: CT01 on sm_80
