// Ways on which a secret could lose its mark before it reaches a branch (as in L01) or an address (as in
// L17).

#include <cuda_pipeline_primitives.h>
#include <mma.h>

#include "force.cuh"

constexpr unsigned kAllLanes = 0xffffffffu;

// Through shared memory, past a barrier, to another thread.
//
// sass: STS
// sass: LDS
__global__ void L29a_shared_memory(const int* tokens, const float* table, float* out) {
  __shared__ int sTokens[32];
  sTokens[threadIdx.x] = tokens[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = table[sTokens[31 - threadIdx.x]];  // expect: CT02
}

// Through local memory, at a public index.
//
// sass: STL
// sass: LDL
__global__ void L29b_local_memory(const int* lengths, int batch, float* out) {
  volatile int kept[4];
  kept[batch & 1] = lengths[0];             // expect: CT08
  kept[2 + (batch & 1)] = lengths[1];       // expect: CT08
  if (kept[batch & 3] > 7) long_work(out);  // expect: CT01
  out[threadIdx.x] = 1.0f;
}

// Through the carry of a 64-bit sum: the high words are public, their sum is not.
//
// sass: IADD3 R\d+, P\d
// sass: \.X R\d+.*, P\d$
__global__ void L29d_carry(const unsigned* tokens, unsigned long long offset, const float* table,
                           float* out) {
  const unsigned long long sum = tokens[threadIdx.x] + offset;
  out[threadIdx.x] = table[sum >> 32];  // expect: CT02
}

// Through predicates packed into registers: there are more of them than predicate registers.
//
// sass: P2R R\d+, PR
// sass: @!P\d BRA
__global__ void L29e_packed_predicates(const float* scores, float* out) {
  bool any_positive[12];
#pragma unroll
  for (int i = 0; i < 12; ++i) any_positive[i] = __any_sync(kAllLanes, scores[32 * i + threadIdx.x] > 0.0f);
#pragma unroll
  for (int i = 0; i < 12; ++i) {
    if (any_positive[i]) long_work(out + i);  // expect: CT01
  }
}

// Through the bits of a register, unpacked into predicates at once.
//
// sass: R2P PR, R\d+
// sass: @P\d LDG
__global__ void L29e_unpacked_predicates(const unsigned* mask, const float* values, float* out) {
  const unsigned bits = mask[blockIdx.x];
  const float* place = values + threadIdx.x;
  float sum = place[0];
#pragma unroll
  for (int i = 1; i < 7; ++i) {
    if (bits >> i & 1) sum += place[32 * i];  // expect: CT03
  }
  out[threadIdx.x] = sum;
}

// Through the predicate that a logical operation yields beside its result.
//
// sass: LOP3.LUT P\d, RZ
__global__ void L29f_predicate_of_logic(const unsigned* tokens, const unsigned* mask, float* out) {
  const unsigned both = tokens[threadIdx.x] & mask[threadIdx.x];
  if (both != 0) long_work(out);  // expect: CT01
  out[threadIdx.x] = 1.0f;
}

// Through scratch space in global memory, written and read again.
//
// sass: STG.E.STRONG.SYS
// sass: LDG.E.STRONG.SYS
__global__ void L29g_global_scratch(const int* tokens, const float* table, volatile int* scratch,
                                    float* out) {
  scratch[threadIdx.x] = tokens[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = table[scratch[threadIdx.x ^ 1]];  // expect: CT02
}

// The same, where the policy calls the scratch space public, which what is written there makes untrue.
//
// policy: public buffer 2
// sass: STG.E.STRONG.SYS
// sass: LDG.E.STRONG.SYS
__global__ void L29g_scratch_called_public(const int* tokens, const float* table, volatile int* scratch,
                                           float* out) {
  scratch[threadIdx.x] = tokens[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = table[scratch[threadIdx.x ^ 1]];  // expect: CT02
}

// Through implicit flow: both values are public constants, the choice is not.
//
// sass: @!P\d IADD3
__global__ void L29h_guarded_move(const float* scores, const float* table, float* out) {
  const float score = scores[threadIdx.x];
  int index = 3;
  if (score > 0.0f) index = 700;
  out[threadIdx.x] = table[index + threadIdx.x];  // expect: CT02
}

// Through copies that never enter a register: global to shared memory.
//
// sass: LDGSTS
// sass: LDS
__global__ void L29k_asynchronous_copy(const int* tokens, const float* table, float* out) {
  __shared__ int sTokens[128];
  __pipeline_memcpy_async(&sTokens[4 * threadIdx.x], &tokens[4 * threadIdx.x], 16);
  __pipeline_commit();
  __pipeline_wait_prior(0);
  __syncthreads();
  out[threadIdx.x] = table[sTokens[threadIdx.x]];  // expect: CT02
}

// Through what an atomic returns: what lay in memory. The atomic itself adds a public number at a public
// place.
//
// sass: ATOMG.E.ADD
__global__ void L29l_atomic_result(int* counter, const float* table, float* out) {
  const int place = atomicAdd(counter, 1);
  out[threadIdx.x] = table[place];  // expect: CT02
}

// By value: a length that is a parameter of the launch, not data behind a pointer.
//
// policy: secret scalar 0
// sass: @P\d BRA
__global__ void L29m_length_by_value(int length, float* out) {
  if (static_cast<int>(blockIdx.x) < length) long_work(out);  // expect: CT01
  out[threadIdx.x] = 1.0f;
}

// A token by value.
//
// policy: secret scalar 0
// sass: LDG
__global__ void L29m_token_by_value(int token, const float* table, float* out) {
  out[threadIdx.x] = table[token];  // expect: CT02
}

// Through the accumulators of a matrix product.
//
// sass: HMMA.16816.F32
__global__ void L29j_matrix_accumulator(const __half* queries, const __half* keys, float* out) {
  using namespace nvcuda;
  wmma::fragment<wmma::matrix_a, 16, 16, 16, __half, wmma::row_major> query;
  wmma::fragment<wmma::matrix_b, 16, 16, 16, __half, wmma::col_major> key;
  wmma::fragment<wmma::accumulator, 16, 16, 16, float> scores;
  wmma::fill_fragment(scores, 0.0f);
  wmma::load_matrix_sync(query, queries, 16);
  wmma::load_matrix_sync(key, keys, 16);
  wmma::mma_sync(scores, query, key, scores);
  if (scores.x[0] > 0.0f) long_work(out);  // expect: CT01
  out[threadIdx.x] = scores.x[1];
}
