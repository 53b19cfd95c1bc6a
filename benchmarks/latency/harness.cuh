// The timed region, the same for every probe, and the probe of one instruction on registers or on an address.
//
// Each step issues the instruction and then sets its first operand to `x0 | (y & zero)`: equal to x0, so that
// every operand of every step is exactly of the class, and yet unknown to ptxas before the result y is there.
// One LOP3 a step is the price. run.py checks in the SASS that the opcode stands between the clock reads as
// often as claimed.

#pragma once

#include "probe.h"

namespace latency {

constexpr int kInCode = 64;   // instructions under test in the loop body
constexpr int kTrips = 16;    // of that loop
constexpr int kTripsFar = 4;  // where one instruction takes hundreds of cycles
constexpr int kLineUps = 16;  // barriers in a row before the timed region
constexpr int kStreams = 4;   // independent chains of one warp in a stream
constexpr int kStreamThreads = 512;
constexpr int kManyThreads = 256;
constexpr int kSharedBytes = 16384;

struct Setting {
  const uint32_t* words;  // of this trial's class, for this lane, at the same address for every class
  uint32_t zero;
  uint32_t* store;
  unsigned char* shared;
  const TensorMap* tile;

  __device__ uint32_t word(int operand, int index) const {
    return words[(operand * kWords + index) * kLanes];
  }
  __device__ uint32_t word_of_lane(int operand, int index, int lane) const {
    return words[(operand * kWords + index) * kLanes + lane - static_cast<int>(threadIdx.x) % kLanes];
  }
  __device__ uint32_t guard() const { return words[kGuardRow * kLanes]; }
};

__device__ __forceinline__ int64_t clock_now() {
  int64_t now;
  asm volatile("mov.u64 %0, %%clock64;" : "=l"(now)::"memory");
  return now;
}

// The branch keeps ptxas from reading the clock before `done` is there; `zero` is 0, so it is never taken.
__device__ __forceinline__ int64_t clock_after(uint32_t done, uint32_t zero) {
  int64_t now;
  asm volatile(
      "{\n.reg .pred never;\n.reg .b32 masked;\nand.b32 masked, %1, %2;\nsetp.ne.u32 never, masked, 0;\n"
      "@never trap;\nmov.u64 %0, %%clock64;\n}"
      : "=l"(now)
      : "r"(done), "r"(zero)
      : "memory");
  return now;
}

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Ends whatever the preparation left under way, and lines the warps up. A barrier lets its warps go in an
// order that depends on how they came; a few in a row make it nearly the same in every trial. What is left of
// that must not go by class, so where warps are many they come to the first one after naps of random length.
__device__ __forceinline__ void line_up(uint32_t nap) {
  __threadfence();
  if (blockDim.x >= kManyThreads) __nanosleep(nap * (2 * (threadIdx.x / kLanes) + 1) >> 22);
#pragma unroll 1
  for (int i = 0; i < kLineUps; ++i) __syncthreads();
}

struct Clocks {
  volatile int64_t starts[kLanes], ends[kLanes];  // of each warp
};

// The time of a trial: from the first warp's start to the last one's end. All clocks are those of one SM.
__device__ __forceinline__ void record(const Run& run, int trial, int64_t start, int64_t end,
                                       Clocks& clocks) {
  if (threadIdx.x % kLanes == 0) {
    clocks.starts[threadIdx.x / kLanes] = start;
    clocks.ends[threadIdx.x / kLanes] = end;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    int64_t first = clocks.starts[0], last = clocks.ends[0];
    for (int warp = 1; warp < blockDim.x / kLanes; ++warp) {
      first = clocks.starts[warp] < first ? clocks.starts[warp] : first;
      last = clocks.ends[warp] > last ? clocks.ends[warp] : last;
    }
    run.cycles[trial] = last - first;
  }
  __syncthreads();
}

// Runs all trials. A Probe has load(setting, own_zero), which fetches its operands and returns their mixture;
// touch(), which brings what it reads into caches; begin(start), which ties the first step to the clock;
// step(); and done(), which depends on the last step.
template <class Probe, int kChains, int kSteps, int kLoopTrips>
__device__ __forceinline__ void measure(const Run& run) {
  __shared__ alignas(1024) unsigned char shared[kSharedBytes];
  __shared__ uint32_t words[kClassWords];
  __shared__ volatile uint32_t settled[kStreamThreads];
  __shared__ Clocks clocks;
  const int lane = threadIdx.x % kLanes;  // each lane loads its own zeros, or ptxas would find them uniform
  const uint32_t zero = run.zeros[lane];
  const Setting setting{words + lane, zero, run.store, shared, &run.tile};
  for (int trial = 0; trial < run.trials; ++trial) {
    for (int i = threadIdx.x; i < kClassWords; i += blockDim.x) {
      words[i] = run.classes[run.places[trial] * kClassWords + i];
    }
    __syncthreads();
    Probe chains[kChains];
    uint32_t mixture = 0;
#pragma unroll
    for (int j = 0; j < kChains; ++j) mixture ^= chains[j].load(setting, run.zeros[(j + 1) * kLanes + lane]);
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kChains; ++j) mixture ^= chains[j].touch();
    settled[threadIdx.x] = mixture;  // no load of an operand is under way in the timed region
    line_up(run.naps[trial]);

    const int64_t start = clock_now();
#pragma unroll
    for (int j = 0; j < kChains; ++j) chains[j].begin(static_cast<uint32_t>(start));
#pragma unroll 1
    for (int trip = 0; trip < kLoopTrips; ++trip) {
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
#pragma unroll
        for (int j = 0; j < kChains; ++j) chains[j].step();
      }
    }
    uint32_t done = 0;
#pragma unroll
    for (int j = 0; j < kChains; ++j) done ^= chains[j].done();
    const int64_t end = clock_after(done, zero);
    record(run, trial, start, end, clocks);
  }
}

