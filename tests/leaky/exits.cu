// Exits and loop ends that a secret decides.

#include "force.cuh"

// Returns early where the score is not finite: the time tells.
//
// sass: @P\d EXIT
__global__ void L02_return_on_score(const float* scores, float* out) {
  const float score = scores[threadIdx.x];
  if (!isfinite(score)) return;  // expect: CT01
  long_work(out);
}

// Returns early for rows past the true length.
//
// sass: @P\d EXIT
__global__ void L02_return_past_length(const int* lengths, float* out) {
  if (static_cast<int>(blockIdx.x) >= lengths[blockIdx.y]) return;  // expect: CT01
  long_work(out);
}

// Stores a score only if it is positive: the stores tell which were. A lone store keeps no branch, only a
// guarded EXIT before it.
//
// sass: @!P\d EXIT
__global__ void L03_store_of_positive_score(const float* scores, float* out) {
  const float score = scores[threadIdx.x];
  if (score > 0.0f) out[threadIdx.x] = score;  // expect: CT01
}

// Stores only rows before the true length. With more work after it, the store itself is guarded.
//
// sass: @!P\d STG
__global__ void L03_store_before_length(const int* lengths, const float* rows, float* out) {
  const int length = lengths[0];
  float* place = out + threadIdx.x;
  const float row = rows[threadIdx.x];
  place[0] = -row;
  if (static_cast<int>(threadIdx.x) < length) place[32] = row;  // expect: CT03
  place[64] = row;
}

// Takes as many turns as a secret integer says.
//
// sass: @!P\d EXIT
// sass: @!P\d BRA
__global__ void L04_loop_bound_from_key(const int* keys, float* out) {
  const int turns = keys[blockIdx.x];
#pragma unroll 1
  for (int i = 0; i < turns; ++i) {  // expect: CT01
    out[blockIdx.x] = fmaf(out[blockIdx.x], 0.5f, 1.0f);
  }
}

// Loops to the true length rather than to the padded one: the time is the length.
//
// sass: @!P\d BRA
__global__ void L04_loop_bound_from_length(const int* key_value_seq_lengths, const float* keys, float* out) {
  const int length = key_value_seq_lengths[blockIdx.x];
  float sum = 0.0f;
#pragma unroll 1
  for (int s = 0; s < length; ++s) sum += keys[s];  // expect: CT01
  out[blockIdx.x] = sum;
}

// Refines until the remainder is small: the number of turns tells the value.
//
// sass: @P\d BRA
__global__ void L05_loop_until_converged(const float* scores, float* out) {
  float x = scores[threadIdx.x];
  while (fabsf(x) > 1e-3f) {  // expect: CT01
    x = fmaf(x, x, -0.25f);
  }
  out[threadIdx.x] = x;
}

// Compares two rows up to the first difference, as memcmp does: the time tells where that is.
//
// sass: @P\d BRA
__global__ void L05_compare_up_to_difference(const int* tokens, const int* others, int row, int* out) {
  int i = 0;
#pragma unroll 1
  while (i < row && tokens[i] == others[i]) ++i;  // expect: CT01
  out[0] = i == row;
}

// Looks for the end of a segment.
//
// sass: @P\d BRA
__global__ void L05_scan_to_end_of_segment(const int* segments, int row, int* out) {
  int i = 0;
#pragma unroll 1
  while (i < row && segments[i] == 0) ++i;  // expect: CT01
  out[0] = i;
}

// Traps on NaN: the process ends where a score is not a number.
//
// sass: @!P\d BRA
// sass: BPT.TRAP
__global__ void L13_trap_on_nan(const float* scores, float* out) {
  const float score = scores[threadIdx.x];
  if (isnan(score)) __trap();  // expect: CT01
  out[threadIdx.x] = score;
}

// Traps on a length that cannot be.
//
// sass: @P\d BRA
// sass: BPT.TRAP
__global__ void L13_trap_on_length(const int* lengths, int* out) {
  const int length = lengths[threadIdx.x];
  asm volatile("{ .reg .pred p; setp.lt.s32 p, %0, 0; @p trap; }" ::"r"(length));  // expect: CT01
  out[threadIdx.x] = length;
}

// Sleeps for a secret number of nanoseconds.
//
// sass: NANOSLEEP R\d+
__global__ void L14_sleep_by_score(const unsigned* scores, unsigned* out) {
  const unsigned score = scores[threadIdx.x];
  __nanosleep(score);  // expect: CT01
  out[threadIdx.x] = score;
}

// Sleeps while the padding lasts.
//
// sass: NANOSLEEP R\d+
__global__ void L14_sleep_by_length(const int* lengths, int padded_length, int* out) {
  const int length = lengths[0];
  __nanosleep(100 * (padded_length - length));  // expect: CT01
  out[threadIdx.x] = length;
}
