// Forms of Hopper instructions that the other probes do not reach: cache hints, prefetches, reductions,
// tensor-core types and sizes, predicates kept in registers. Only the def/use of each instruction is held
// against nvdisasm.

#include "hopper.cuh"

__global__ void hints(const __grid_constant__ TensorMap map, uint64_t policy, int x, const float* in,
                      float* out) {
  __shared__ alignas(128) float tile[1024];
  __shared__ uint64_t barrier;
  const uint32_t at = shared_address(&barrier), to = shared_address(tile);
  if (threadIdx.x == 0) {
    mbarrier_init(at, 1);
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint "
        "[%0], [%1, "
        "{%3, %4, %5}], [%2], %6;" ::"r"(to),
        "l"(&map), "r"(at), "r"(x), "r"(x + 1), "r"(x + 2), "l"(policy)
        : "memory");
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster."
        "L2::cache_hint "
        "[%0], [%1, {%3, %4, %5, %4, %3}], [%2], %6, %7;" ::"r"(to),
        "l"(&map), "r"(at), "r"(x), "r"(x + 1), "r"(x + 2), "h"(static_cast<uint16_t>(x)), "l"(policy)
        : "memory");
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], [%1, {%3, "
        "%4, %5}], "
        "[%2], {%6};" ::"r"(to),
        "l"(&map), "r"(at), "r"(x), "r"(x + 1), "r"(x + 2), "h"(static_cast<uint16_t>(x))
        : "memory");
    asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global [%0, {%1, %2}];" ::"l"(&map), "r"(x), "r"(x)
                 : "memory");
    asm volatile(
        "cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&map),
        "r"(x), "r"(x), "r"(to)
        : "memory");
    asm volatile(
        "cp.async.bulk.tensor.1d.global.shared::cta.bulk_group.L2::cache_hint [%0, {%1}], [%2], %3;" ::"l"(
            &map),
        "r"(x), "r"(to), "l"(policy)
        : "memory");
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(in), "r"(x * 16) : "memory");
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(out),
                 "r"(to), "r"(x * 16)
                 : "memory");
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, "
        "[%3], %4;" ::"r"(to),
        "l"(in), "r"(x * 16), "r"(at), "l"(policy)
        : "memory");
    asm volatile(
        "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
            map_to_rank(to, 1)),
        "r"(to), "r"(x * 16), "r"(map_to_rank(at, 1))
        : "memory");
    asm volatile(
        "red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.inc.u32 [%0], %1, [%2];" ::
            "r"(map_to_rank(to, 1)),
        "r"(x), "r"(map_to_rank(at, 1))
        : "memory");
    asm volatile("fence.proxy.tensormap::generic.acquire.gpu [%0], 128;" ::"l"(&map) : "memory");
    bulk_commit();
  }
  asm volatile("cp.async.mbarrier.arrive.shared.b64 [%0];" ::"r"(at) : "memory");
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(at) : "memory");
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(in), "r"(x)
               : "memory");
  asm volatile("cp.async.ca.shared.global.L2::cache_hint [%0], [%1], 8, %2;" ::"r"(to + 64), "l"(in),
               "l"(policy)
               : "memory");
  uint64_t state;
  asm volatile("mbarrier.arrive.shared::cta.b64 %0, [%1], 3;" : "=l"(state) : "r"(at) : "memory");
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(at), "r"(x) : "memory");
  uint32_t done;
  asm volatile("{\n .reg .pred p;\n mbarrier.try_wait.shared::cta.b64 p, [%1], %2;\n selp.u32 %0, 1, 0, p;\n}"
               : "=r"(done)
               : "r"(at), "l"(state)
               : "memory");
  asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(at) : "memory");
  float with_hint;
  asm volatile("ld.global.L2::cache_hint.f32 %0, [%1], %2;" : "=f"(with_hint) : "l"(in + x), "l"(policy));
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.f32 %0, [%1];" : "+f"(with_hint) : "l"(in + x));
  asm volatile("st.global.L1::evict_first.f32 [%0], %1;" ::"l"(out + x), "f"(with_hint));
  out[threadIdx.x] = tile[threadIdx.x] + static_cast<float>(done);
}