// Where the operand of the class lies. In memory, register x[0] (with x[1] for global) holds its public
// address.
enum class Place { kRegister, kShared, kGlobal };

// Op has kTies, kPlace, kBytes (from one lane's address to the next) and issue<kGuarded>(y, x, b, c, guard).
template <class Op, bool kGuarded>
struct RegisterProbe {
  uint32_t x0[kWords], x[kWords], y[kWords], b[kWords], c[kWords], guard, zero;

  __device__ __forceinline__ uint32_t load(const Setting& setting, uint32_t own_zero) {
    zero = setting.zero;
    guard = setting.guard();
    uint32_t mixture = guard;
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      x0[w] = setting.words[own_zero + w * kLanes];  // or ptxas would see that all chains are equal
      b[w] = setting.word(1, w);
      c[w] = setting.word(2, w);
      y[w] = 0;
      mixture ^= x0[w] ^ b[w] ^ c[w];
    }
    if constexpr (Op::kPlace == Place::kShared) {
      fill(reinterpret_cast<volatile uint32_t*>(setting.shared));
      x0[0] = (shared_address(setting.shared) + threadIdx.x * Op::kBytes) | own_zero;
    }
    if constexpr (Op::kPlace == Place::kGlobal) {
      fill(setting.store);
      const uint64_t address = reinterpret_cast<uint64_t>(setting.store) + threadIdx.x * Op::kBytes;
      x0[0] = static_cast<uint32_t>(address) | own_zero;
      x0[1] = static_cast<uint32_t>(address >> 32) | own_zero;
      x0[2] = (shared_address(setting.shared) + threadIdx.x * Op::kBytes) | own_zero;
    }
#pragma unroll
    for (int w = 0; w < kWords; ++w) x[w] = x0[w];
    return mixture;
  }

  // All memory that any lane reads is of the class.
  __device__ __forceinline__ void fill(volatile uint32_t* memory) const {
    for (int w = 0; w < kWords; ++w) memory[threadIdx.x * kWords + w] = x0[w];
  }

  __device__ __forceinline__ uint32_t touch() const {
    uint32_t word = 0;
    if constexpr (Op::kPlace == Place::kGlobal) {
      asm volatile("{\n.reg .b64 at;\nmov.b64 at, {%1, %2};\nld.global.b32 %0, [at];\n}"
                   : "=r"(word)
                   : "r"(x0[0]), "r"(x0[1])
                   : "memory");
    }
    return word;
  }

  __device__ __forceinline__ void begin(uint32_t start) { x[0] = x0[0] | (start & zero); }

  __device__ __forceinline__ void step() {
    Op::template issue<kGuarded>(y, x, b, c, guard);
#pragma unroll
    for (int t = 0; t < Op::kTies; ++t) x[t] = x0[t] | (y[t] & zero);
  }

  __device__ __forceinline__ uint32_t done() const {
    uint32_t mixture = y[0];
#pragma unroll
    for (int t = 0; t < Op::kTies; ++t) mixture ^= x[t];
    return mixture;
  }
};

}  // namespace latency

