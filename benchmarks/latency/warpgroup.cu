// Tensor instructions of a warpgroup. A and B lie in shared memory, or A in registers; all words are of the
// class.
//
// Each step waits for its own products, and the next reads the sums: a chain. In a stream a step issues four
// before it waits, in three warpgroups. In the guarded forms the guard is the scale-d predicate: whether the
// sums so far count.

#include "harness.cuh"

namespace latency {

constexpr int kWarpgroup = 128;
constexpr int kTileBytes = 8192;  // 64 rows of 128 bytes
constexpr int kSums = 32;         // of a 64 x 64 product, a thread

// Rows of 128 bytes under the 128-byte swizzle: 8 rows are 1024 bytes.
__device__ __forceinline__ uint64_t tile_descriptor(const unsigned char* tile) {
  constexpr uint64_t kLeading = 1, kStride = 1024 >> 4, kSwizzle128 = 1;
  return ((shared_address(tile) & 0x3ffff) >> 4) | kLeading << 16 | kStride << 32 | kSwizzle128 << 62;
}

// Multiply has issue<kGuarded>(sums, a registers, a descriptor, b descriptor, guard).
template <class Multiply, int kBatch, bool kGuarded>
struct WarpgroupProbe {
  uint32_t sums[kSums], a0[kWords], a[kWords], guard, zero;
  uint64_t a_tile, b_tile;

  __device__ __forceinline__ uint32_t load(const Setting& setting, uint32_t own_zero) {
    zero = setting.zero;
    guard = setting.guard();
    auto* tiles = reinterpret_cast<uint32_t*>(setting.shared);
    constexpr int kTileWords = kTileBytes / 4;
    for (int i = threadIdx.x; i < 2 * kTileWords; i += blockDim.x) {
      tiles[i] = setting.word_of_lane(i / kTileWords, i / kLanes % kWords, i % kLanes);
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    a_tile = tile_descriptor(setting.shared);
    b_tile = tile_descriptor(setting.shared + kTileBytes);
    uint32_t mixture = guard;
#pragma unroll
    for (int w = 0; w < kWords; ++w) mixture ^= a0[w] = a[w] = setting.word(0, w) | own_zero;
#pragma unroll
    for (int i = 0; i < kSums; ++i) mixture ^= sums[i] = setting.word(2, i % kWords);
    return mixture;
  }

  __device__ __forceinline__ uint32_t touch() const { return 0; }
  __device__ __forceinline__ void begin(uint32_t start) { sums[0] |= start & zero; }

  __device__ __forceinline__ void step() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (int i = 0; i < kBatch; ++i) Multiply::template issue<kGuarded>(sums, a, a_tile, b_tile, guard);
    asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;" ::: "memory");
    if constexpr (Multiply::kFromRegisters) a[0] = a0[0] | (sums[0] & zero);
  }

  __device__ __forceinline__ uint32_t done() const {
    uint32_t mixture = a[0];
#pragma unroll
    for (int i = 0; i < kSums; ++i) mixture ^= sums[i];
    return mixture;
  }
};

}  // namespace latency

#define SUMS                                                                                              \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
  "%22,"                                                                                                  \
  " %23, %24, %25, %26, %27, %28, %29, %30, %31}"
#define SUM_OPERANDS                                                                                        \
  "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]), "+r"(d[5]), "+r"(d[6]), "+r"(d[7]),           \
      "+r"(d[8]), "+r"(d[9]), "+r"(d[10]), "+r"(d[11]), "+r"(d[12]), "+r"(d[13]), "+r"(d[14]), "+r"(d[15]), \
      "+r"(d[16]), "+r"(d[17]), "+r"(d[18]), "+r"(d[19]), "+r"(d[20]), "+r"(d[21]), "+r"(d[22]),            \
      "+r"(d[23]), "+r"(d[24]), "+r"(d[25]), "+r"(d[26]), "+r"(d[27]), "+r"(d[28]), "+r"(d[29]),            \
      "+r"(d[30]), "+r"(d[31])

