// Not leaks: secrets that choose values in registers, and arithmetic of one fixed course.

#include <cfloat>
#include <cmath>

constexpr unsigned kAllLanes = 0xffffffffu;

__device__ inline float ex2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ inline float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Chooses between two values that are there already.
//
// policy: guarded arithmetic
// expect: SAFE
// sass: @!P\d FMUL
__global__ void B01_select_by_score(const float* scores, float* out) {
  const float score = scores[threadIdx.x];
  const float doubled = score + score;
  out[threadIdx.x] = score > 1.0f ? doubled : score * score;
}

// Adds a term under a guard. One multiply-add has the same latency whether it counts or not; a stream of them
// goes faster where a whole warp skips it, so that it takes a policy to accept it. (With a factor from the
// parameters it would leak all the same, see L26_parameter_under_guard.)
//
// policy: guarded arithmetic
// expect: SAFE
// sass: @P\d FFMA
__global__ void B01_guarded_multiply_add(const float* scores, float* out) {
  const float score = scores[threadIdx.x];
  float sum = score;
  if (score > 0.0f) sum = fmaf(score, 1.5f, 1.0f);
  out[threadIdx.x] = sum;
}

// Padding: a score past the true length becomes minus infinity.
//
// expect: SAFE
// sass: FSEL
__global__ void B01_padding_mask(const float* scores, const int* lengths, float* out) {
  const float score = scores[threadIdx.x];
  const int length = lengths[blockIdx.x];
  out[threadIdx.x] = static_cast<int>(threadIdx.x) < length ? score : -INFINITY;
}

// A dense mask.
//
// expect: SAFE
// sass: FSEL
__global__ void B01_dense_mask(const float* scores, const unsigned char* mask, float* out) {
  const float score = scores[threadIdx.x];
  const unsigned char takes_part = mask[threadIdx.x];
  out[threadIdx.x] = takes_part != 0 ? score : -INFINITY;
}

// Segments: a key of another segment takes no part.
//
// expect: SAFE
// sass: FSEL
__global__ void B01_segment_mask(const float* scores, const int* query_segments, const int* key_segments,
                                 float* out) {
  const float score = scores[threadIdx.x];
  const int query = query_segments[blockIdx.x];
  const int key = key_segments[threadIdx.x];
  out[threadIdx.x] = query == key ? score : -INFINITY;
}

// Maximum, clamp, and NaN replaced.
//
// expect: SAFE
// sass: FMNMX
// sass: FSEL
__global__ void B02_clamp(const float* scores, float low, float high, float* out) {
  const float score = scores[threadIdx.x];
  const float number = isnan(score) ? 0.0f : score;
  out[threadIdx.x] = fminf(fmaxf(number, low), high);
}

// Softmax over a warp, by butterfly shuffles and ex2.
//
// expect: SAFE
// sass: SHFL.BFLY
// sass: MUFU.EX2
__global__ void B03_softmax_of_warp(const float* scores, float scale_log2, float* out) {
  const float score = scores[threadIdx.x] * scale_log2;
  float maximum = score;
#pragma unroll
  for (int d = 16; d > 0; d /= 2) maximum = fmaxf(maximum, __shfl_xor_sync(kAllLanes, maximum, d));
  const float p = ex2(score - maximum);
  float sum = p;
#pragma unroll
  for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(kAllLanes, sum, d);
  out[threadIdx.x] = p * reciprocal(sum);
}

// Normalisation by a sum that may be zero.
//
// expect: SAFE
// sass: MUFU.RCP
__global__ void B04_normalisation(const float* sums, const float* rows, float* out) {
  const float sum = sums[blockIdx.x];
  const float factor = reciprocal(sum);
  out[threadIdx.x] = rows[threadIdx.x] * (sum == 0.0f ? 0.0f : factor);
}

// Exponential without flush to zero: subnormals are scaled under a guard, before and after.
//
// policy: guarded arithmetic
// expect: SAFE
// sass: @!P\d FMUL
// sass: MUFU.EX2
__global__ void B05_exponent_with_fixed_range(const float* scores, float* out) {
  out[threadIdx.x] = exp2f(scores[threadIdx.x]);
}

// The same for the logarithm.
//
// policy: guarded arithmetic
// expect: SAFE
// sass: @!P\d FMUL
// sass: MUFU.LG2
__global__ void B05_logarithm_with_fixed_range(const float* sums, float* out) {
  out[threadIdx.x] = __log2f(sums[threadIdx.x]);
}

// 32-bit division of a secret by a public number: no branch, and the conversions between integer and float
// see only the divisor. (L12_remainder_by_int32_length is the other way round.)
//
// policy: guarded arithmetic
// expect: SAFE
// sass: I2F.U32.RP
// sass: F2I
__global__ void B15_division_of_secret(const unsigned* tokens, unsigned tile, unsigned* out) {
  out[threadIdx.x] = tokens[threadIdx.x] / tile;
}