// PTX on y = %0..%3, x = %4..%7, b = %8..%11, c = %12..%15, with predicate g as the guard.
#define LATENCY_OP(NAME, PLACE, BYTES, TIES, ...)                                                            \
  namespace latency::op {                                                                                    \
  struct NAME {                                                                                              \
    static constexpr Place kPlace = Place::PLACE;                                                            \
    static constexpr int kTies = TIES;                                                                       \
    static constexpr int kBytes = BYTES;                                                                     \
    template <bool kGuarded>                                                                                 \
    __device__ __forceinline__ static void issue(uint32_t* y, const uint32_t* x, const uint32_t* b,          \
                                                 const uint32_t* c, uint32_t guard) {                        \
      asm volatile("{\n.reg .pred g;\nsetp.ne.u32 g, %16, 0;\n" __VA_ARGS__ "\n}"                            \
                   : "+r"(y[0]), "+r"(y[1]), "+r"(y[2]), "+r"(y[3])                                          \
                   : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]), \
                     "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]), "r"(kGuarded ? guard : 1u));                \
    }                                                                                                        \
  };                                                                                                         \
  }

// ptxas turns the branch around a short body into guards. Without a guard g is true and the branch goes away.
#define BRANCH(...) "@!g bra skip;\n" __VA_ARGS__ "\nskip:"

#define LATENCY_CASE(NAME, SUFFIX, FORM, OPCODE, PER_STEP, KINDS, CHAINS, THREADS, TRIPS, GUARDED, IN_CODE,  \
                     UNIFORM, CONTROL, NOISE)                                                                \
  extern "C" __global__ void __launch_bounds__(THREADS)                                                      \
      NAME##_##SUFFIX(const __grid_constant__ latency::Run run) {                                            \
    using namespace latency;                                                                                 \
    measure<RegisterProbe<op::NAME, GUARDED>, CHAINS, kInCode / CHAINS, TRIPS>(run);                         \
  }                                                                                                          \
  static const latency::Registration registered_##NAME##_##SUFFIX({.probe = #NAME,                           \
                                                                   .form = FORM,                             \
                                                                   .opcode = OPCODE,                         \
                                                                   .kernel_name = #NAME "_" #SUFFIX,         \
                                                                   .kinds = KINDS,                           \
                                                                   .kernel = NAME##_##SUFFIX,                \
                                                                   .threads = THREADS,                       \
                                                                   .in_code = latency::kInCode * (PER_STEP), \
                                                                   .trips = TRIPS,                           \
                                                                   .guarded = GUARDED,                       \
                                                                   .guard_in_code = IN_CODE,                 \
                                                                   .uniform_guard = UNIFORM,                 \
                                                                   .control = CONTROL,                       \
                                                                   .uniform_operands = false,                \
                                                                   .noise = latency::Noise::NOISE});

#define LATENCY_PLAIN(NAME, OPCODE, PER_STEP, KINDS, TRIPS, CONTROL, NOISE)                                 \
  LATENCY_CASE(NAME, chain, "chain", OPCODE, PER_STEP, KINDS, 1, latency::kLanes, TRIPS, false, false,      \
               false, CONTROL, NOISE)                                                                       \
  LATENCY_CASE(NAME, stream, "stream", OPCODE, PER_STEP, KINDS, latency::kStreams, latency::kStreamThreads, \
               TRIPS, false, false, false, CONTROL, NOISE)

