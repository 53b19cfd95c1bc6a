// Copies by the copy engine: secret data between global and shared memory, at public addresses and of public
// sizes.
//
// One thread issues a copy and waits until it is done; the next copy comes after. All four leave the SM.

#include "harness.cuh"

namespace latency {

constexpr int kCopyBytes = kTileSide * kTileSide * 4;
constexpr int kCopiesInCode = 4;
constexpr int kCopyTrips = 16;

// A whole tile: every word of the store and of shared memory that a copy reads is of the class.
__device__ __forceinline__ void fill_tiles(const Setting& setting) {
  for (int i = threadIdx.x; i < kTileSide * kTileSide; i += blockDim.x) {
    const uint32_t word = setting.word_of_lane(0, i / kLanes % kWords, i % kLanes);
    setting.store[i] = word;
    reinterpret_cast<uint32_t*>(setting.shared)[i] = word;
  }
  asm volatile("fence.proxy.async;" ::: "memory");
}

__device__ __forceinline__ uint32_t barrier_address(const Setting& setting) {
  return shared_address(setting.shared + kSharedBytes - 8);
}

// Brings a tile into shared memory; a barrier in shared memory says when it is there.
template <class Copy>
struct LoadProbe {
  uint32_t to, barrier, phase;
  uint64_t from, tile;

  __device__ __forceinline__ uint32_t load(const Setting& setting, uint32_t) {
    fill_tiles(setting);
    to = shared_address(setting.shared);
    barrier = barrier_address(setting);
    from = reinterpret_cast<uint64_t>(setting.store);
    tile = reinterpret_cast<uint64_t>(setting.tile);
    phase = 0;
    if (threadIdx.x == 0) asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(barrier) : "memory");
    asm volatile("fence.proxy.async;" ::: "memory");
    return 0;
  }
  __device__ __forceinline__ uint32_t touch() const { return 0; }
  __device__ __forceinline__ void begin(uint32_t) {}
  __device__ __forceinline__ void step() {
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "n"(kCopyBytes)
                 : "memory");
    Copy::issue(to, from, tile, barrier);
    asm volatile(
        "{\n.reg .pred arrived;\nagain:\nmbarrier.try_wait.parity.shared.b64 arrived, [%0], %1;\n"
        "@!arrived bra again;\n}" ::"r"(barrier),
        "r"(phase)
        : "memory");
    phase ^= 1;
  }
  __device__ __forceinline__ uint32_t done() const {
    asm volatile("mbarrier.inval.shared.b64 [%0];" ::"r"(barrier) : "memory");
    return 0;
  }
};

// Writes a tile from shared memory and waits until it is written.
template <class Copy>
struct StoreProbe {
  uint32_t from;
  uint64_t to, tile;

  __device__ __forceinline__ uint32_t load(const Setting& setting, uint32_t) {
    fill_tiles(setting);
    from = shared_address(setting.shared);
    to = reinterpret_cast<uint64_t>(setting.store);
    tile = reinterpret_cast<uint64_t>(setting.tile);
    return 0;
  }
  __device__ __forceinline__ uint32_t touch() const { return 0; }
  __device__ __forceinline__ void begin(uint32_t) {}
  __device__ __forceinline__ void step() {
    Copy::issue(from, to, tile);
    asm volatile("cp.async.bulk.commit_group;\ncp.async.bulk.wait_group 0;" ::: "memory");
  }
  __device__ __forceinline__ uint32_t done() const { return 0; }
};

namespace op {

struct ublkcp_load {
  __device__ __forceinline__ static void issue(uint32_t to, uint64_t from, uint64_t, uint32_t barrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
        "l"(from), "n"(kCopyBytes), "r"(barrier)
        : "memory");
  }
};

struct utmaldg {
  __device__ __forceinline__ static void issue(uint32_t to, uint64_t, uint64_t tile, uint32_t barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %2}], "
        "[%3];" ::"r"(to),
        "l"(tile), "r"(0), "r"(barrier)
        : "memory");
  }
};

struct ublkcp_store {
  __device__ __forceinline__ static void issue(uint32_t from, uint64_t to, uint64_t) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(from),
                 "n"(kCopyBytes)
                 : "memory");
  }
};

struct utmastg {
  __device__ __forceinline__ static void issue(uint32_t from, uint64_t, uint64_t tile) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %1}], [%2];" ::"l"(tile),
                 "r"(0), "r"(from)
                 : "memory");
  }
};

}  // namespace op
}  // namespace latency

#define PROBE_COPY(NAME, PROBE_TYPE, OPCODE)                                                               \
  extern "C" __global__ void __launch_bounds__(1) NAME##_chain(const __grid_constant__ latency::Run run) { \
    using namespace latency;                                                                               \
    measure<PROBE_TYPE<op::NAME>, 1, kCopiesInCode, kCopyTrips>(run);                                      \
  }                                                                                                        \
  static const latency::Registration registered_##NAME##_chain({.probe = #NAME,                            \
                                                                .form = "chain",                           \
                                                                .opcode = OPCODE,                          \
                                                                .kernel_name = #NAME "_chain",             \
                                                                .kinds = "f--",                            \
                                                                .kernel = NAME##_chain,                    \
                                                                .threads = 1,                              \
                                                                .in_code = latency::kCopiesInCode,         \
                                                                .trips = latency::kCopyTrips,              \
                                                                .guarded = false,                          \
                                                                .guard_in_code = false,                    \
                                                                .uniform_guard = true,                     \
                                                                .control = false,                          \
                                                                .uniform_operands = false,                 \
                                                                .noise = latency::Noise::kBeyondSm});

PROBE_COPY(ublkcp_load, LoadProbe, "UBLKCP\\.S\\.G")
PROBE_COPY(utmaldg, LoadProbe, "UTMALDG\\.2D")
PROBE_COPY(ublkcp_store, StoreProbe, "UBLKCP\\.G\\.S")
PROBE_COPY(utmastg, StoreProbe, "UTMASTG\\.2D")