// A is "%32" (its descriptor) or the registers %34 to %37, B is %33, the predicate is `accumulate`.
#define WARPGROUP_OP(NAME, FROM_REGISTERS, INSTRUCTION)                                             \
  namespace latency::op {                                                                           \
  struct NAME {                                                                                     \
    static constexpr bool kFromRegisters = FROM_REGISTERS;                                          \
    template <bool kGuarded>                                                                        \
    __device__ __forceinline__ static void issue(uint32_t* d, const uint32_t* a, uint64_t a_tile,   \
                                                 uint64_t b_tile, uint32_t guard) {                 \
      asm volatile("{\n.reg .pred accumulate;\nsetp.ne.u32 accumulate, %38, 0;\n" INSTRUCTION "\n}" \
                   : SUM_OPERANDS                                                                   \
                   : "l"(a_tile), "l"(b_tile), "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]),          \
                     "r"(kGuarded ? guard : 1u));                                                   \
    }                                                                                               \
  };                                                                                                \
  }

#define WARPGROUP_CASE(NAME, SUFFIX, FORM, OPCODE, KINDS, BATCH, THREADS, GUARDED)                   \
  extern "C" __global__ void __launch_bounds__(THREADS)                                              \
      NAME##_##SUFFIX(const __grid_constant__ latency::Run run) {                                    \
    using namespace latency;                                                                         \
    measure<WarpgroupProbe<op::NAME, BATCH, GUARDED>, 1, 16 / BATCH, kTrips>(run);                   \
  }                                                                                                  \
  static const latency::Registration registered_##NAME##_##SUFFIX({.probe = #NAME,                   \
                                                                   .form = FORM,                     \
                                                                   .opcode = OPCODE,                 \
                                                                   .kernel_name = #NAME "_" #SUFFIX, \
                                                                   .kinds = KINDS,                   \
                                                                   .kernel = NAME##_##SUFFIX,        \
                                                                   .threads = THREADS,               \
                                                                   .in_code = 16,                    \
                                                                   .trips = latency::kTrips,         \
                                                                   .guarded = GUARDED,               \
                                                                   .guard_in_code = false,           \
                                                                   .uniform_guard = true,            \
                                                                   .control = false,                 \
                                                                   .uniform_operands = false,        \
                                                                   .noise = latency::Noise::kInsideSm});

#define PROBE_WARPGROUP(NAME, OPCODE, KINDS, FROM_REGISTERS, INSTRUCTION)                           \
  WARPGROUP_OP(NAME, FROM_REGISTERS, INSTRUCTION)                                                   \
  WARPGROUP_CASE(NAME, chain, "chain", OPCODE, KINDS, 1, latency::kWarpgroup, false)                \
  WARPGROUP_CASE(NAME, stream, "stream", OPCODE, KINDS, 4, 3 * latency::kWarpgroup, false)          \
  WARPGROUP_CASE(NAME, chain_guarded, "chain guarded", OPCODE, KINDS, 1, latency::kWarpgroup, true) \
  WARPGROUP_CASE(NAME, stream_guarded, "stream guarded", OPCODE, KINDS, 4, 3 * latency::kWarpgroup, true)

#define WGMMA(SHAPE_AND_TYPES) "wgmma.mma_async.sync.aligned." SHAPE_AND_TYPES " " SUMS

PROBE_WARPGROUP(hgmma_bf16, "HGMMA\\.64x64x16\\.F32\\.BF16", "bbf", false,
                WGMMA("m64n64k16.f32.bf16.bf16") ", %32, %33, accumulate, 1, 1, 0, 0;")
PROBE_WARPGROUP(hgmma_bf16_registers, "HGMMA\\.64x64x16\\.F32\\.BF16", "bbf", true,
                WGMMA("m64n64k16.f32.bf16.bf16") ", {%34, %35, %36, %37}, %33, accumulate, 1, 1, 0;")
PROBE_WARPGROUP(hgmma_f16, "HGMMA\\.64x64x16\\.F32", "hhf", false,
                WGMMA("m64n64k16.f32.f16.f16") ", %32, %33, accumulate, 1, 1, 0, 0;")
PROBE_WARPGROUP(hgmma_f16_registers, "HGMMA\\.64x64x16\\.F32", "hhf", true,
                WGMMA("m64n64k16.f32.f16.f16") ", {%34, %35, %36, %37}, %33, accumulate, 1, 1, 0;")
PROBE_WARPGROUP(hgmma_tf32, "HGMMA\\.64x64x8\\.F32\\.TF32", "fff", false,
                WGMMA("m64n64k8.f32.tf32.tf32") ", %32, %33, accumulate, 1, 1;")
PROBE_WARPGROUP(qgmma_e4m3, "QGMMA\\.64x64x32\\.F32\\.E4M3\\.E4M3", "qqf", false,
                WGMMA("m64n64k32.f32.e4m3.e4m3") ", %32, %33, accumulate, 1, 1;")
PROBE_WARPGROUP(igmma_s8, "IGMMA\\.64x64x32\\.S8\\.S8", "ssi", false,
                WGMMA("m64n64k32.s32.s8.s8") ", %32, %33, accumulate;")
