// The uniform datapath: where by-value parameters go, secret ones too.
//
// ptxas moves a chain there when its operands come from the constant bank at a uniform index and its end must
// be in a uniform register, as the size of a bulk copy (never issued here) must.

#include <stdexcept>

#include "cuda_check.h"
#include "harness.cuh"

namespace latency {

constexpr int kUniformPlaces = 256;
constexpr int kUniformTrials = 30000;

__constant__ uint32_t uniform_words[kUniformPlaces * kWords];
__constant__ uint16_t uniform_places[kUniformTrials];

// Op has issue(y, x, b, c).
template <class Op>
__device__ __forceinline__ void measure_uniform(const Run& run) {
  __shared__ alignas(128) unsigned char shared[128];
  __shared__ Clocks clocks;
  const uint32_t zero = run.uniform_zero;
  for (int trial = 0; trial < run.trials; ++trial) {
    const uint32_t* words = uniform_words + uniform_places[trial] * kWords;
    const uint32_t x0 = words[0], b = words[1], c = words[2];
    uint32_t x = x0, y = 0;
    line_up(0);  // to load a nap would take the trial's number out of uniform registers
    const int64_t start = clock_now();
#pragma unroll 1
    for (int trip = 0; trip < kTrips; ++trip) {
#pragma unroll
      for (int step = 0; step < kInCode; ++step) {
        Op::issue(y, x, b, c);
        x = x0 | (y & zero);
      }
    }
    if ((x & zero) != 0) {
      asm volatile(
          "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%0];" ::"r"(
              shared_address(shared)),
          "l"(run.store), "r"(x)
          : "memory");
    }
    const int64_t end = clock_now();
    record(run, trial, start, end, clocks);
  }
}

void set_uniform_trials(const std::vector<uint32_t>& classes, const std::vector<int32_t>& places) {
  std::vector<uint32_t> words(kUniformPlaces * kWords);
  const size_t count = classes.size() / kClassWords;
  if (count > kUniformPlaces || places.size() > kUniformTrials) {
    throw std::length_error("the constant bank holds " + std::to_string(kUniformPlaces) + " places and " +
                            std::to_string(kUniformTrials) + " trials; run fewer rounds");
  }
  for (size_t i = 0; i < count; ++i) {
    for (int operand = 0; operand < kOperands; ++operand) {
      words[i * kWords + operand] =
          classes[i * kClassWords + operand * kWords * kLanes];  // of the first lane
    }
  }
  const std::vector<uint16_t> narrow(places.begin(), places.end());
  check(cudaMemcpyToSymbol(uniform_words, words.data(), words.size() * sizeof(uint32_t)), "copy of classes");
  check(cudaMemcpyToSymbol(uniform_places, narrow.data(), narrow.size() * sizeof(uint16_t)),
        "copy of the places");
}

}  // namespace latency

// PTX on y = %0, x = %1, b = %2, c = %3.
#define UNIFORM_CASE(NAME, SUFFIX, FORM, OPCODE, PER_STEP, THREADS)                                          \
  extern "C" __global__ void __launch_bounds__(THREADS)                                                      \
      NAME##_##SUFFIX(const __grid_constant__ latency::Run run) {                                            \
    latency::measure_uniform<latency::op::NAME>(run);                                                        \
  }                                                                                                          \
  static const latency::Registration registered_##NAME##_##SUFFIX({.probe = #NAME,                           \
                                                                   .form = FORM,                             \
                                                                   .opcode = OPCODE,                         \
                                                                   .kernel_name = #NAME "_" #SUFFIX,         \
                                                                   .kinds = "iii",                           \
                                                                   .kernel = NAME##_##SUFFIX,                \
                                                                   .threads = THREADS,                       \
                                                                   .in_code = latency::kInCode * (PER_STEP), \
                                                                   .trips = latency::kTrips,                 \
                                                                   .guarded = false,                         \
                                                                   .guard_in_code = false,                   \
                                                                   .uniform_guard = true,                    \
                                                                   .control = false,                         \
                                                                   .uniform_operands = true,                 \
                                                                   .noise = latency::Noise::kInsideSm});

#define PROBE_UNIFORM(NAME, OPCODE, PER_STEP, PTX)                                                  \
  namespace latency::op {                                                                           \
  struct NAME {                                                                                     \
    __device__ __forceinline__ static void issue(uint32_t& y, uint32_t x, uint32_t b, uint32_t c) { \
      asm volatile(PTX : "+r"(y) : "r"(x), "r"(b), "r"(c));                                         \
    }                                                                                               \
  };                                                                                                \
  }                                                                                                 \
  UNIFORM_CASE(NAME, chain, "chain", OPCODE, PER_STEP, latency::kLanes)                             \
  UNIFORM_CASE(NAME, stream, "stream", OPCODE, PER_STEP, latency::kStreamThreads)

PROBE_UNIFORM(uiadd3, "UIADD3 .*UR\\d+, UR\\d+, UR\\d+, UR\\d+", 1,
              "{ .reg .b32 t; add.u32 t, %1, %2; add.u32 %0, t, %3; }")
PROBE_UNIFORM(uimad, "UIMAD", 1, "mad.lo.u32 %0, %1, %2, %3;")
PROBE_UNIFORM(ulea, "ULEA", 1, "{ .reg .b32 t; shl.b32 t, %1, 5; add.u32 %0, t, %2; }")
PROBE_UNIFORM(ulop3, "ULOP3\\.LUT", 2, "lop3.b32 %0, %1, %2, %3, 0x96;")
PROBE_UNIFORM(ushf, "USHF\\.L\\.W\\.U32\\.HI", 1, "shf.l.wrap.b32 %0, %1, %2, %3;")
PROBE_UNIFORM(ushf_left, "USHF\\.L\\.U32", 1, "shl.b32 %0, %1, %2;")
PROBE_UNIFORM(uprmt, "UPRMT", 1, "prmt.b32 %0, %1, %2, %3;")
PROBE_UNIFORM(uisetp_usel, "(UISETP\\.GE\\.AND|USEL)", 2,
              "{ .reg .pred p; setp.lt.s32 p, %1, %2; selp.b32 %0, %3, %2, p; }")
PROBE_UNIFORM(usgxt, "USGXT\\.W", 1, "szext.wrap.s32 %0, %1, %2;")
PROBE_UNIFORM(ubmsk, "UBMSK", 1, "bmsk.clamp.b32 %0, %1, %2;")
PROBE_UNIFORM(upopc, "UPOPC", 1, "popc.b32 %0, %1;")
PROBE_UNIFORM(uflo, "UFLO\\.U32", 1, "bfind.u32 %0, %1;")
PROBE_UNIFORM(ubrev, "UBREV", 1, "brev.b32 %0, %1;")
PROBE_UNIFORM(voteu, "VOTEU\\.ANY", 1,
              "{ .reg .pred p; setp.lt.s32 p, %1, %2; vote.sync.ballot.b32 %0, p, 0xffffffff; }")
PROBE_UNIFORM(
    uplop3, "UPLOP3\\.LUT", 2,
    "{ .reg .pred p, q, r, s, t; setp.lt.s32 p, %1, %2; setp.lt.s32 q, %1, %3; setp.gt.s32 r, %1, 77;"
    " and.pred s, p, q; or.pred t, p, q; and.pred t, t, r; or.pred s, s, t; selp.b32 %0, %3, %2, s; }")