template <int kWords>
__device__ void keep(float* out, const uint32_t (&words)[kWords]) {
#pragma unroll
  for (int i = 0; i < kWords; ++i) out[i * 128 + threadIdx.x] = __uint_as_float(words[i]);
}

#define ACC8(d) "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]), "+r"(d[5]), "+r"(d[6]), "+r"(d[7])

__global__ void __launch_bounds__(128)
    tensor_types(float* out, uint64_t a, uint64_t b, const uint32_t* in, int flag) {
  uint32_t d[8] = {}, h[4] = {}, e[8] = {}, s[8] = {}, t[8] = {}, r[4];
  for (int i = 0; i < 4; ++i) r[i] = d[i] = d[i + 4] = in[i * 128 + threadIdx.x];
  wgmma_fence();
  asm volatile(
      "{\n .reg .pred p;\n setp.ne.b32 p, %10, 0;\n"
      " wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7}, %8, %9, p, 1, "
      "-1, 1, 1;\n}"
      : ACC8(d)
      : "l"(a), "l"(b), "r"(flag));
  asm volatile("wgmma.mma_async.sync.aligned.m64n16k16.f16.f16.f16 {%0, %1, %2, %3}, %4, %5, 1, 1, 1, 0, 0;"
               : "+r"(h[0]), "+r"(h[1]), "+r"(h[2]), "+r"(h[3])
               : "l"(a), "l"(b));
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n16k32.f32.e4m3.e5m2 {%0, %1, %2, %3, %4, %5, %6, %7}, %8, %9, 1, 1, "
      "1;"
      : ACC8(e)
      : "l"(a), "l"(b));
  asm volatile("wgmma.mma_async.sync.aligned.m64n16k32.s32.s8.u8 {%0, %1, %2, %3, %4, %5, %6, %7}, %8, %9, 1;"
               : ACC8(s)
               : "l"(a), "l"(b));
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n16k8.f32.tf32.tf32 {%0, %1, %2, %3, %4, %5, %6, %7}, {%8, %9, %10, "
      "%11}, %12, 1, 1, 1;"
      : ACC8(t)
      : "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]), "l"(b));
  wgmma_commit();
  wgmma_wait<0>();
  keep(out, d);
  keep(out + 1024, h);
  keep(out + 2048, e);
  keep(out + 3072, s);
  keep(out + 4096, t);
}

__global__ void predicates(const float* in, float* out, uint32_t bits, int count) {
  float values[24];
#pragma unroll
  for (int i = 0; i < 24; ++i) values[i] = in[i * 32 + threadIdx.x];
  const uint32_t mask = in[800] > 0.0f ? bits : ~bits;
#pragma unroll
  for (int i = 0; i < 24; ++i) values[i] = (mask >> i) & 1 ? values[i] : -1.0f;
  bool kept[12];
#pragma unroll
  for (int i = 0; i < 12; ++i) kept[i] = values[i] > values[i + 12];
  for (int round = 0; round < count; ++round) {
#pragma unroll
    for (int i = 0; i < 12; ++i) values[i] = kept[i] ? values[i] * values[(i + 1) % 12] : values[i] + 1.0f;
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 24; ++i) out[i * 32 + threadIdx.x] = values[i];
  int field;
  asm("bfe.s32 %0, %1, %2, 5;" : "=r"(field) : "r"(__float_as_int(values[0])), "r"(count));
  asm("bfi.b32 %0, %1, %0, %2, 7;" : "+r"(field) : "r"(bits), "r"(count));
  asm("bmsk.clamp.b32 %0, %0, %1;" : "+r"(field) : "r"(count));
  asm("szext.wrap.s32 %0, %0, %1;" : "+r"(field) : "r"(count));
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %0;" : "+r"(field));
  asm("tanh.approx.f32 %0, %0;" : "+f"(values[3]));
  asm("sqrt.approx.ftz.f32 %0, %0;" : "+f"(values[4]));
  out[0] =
      static_cast<float>(field) + values[3] + values[4] + cosf(values[5]) * fmaf(values[6], values[7], 1.0f);
}
