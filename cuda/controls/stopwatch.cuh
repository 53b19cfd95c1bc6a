// The kernels of the stopwatch, and the delay that it must see. They read clocks and choose by what memory
// holds, which no kernel that ships may.

#pragma once

#include <cstdint>

namespace dhp {

inline constexpr int kStampThreads =
    1024;  // two blocks fill an SM: a grid of two for each SM reaches all of them

// What the stopwatch keeps on the device.
struct Stopwatch {
  const int32_t* order;  // [samples]
  int64_t* sample;       // which run this is
  int64_t* begun;        // [num_sms] cycle counter before the work
  int64_t* begun_in;     // [num_sms] the run it was read in
  int64_t* begun_at;     // [1] nanoseconds before the work
  int32_t* cycles;       // [samples, num_sms]
  int64_t* nanoseconds;  // [samples]
  int32_t num_sms;
};

__device__ inline uint32_t this_sm() {
  uint32_t sm;
  asm volatile("mov.u32 %0, %%smid;" : "=r"(sm));
  return sm;
}

__device__ inline int64_t now_in_nanoseconds() {
  int64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

// Puts the secrets of this run's class where the work finds those of every class.
__global__ void control_stage(Stopwatch watch, const uint4* blocks, int64_t block_units, uint4* block) {
  const uint4* chosen = blocks + watch.order[*watch.sample] * block_units;
  for (int64_t unit = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; unit < block_units;
       unit += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    block[unit] = chosen[unit];
  }
}

// Reads the cycle counter of every SM. Two blocks share one; the later one counts, before and after alike.
__global__ void __launch_bounds__(kStampThreads) control_begin(Stopwatch watch) {
  if (threadIdx.x != 0) return;
  const uint32_t sm = this_sm();
  if (blockIdx.x == 0) *watch.begun_at = now_in_nanoseconds();
  if (sm >= static_cast<uint32_t>(watch.num_sms)) return;
  watch.begun_in[sm] = *watch.sample;
  watch.begun[sm] = clock64();
}

__global__ void __launch_bounds__(kStampThreads) control_end(Stopwatch watch) {
  if (threadIdx.x != 0) return;
  const int64_t now = clock64();
  const int64_t sample = *watch.sample;
  const uint32_t sm = this_sm();
  if (blockIdx.x == 0) watch.nanoseconds[sample] = now_in_nanoseconds() - *watch.begun_at;
  if (sm >= static_cast<uint32_t>(watch.num_sms) || watch.begun_in[sm] != sample) return;
  watch.cycles[sample * watch.num_sms + sm] = static_cast<int32_t>(now - watch.begun[sm]);
}

// The run is over.
__global__ void control_next(int64_t* sample) { ++*sample; }

// Takes a secret number of cycles more, a multiple of 64: what the timing test must see. Chains of 16
// dependent multiply-adds, of 4 cycles each; a loop that reads the clock until the time is over would take a
// whole pass for no cycles too. The result is stored, or there would be no chain. It takes longer than the
// next kernel needs to start: a shorter one would hide its delay there.
inline constexpr int64_t kLeastDelay = 4096;
__global__ void control_delay(const int64_t* cycles, float* out) {
  float value = 1.0f;
  for (int64_t left = kLeastDelay + *cycles; left > 0; left -= 64) {
#pragma unroll
    for (int i = 0; i < 16; ++i) asm volatile("fma.rn.f32 %0, %0, %0, %0;" : "+f"(value));
  }
  *out = value;
}

}  // namespace dhp
