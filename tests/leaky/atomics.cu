// Atomics: who comes first and who waits is seen in time, and the order of sums in their bits.

// Maximum of scores by compare and swap: lanes try until they win.
//
// sass: ATOMG.E.CAS
// sass: @P\d BRA
__global__ void L16_maximum_by_compare_and_swap(const float* scores, int* maximum) {
  const float score = scores[threadIdx.x];
  int seen = *maximum;
  while (__int_as_float(seen) < score) {                     // expect: CT01
    seen = atomicCAS(maximum, seen, __float_as_int(score));  // expect: CT05
  }
}

// Adds scores at one public place.
//
// sass: REDG?\.E\.ADD\.F32
__global__ void L16_sum_of_scores(const float* scores, float* sum) {
  const float score = scores[threadIdx.x];
  atomicAdd(sum, score);  // expect: CT05
}

// The same, and the old value is used.
//
// sass: ATOMG.E.ADD
__global__ void L16_sum_of_lengths(const int* lengths, int* sum, int* out) {
  const int length = lengths[threadIdx.x];
  out[threadIdx.x] = atomicAdd(sum, length);  // expect: CT03, CT05
}

// Adds scores in shared memory.
//
// sass: REDUX.XOR UR\d+
// sass: ATOMS.XOR
__global__ void L16_sum_in_shared_memory(const int* scores, int* out) {
  __shared__ int sSum;
  sSum = 0;
  __syncthreads();
  const int score = scores[threadIdx.x];
  atomicXor(&sSum, score);  // expect: CT04, CT05
  __syncthreads();
  out[threadIdx.x] = sSum;
}

// Counts how often each token comes: equal tokens wait for each other.
//
// sass: ATOMS.POPC.INC.32
__global__ void L19_histogram_of_tokens(const int* tokens, int* out) {
  __shared__ int sCounts[256];
  sCounts[threadIdx.x] = 0;
  __syncthreads();
  const int token = tokens[threadIdx.x];
  atomicAdd(&sCounts[token & 255], 1);  // expect: CT02, CT05
  __syncthreads();
  out[threadIdx.x] = sCounts[threadIdx.x];
}

// The same of segment ids in global memory.
//
// sass: REDG?\.E\.ADD
__global__ void L19_histogram_of_segments(const int* segments, int* counts) {
  const int segment = segments[threadIdx.x];
  atomicAdd(&counts[segment], 1);  // expect: CT02, CT05
}
