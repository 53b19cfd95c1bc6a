// Guards: no branch on a secret remains, but whether a load or an ex2 is issued depends on one.
//
// None of these sources has a branch that is worth the name, and a count of branches passes them all.

#include <cuda_pipeline_primitives.h>

// Adds a value row only where its score is above a threshold: the loads tell which.
//
// sass: @P\d LDG
__global__ void L25_tile_skipped_by_score(const float* scores, const float* values, float* out) {
  const float p = scores[threadIdx.x];
  const float* place = values + threadIdx.x;
  float sum = place[0];
  if (p > 0.5f) sum += p * place[32];  // expect: CT03
  out[threadIdx.x] = sum;
}

// Reads value rows before the true length only.
//
// sass: @!P\d LDG
__global__ void L25_tile_skipped_by_length(const int* lengths, const float* values, float* out) {
  const int length = lengths[0];
  const float* place = values + threadIdx.x;
  float sum = place[0];
  if (static_cast<int>(threadIdx.x) < length) sum += place[32];  // expect: CT03
  out[threadIdx.x] = sum;
}

// Reads a tile only if the summary of its mask says that it holds a key.
//
// sass: @P\d LDG
__global__ void L25_tile_skipped_by_mask_summary(const unsigned* summary, const float* values, float* out) {
  const unsigned holds_keys = summary[blockIdx.x];
  const float* place = values + threadIdx.x;
  float sum = place[0];
  if (holds_keys != 0) sum += place[32];  // expect: CT03
  out[threadIdx.x] = sum;
}

// Reads a tile only if its range of segment ids meets that of the queries.
//
// sass: @!P\d LDG
__global__ void L25_tile_skipped_by_segments(const int2* query_segments, const int2* key_segments,
                                             const float* values, float* out) {
  const int2 query = query_segments[blockIdx.x];
  const int2 key = key_segments[blockIdx.y];
  const float* place = values + threadIdx.x;
  float sum = place[0];
  if (query.x <= key.y && key.x <= query.y) sum += place[32];  // expect: CT03
  out[threadIdx.x] = sum;
}

// Copies value rows to shared memory, and zeros past the length: the copy knows by a predicate which.
//
// sass: @P\d LDGSTS
__global__ void L25_copy_filled_by_length(const int* lengths, const float4* values, float* out) {
  __shared__ float4 sValues[32];
  const int length = lengths[0];
  const size_t fill = static_cast<int>(threadIdx.x) < length ? 0 : sizeof(float4);
  __pipeline_memcpy_async(&sValues[threadIdx.x], &values[threadIdx.x], sizeof(float4), fill);  // expect: CT03
  __pipeline_commit();
  __pipeline_wait_prior(0);
  __syncthreads();
  out[threadIdx.x] = sValues[threadIdx.x ^ 1].x;
}

// The constant-time select of two loaded values, by a mask: ptxas issues the second load only where it is
// wanted.
//
// sass: @!P\d LDG
__global__ void L26_select_of_two_loads(const float* scores, const float* a, const float* b, float* out) {
  const float score = scores[threadIdx.x];
  const unsigned mask = score > 0.0f ? 0xffffffffu : 0u;
  const unsigned yes = __float_as_uint(a[threadIdx.x]);
  const unsigned no = __float_as_uint(b[threadIdx.x]);  // expect: CT03
  out[threadIdx.x] = __uint_as_float((yes & mask) | (no & ~mask));
}

// The same with loads that the front end may not touch, and values that pass through empty asm.
//
// sass: @P\d LDG
__global__ void L26_select_behind_barriers(const int* lengths, const float* a, const float* b, float* out) {
  const int length = lengths[0];
  float yes, no;
  asm volatile("ld.global.f32 %0, [%1];" : "=f"(yes) : "l"(a + threadIdx.x));
  asm volatile("ld.global.f32 %0, [%1];" : "=f"(no) : "l"(b + threadIdx.x));  // expect: CT03
  asm volatile("" : "+f"(yes), "+f"(no));
  out[threadIdx.x] = static_cast<int>(threadIdx.x) < length ? yes : no;
}

// The same from shared memory.
//
// sass: @!P\d LDS
__global__ void L26_select_of_two_shared_loads(const float* scores, const float* rows, float* out) {
  __shared__ float sRows[64];
  sRows[threadIdx.x] = rows[threadIdx.x];
  sRows[threadIdx.x + 32] = rows[threadIdx.x + 32];
  const float score = scores[threadIdx.x];
  __syncthreads();
  const float yes = sRows[31 - threadIdx.x];
  const float no = sRows[63 - threadIdx.x];  // expect: CT03
  out[threadIdx.x] = score > 0.0f ? yes : no;
}

// A multiply-add under a guard would be harmless, but on sm_90a its factor is loaded from the parameters,
// under the same guard; on sm_80 the multiply-add reads it in place.
//
// policy: guarded arithmetic
// sass on sm_80: @P\d IMAD.MOV.U32 R\d+, RZ, RZ, c\[
// sass on sm_90a: @P\d LDC
__global__ void L26_parameter_under_guard(const float* scores, float factor, float* out) {
  const float score = scores[threadIdx.x];
  float sum = score;
  if (score > 0.0f) sum = fmaf(score, factor, 1.0f);  // expect: CT03 on sm_90a
  out[threadIdx.x] = sum;
}

// Lazy rescaling: the exponent is computed, and the sum rescaled, only where the maximum of the row has moved
// far enough for some lane.
//
// sass: VOTE.ANY P\d
// sass: @P\d MUFU.EX2
__global__ void L27_lazy_rescale(const float* scores, float threshold, float* sums) {
  const float old_max = scores[threadIdx.x];
  const float new_max = fmaxf(old_max, scores[threadIdx.x + 32]);
  float sum = sums[threadIdx.x];
  if (__any_sync(0xffffffffu, new_max > old_max + threshold)) {
    float factor;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(factor) : "f"(old_max - new_max));  // expect: CT03
    sum *= factor;                                                              // expect: CT03
  }
  sums[threadIdx.x] = sum;
}

// The same for a segment. ptxas takes the load of the score along, although the source has it before the
// claim.
//
// sass: @!P\d LDG
// sass: @!P\d MUFU.EX2
__global__ void L27_exponent_under_segment(const int* segments, const float* scores, float* out) {
  const int segment = segments[threadIdx.x];
  const float score = scores[threadIdx.x];  // expect: CT03
  float p = 0.0f;
  if (segment == static_cast<int>(blockIdx.x)) {
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(p) : "f"(score));  // expect: CT03
  }
  out[threadIdx.x] = p;
}
