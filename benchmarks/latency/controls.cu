// Probes that do depend on their operands. A run whose judge passes one of them is worth nothing.

#include "harness.cuh"

// Correctly rounded division: FCHK sends extreme operands down a slow path.
CONTROL(control_division, "FCHK", 1, "fff", 1, "div.rn.f32 %0, %4, %8;")

// A branch on the sign of the operand, around one instruction that ptxas does not guard.
CONTROL(control_branch, "FLO\\.U32", 1, "iii", 1,
        "{ .reg .pred p; setp.lt.s32 p, %4, 0; @p bra over; bfind.u32 %0, %4; over: }")

namespace latency {

// What a secret address does to shared memory: lanes that ask one bank for different words wait for each
// other.
__device__ __forceinline__ uint32_t load_at_secret_row(uint32_t base, uint32_t secret) {
  uint32_t y;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(y) : "r"(base + (secret % kLanes) * kLanes * 4));
  return y;
}

struct BankConflictProbe {
  uint32_t x0, x, y, base, zero;

  __device__ __forceinline__ uint32_t load(const Setting& setting, uint32_t own_zero) {
    zero = setting.zero;
    base = shared_address(setting.shared);
    x = x0 = setting.word(0, 0) | own_zero;
    return x;
  }
  __device__ __forceinline__ uint32_t touch() const { return 0; }
  __device__ __forceinline__ void begin(uint32_t start) { x = x0 | (start & zero); }
  __device__ __forceinline__ void step() {
    y = load_at_secret_row(base, x);
    x = x0 | (y & zero);
  }
  __device__ __forceinline__ uint32_t done() const { return x; }
};

// How small a difference is seen: 1024 dependent FFMA of equal operands, and once in all of them a leak.
template <bool kBranch>
struct OnceProbe {
  uint32_t x0, x, secret, base, zero;

  __device__ __forceinline__ uint32_t load(const Setting& setting, uint32_t own_zero) {
    zero = setting.zero;
    base = shared_address(setting.shared);
    secret = setting.word(0, 0) | own_zero;
    x = x0 = 0x3f800000 | own_zero;
    return secret;
  }
  __device__ __forceinline__ uint32_t touch() const { return 0; }
  __device__ __forceinline__ void begin(uint32_t start) {
    x = x0 | (start & zero);
    if constexpr (kBranch) {
      uint32_t y = 0;
      asm volatile("{\n.reg .pred p;\nsetp.ge.s32 p, %1, 0;\n@p bra over;\nbfind.u32 %0, %1;\nover:\n}"
                   : "+r"(y)
                   : "r"(secret | (start & zero)));
      x = x0 | (y & zero);
    } else {
      x = x0 | (load_at_secret_row(base, secret | (start & zero)) & zero);
    }
  }
  __device__ __forceinline__ void step() {
    uint32_t y;
    asm volatile("fma.rn.f32 %0, %1, %1, %1;" : "=r"(y) : "r"(x));
    x = x0 | (y & zero);
  }
  __device__ __forceinline__ uint32_t done() const { return x; }
};

}  // namespace latency

#define CONTROL_CASE(NAME, OPCODE, KINDS, ...)                                                 \
  extern "C" __global__ void __launch_bounds__(latency::kLanes)                                \
      NAME##_chain(const __grid_constant__ latency::Run run) {                                 \
    using namespace latency;                                                                   \
    measure<__VA_ARGS__, 1, kInCode, kTrips>(run);                                             \
  }                                                                                            \
  static const latency::Registration registered_##NAME##_chain({.probe = #NAME,                \
                                                                .form = "chain",               \
                                                                .opcode = OPCODE,              \
                                                                .kernel_name = #NAME "_chain", \
                                                                .kinds = KINDS,                \
                                                                .kernel = NAME##_chain,        \
                                                                .threads = latency::kLanes,    \
                                                                .in_code = latency::kInCode,   \
                                                                .trips = latency::kTrips,      \
                                                                .guarded = false,              \
                                                                .guard_in_code = false,        \
                                                                .uniform_guard = false,        \
                                                                .control = true,               \
                                                                .uniform_operands = false,     \
                                                                .noise = latency::Noise::kInsideSm});

CONTROL_CASE(control_bank_conflict, "LDS", "i--", BankConflictProbe)
CONTROL_CASE(control_conflict_once, "FFMA", "i--", OnceProbe<false>)
CONTROL_CASE(control_branch_once, "FFMA", "i--", OnceProbe<true>)
