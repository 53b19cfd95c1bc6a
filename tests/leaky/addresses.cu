// Addresses made from a secret: the observer sees which line of a cache or which bank is touched.

#include <cuda_pipeline_primitives.h>

constexpr int kTable = 1024;

// Gathers rows at secret token numbers: the cache lines touched tell the tokens.
//
// sass: LDG
__global__ void L17_gather_at_token(const int* tokens, const float* table, float* out) {
  const int token = tokens[threadIdx.x];
  out[threadIdx.x] = table[token];  // expect: CT02
}

// Reads the last true row: its place is the length.
//
// sass: LDG
__global__ void L17_gather_at_length(const int* lengths, const float* rows, float* out) {
  const int length = lengths[blockIdx.x];
  out[threadIdx.x] = rows[length - 1];  // expect: CT02
}

// Scatters: a store tells its address as a load does.
//
// sass: STG
__global__ void L17_scatter_at_token(const int* tokens, float* out) {
  const int token = tokens[threadIdx.x];
  out[token] = 1.0f;  // expect: CT02
}

// Fetches a row ahead of time: nothing is loaded yet, and still the cache tells.
//
// sass: CCTL.E.PF2
__global__ void L17_prefetch_at_token(const int* tokens, const float* table) {
  const int token = tokens[threadIdx.x];
  asm volatile("prefetch.global.L2 [%0];" ::"l"(table + 32 * token));  // expect: CT02
}

// Copies a row to shared memory without passing a register.
//
// sass: LDGSTS
__global__ void L17_asynchronous_copy_at_token(const int* tokens, const float4* table, float* out) {
  __shared__ float4 sRows[32];
  const int token = tokens[threadIdx.x];
  __pipeline_memcpy_async(&sRows[threadIdx.x], &table[token], sizeof(float4));  // expect: CT02
  __pipeline_commit();
  __pipeline_wait_prior(0);
  __syncthreads();
  out[threadIdx.x] = sRows[threadIdx.x ^ 1].x;
}

// Looks up a table in shared memory: bank conflicts take time, and tell which lanes meet.
//
// sass: LDS
__global__ void L18_shared_read_at_token(const int* tokens, const float* table, float* out) {
  __shared__ float sTable[kTable];
  sTable[threadIdx.x] = table[threadIdx.x];
  const int token = tokens[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = sTable[token % kTable];  // expect: CT02
}

// Keeps a value in shared memory at a place counted back from the length.
//
// sass: STS
__global__ void L18_shared_write_at_length(const int* lengths, const float* rows, float* out) {
  __shared__ float sRows[kTable];
  const int length = lengths[0];
  sRows[(length + threadIdx.x) % kTable] = rows[threadIdx.x];  // expect: CT02
  __syncthreads();
  out[threadIdx.x] = sRows[threadIdx.x];
}

// Takes a matrix row from shared memory at a secret place.
//
// sass: LDSM
__global__ void L18_matrix_row_at_token(const int* tokens, const uint4* rows, unsigned* out) {
  __shared__ uint4 sRows[64];
  sRows[threadIdx.x] = rows[threadIdx.x];
  const int token = tokens[threadIdx.x];
  __syncthreads();
  const unsigned place = static_cast<unsigned>(__cvta_generic_to_shared(&sRows[token & 63]));
  unsigned row;
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
               : "=r"(row)
               : "r"(place));  // expect: CT02
  out[threadIdx.x] = row;
}

// Reads from one of two buffers: which one is seen in the address. No branch, one load. On sm_80 the pointer
// comes out of a SEL, on sm_90a its second candidate is loaded from the parameters under the secret guard.
//
// sass on sm_80: SEL R\d+
// sass on sm_90a: @!?P\d LDC
__global__ void L21_pointer_chosen_by_score(const float* scores, const float* a, const float* b, float* out) {
  const float score = scores[threadIdx.x];
  const float* chosen = score > 0.0f ? a : b;  // expect: CT03 on sm_90a
  out[threadIdx.x] = chosen[threadIdx.x];      // expect: CT02
}

// Reads padding from another buffer.
//
// sass on sm_80: SEL R\d+
// sass on sm_90a: @!?P\d LDC
__global__ void L21_pointer_chosen_by_length(const int* lengths, const float* rows, const float* zeros,
                                             float* out) {
  const int length = lengths[0];
  const float* chosen = static_cast<int>(threadIdx.x) < length ? rows : zeros;  // expect: CT03 on sm_90a
  out[threadIdx.x] = chosen[threadIdx.x];                                       // expect: CT02
}
