// What dhp_jax/validate needs beside the kernels that ship: kernels that leak or do not repeat, on purpose,
// and a stopwatch in cycles around those that ship. All of it lies in libdhp_controls, which no attention
// call loads.
//
// Plain C, for ctypes. A function returns nullptr, or why it failed; the text lives until the thread's next
// call.

#pragma once

#include <cstdint>

extern "C" {

// A call of attention whose operands lie in one block of memory, each contiguous, at these bytes from its
// begin.
struct DhpControlCall {
  int64_t B, T, S, N, K, D;
  int32_t dtype;  // dhp::DType
  int32_t is_causal;
  float scale;
  int32_t repeats;  // calls in one timed run
  int64_t rest;     // ns without work after each run, for a GPU at its limit of power
  // query, key, value, bias [1, N, T, S] float32, mask [B, 1, T, S], query and key/value lengths [B], d_out;
  // -1: absent
  int64_t offsets[8];
};

// What is timed.
enum DhpControlWork : int32_t {
  kDhpForward,   // launch_attention_fwd
  kDhpBackward,  // launch_attention_bwd, its residuals made before
  kDhpDelayed,   // forward, behind a kernel that waits for as many cycles as stand in the last 8 bytes of the
                 // block
  kDhpLeak       // control_leak in its place, on 1024 scores and the length in the last 8 bytes
};

// Times `samples` runs. Run i works on the secrets of class order[i], out of num_classes blocks of
// block_bytes at `blocks` (host memory); block_bytes is a multiple of 16.
//
//   cycles       [samples, num_sms]: SM cycles from before the first to after the last kernel; 0: not read
//   nanoseconds  [samples]: the same by %globaltimer
//   num_sms      must be the GPU's
const char* dhp_controls_time(const DhpControlCall* call, int32_t work, const void* blocks,
                              int64_t block_bytes, int32_t num_classes, const int32_t* order, int64_t samples,
                              int32_t num_sms, int32_t* cycles, int64_t* nanoseconds);

// Multiprocessors of the current GPU.
const char* dhp_controls_count_sms(int32_t* num_sms);

// control_leak: out[r] = sum of 2^scores[r, s] over s < length; scores are [rows, columns]. Host memory.
const char* dhp_controls_leak(const float* scores, int64_t rows, int64_t columns, int64_t length, float* out);

// control_unordered_sum: the sum of n values by atomics. Host memory.
const char* dhp_controls_unordered_sum(const float* values, int64_t n, float* out);
}