#define LATENCY_CHAIN_GUARDED(NAME, OPCODE, PER_STEP, KINDS, TRIPS, UNIFORM, NOISE)                      \
  LATENCY_CASE(NAME, chain_guarded, "chain guarded", OPCODE, PER_STEP, KINDS, 1, latency::kLanes, TRIPS, \
               true, true, UNIFORM, false, NOISE)
#define LATENCY_STREAM_GUARDED(NAME, OPCODE, PER_STEP, KINDS, TRIPS, UNIFORM, NOISE)               \
  LATENCY_CASE(NAME, stream_guarded, "stream guarded", OPCODE, PER_STEP, KINDS, latency::kStreams, \
               latency::kStreamThreads, TRIPS, true, true, UNIFORM, false, NOISE)
#define LATENCY_GUARDED(...)         \
  LATENCY_CHAIN_GUARDED(__VA_ARGS__) \
  LATENCY_STREAM_GUARDED(__VA_ARGS__)

// An instruction on registers, with and without a guard. OPCODE stands PER_STEP times in a step.
#define PROBE(NAME, OPCODE, PER_STEP, KINDS, TIES, ...)                           \
  LATENCY_OP(NAME, kRegister, 0, TIES, BRANCH(__VA_ARGS__))                       \
  LATENCY_PLAIN(NAME, OPCODE, PER_STEP, KINDS, latency::kTrips, false, kInsideSm) \
  LATENCY_GUARDED(NAME, OPCODE, PER_STEP, KINDS, latency::kTrips, false, kInsideSm)

// One that ptxas would not give a guard.
#define PROBE_UNGUARDED(NAME, OPCODE, PER_STEP, KINDS, TIES, ...) \
  LATENCY_OP(NAME, kRegister, 0, TIES, __VA_ARGS__)               \
  LATENCY_PLAIN(NAME, OPCODE, PER_STEP, KINDS, latency::kTrips, false, kInsideSm)

// One that all lanes of a warp issue together or not at all; "@g" in the PTX is its guard.
#define PROBE_WARP(NAME, OPCODE, PER_STEP, KINDS, TIES, ...)                      \
  LATENCY_OP(NAME, kRegister, 0, TIES, __VA_ARGS__)                               \
  LATENCY_PLAIN(NAME, OPCODE, PER_STEP, KINDS, latency::kTrips, false, kInsideSm) \
  LATENCY_GUARDED(NAME, OPCODE, PER_STEP, KINDS, latency::kTrips, true, kInsideSm)

// One whose data lie in shared memory at x[0], or in global memory at x[1]:x[0]; "@g" in the PTX is its
// guard.
#define PROBE_SHARED(NAME, OPCODE, BYTES, KINDS, UNIFORM, ...)             \
  LATENCY_OP(NAME, kShared, BYTES, 1, __VA_ARGS__)                         \
  LATENCY_PLAIN(NAME, OPCODE, 1, KINDS, latency::kTrips, false, kInsideSm) \
  LATENCY_GUARDED(NAME, OPCODE, 1, KINDS, latency::kTrips, UNIFORM, kInsideSm)
#define PROBE_GLOBAL(NAME, OPCODE, BYTES, KINDS, TRIPS, NOISE, ...) \
  LATENCY_OP(NAME, kGlobal, BYTES, 1, __VA_ARGS__)                  \
  LATENCY_PLAIN(NAME, OPCODE, 1, KINDS, TRIPS, false, NOISE)        \
  LATENCY_STREAM_GUARDED(NAME, OPCODE, 1, KINDS, TRIPS, false, NOISE)

// A probe whose time does depend on its operands: the judge must say so.
#define CONTROL(NAME, OPCODE, PER_STEP, KINDS, TIES, ...) \
  LATENCY_OP(NAME, kRegister, 0, TIES, __VA_ARGS__)       \
  LATENCY_PLAIN(NAME, OPCODE, PER_STEP, KINDS, latency::kTrips, true, kInsideSm)
