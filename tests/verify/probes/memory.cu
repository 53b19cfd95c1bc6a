// Memory of every space and width, atomics and cache hints. Only the def/use of each instruction is held
// against nvdisasm.

#include <cuda_fp16.h>

#include <cstdint>

__constant__ float kTable[64];

__global__ void widths(const uint8_t* bytes, const ushort2* pairs, const int4* words, double2* doubles,
                       int n) {
  doubles[0].x = bytes[threadIdx.x] + pairs[threadIdx.x].x + words[threadIdx.x].z;
  const double2 loaded = doubles[1];
  doubles[2] = {loaded.y, loaded.x};
  reinterpret_cast<uint8_t*>(doubles + 3)[n] = static_cast<uint8_t>(n);
  reinterpret_cast<int16_t*>(doubles + 4)[n] = reinterpret_cast<const int8_t*>(bytes)[n];
  doubles[5].x = __ldg(bytes + n) + __ldcs(&words[n].y) + __ldcg(&words[n].w);
  int volatile_word;
  asm volatile("ld.volatile.global.u32 %0, [%1];" : "=r"(volatile_word) : "l"(words));
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(volatile_word) : "l"(words));
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(doubles + 7), "r"(volatile_word));
  asm volatile("prefetch.global.L2 [%0];" ::"l"(words));
}

__global__ void spaces(const float* in, float* out, int index) {
  __shared__ float tile[256];
  extern __shared__ float dynamic[];
  float spilled[32];
  for (int i = 0; i < 32; ++i) spilled[i] = in[i];
  tile[threadIdx.x] = in[threadIdx.x];
  dynamic[threadIdx.x] = in[threadIdx.x + 1];
  __syncthreads();
  spilled[index & 31] = 1.0f;
  out[0] = spilled[(index + 3) & 31] + tile[index] + dynamic[threadIdx.x ^ 1] + kTable[index];
  reinterpret_cast<float4*>(tile)[threadIdx.x] = reinterpret_cast<float4*>(dynamic)[threadIdx.x];
  float* generic = index > 3 ? tile : out;
  generic[1] = generic[2];
  reinterpret_cast<double*>(generic)[2] = reinterpret_cast<double*>(generic)[3];
  reinterpret_cast<uint8_t*>(tile)[index] = reinterpret_cast<uint8_t*>(tile)[index + 1];
}

__global__ void atomics(int* counters, float* sums, uint64_t* wide, __half2* halves, int value) {
  __shared__ int bins[32];
  bins[threadIdx.x] = 0;
  __syncthreads();
  atomicAdd(bins + (value & 31), 1);
  counters[0] =
      atomicAdd(counters + 1, value) + atomicCAS(counters + 2, value, 3) + atomicExch(counters + 3, value);
  atomicMax(counters + 4, value);
  atomicAdd(sums, 1.5f);
  sums[1] = atomicAdd(sums + 2, 2.5f);
  atomicAdd(reinterpret_cast<unsigned long long*>(wide), 5ull);
  wide[1] = atomicCAS(reinterpret_cast<unsigned long long*>(wide) + 2, 6ull,
                      static_cast<unsigned long long>(value));
  atomicAdd(halves, __floats2half2_rn(1.0f, 2.0f));
  atomicAnd(bins + 1, value);
  counters[5] = atomicCAS(bins + 2, value, 7) + atomicInc(reinterpret_cast<unsigned*>(bins + 3), 9);
  wide[3] = atomicMin(reinterpret_cast<unsigned long long*>(wide) + 4, 7ull);
  atomicAdd(value > 3 ? bins : counters, 1);
}

__global__ void matrices(const uint32_t* in, float* out, int* sums, double* doubles) {
  uint32_t a[4], b[2];
  for (int i = 0; i < 4; ++i) a[i] = in[4 * threadIdx.x + i];
  for (int i = 0; i < 2; ++i) b[i] = in[2 * threadIdx.x + i + 128];
  float d[4] = {};
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, "
      "%1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(b[0]));
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, "
      "%1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  uint32_t h[2] = {a[0], a[1]};
  asm("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%0, %1}, {%2, %3, %4, %5}, {%6, %7}, {%0, %1};"
      : "+r"(h[0]), "+r"(h[1])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  int s[4] = {};
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, "
      "%1, %2, %3};"
      : "+r"(s[0]), "+r"(s[1]), "+r"(s[2]), "+r"(s[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  double f[2] = {};
  asm("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
      : "+d"(f[0]), "+d"(f[1])
      : "d"(doubles[threadIdx.x]), "d"(doubles[threadIdx.x + 32]));
  doubles[0] = f[0];
  doubles[1] = f[1];
  for (int i = 0; i < 4; ++i) out[i] = d[i];
  out[4] = __uint_as_float(h[0] ^ h[1]);
  for (int i = 0; i < 4; ++i) sums[i] = s[i];
}
