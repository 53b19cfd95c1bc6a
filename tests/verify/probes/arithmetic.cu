// Arithmetic of every width and sort, so that the parser meets the forms that ptxas writes. Nothing here is
// an example of constant-time code: only the def/use of each instruction is held against nvdisasm.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

__global__ void integers(const int* a, const int* b, int* out, int n, int64_t wide) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  int x = a[i], y = b[i];
  int64_t product = static_cast<int64_t>(x) * y + wide;
  out[0] = x + y - n;
  out[1] = x * y + n;
  out[2] = __mulhi(x, y);
  out[3] = static_cast<int>(product) ^ static_cast<int>(product >> 32);
  out[4] = min(max(x, y), n);
  out[5] = abs(x) + (x << (y & 31)) + (x >> 3);
  out[6] = __popc(x) + __clz(y) + __ffs(x) + __brev(y);
  out[7] = __byte_perm(x, y, 0x5410);
  out[8] = __funnelshift_l(x, y, n);
  out[9] = (x & y) | ~n;
  out[10] = x / y + x % n;
  out[11] = static_cast<unsigned>(x) / 7u;
  out[12] = __dp4a(x, y, n);
  out[13] = __vadd2(x, y) + __vabsdiffs4(x, y);
  out[14] = static_cast<int>((wide + product) >> (n & 63));
  out[15] = x > y ? static_cast<int>(wide) : y;
  out[16] = static_cast<int8_t>(x) + static_cast<int16_t>(y);
  out[17] = (x & 0xff00) >> 8;
  out[18] = __vimax3_s32(x, y, n) + __vimin3_u32(x, y, n) + __viaddmax_s32(x, y, n);
  out[19] = static_cast<int>(wide / (product | 1));
  out[20] = x < y && y < n && (x ^ n) != 3;
  out[21] = __viaddmin_s32_relu(x, y, n) + __vimax_s32_relu(x, y);
}

__global__ void floats(const float* a, const float* b, float* out, float c) {
  float x = a[threadIdx.x], y = b[threadIdx.x];
  out[0] = x + y;
  out[1] = x * y;
  out[2] = fmaf(x, y, c);
  out[3] = fmaxf(fminf(x, y), c);
  out[4] = x > y ? x : c;
  out[5] = x / y;
  out[6] = sqrtf(x) + rsqrtf(y);
  out[7] = expf(x) + logf(y) + exp2f(c);
  out[8] = sinf(x) * cosf(y);
  out[9] = tanhf(x) + powf(x, y);
  out[10] = floorf(x) + rintf(y) + truncf(c);
  out[11] = static_cast<int>(x) + static_cast<unsigned>(y) + static_cast<float>(__float2ll_rn(c));
  out[12] = __int_as_float(__float_as_int(x) & 0x7fffffff) + copysignf(x, y);
  out[13] = isnan(x) || isinf(y) ? 0.0f : x;
  out[14] = __saturatef(x) + fabsf(y) - fmaf(-x, y, c);
  out[15] = __frcp_rn(x) + __fdividef(x, y) + __sinf(c);
  out[16] = x < y || (y < c && x > 0.5f) ? 1.0f : -1.0f;
  out[17] = fmaxf(fmaxf(x, y), fmaxf(c, 2.0f * x));
}

__global__ void doubles(const double* a, const double* b, double* out, double c, int n) {
  double x = a[threadIdx.x], y = b[threadIdx.x];
  out[0] = x + y;
  out[1] = x * y + c;
  out[2] = fma(x, y, c);
  out[3] = x > y ? x : c;
  out[4] = x / y;
  out[5] = sqrt(x) + exp(y);
  out[6] = static_cast<double>(n) + static_cast<float>(x);
  out[7] = static_cast<double>(static_cast<int>(y)) + static_cast<double>(static_cast<int64_t>(x));
  out[8] = fmax(x, fmin(y, c)) + floor(x);
  out[9] = x * 3.0;
}

__global__ void halves(const __half2* a, const __nv_bfloat162* b, float* out, float c) {
  const __half2 x = a[threadIdx.x], y = a[threadIdx.x + 32];
  const __nv_bfloat162 u = b[threadIdx.x], v = b[threadIdx.x + 32];
  __half2* of_half = reinterpret_cast<__half2*>(out);
  __nv_bfloat162* of_bfloat = reinterpret_cast<__nv_bfloat162*>(out + 32);
  of_half[0] = __hadd2(x, y);
  of_half[1] = __hfma2(x, y, x);
  of_half[2] = __hmul2(x, y);
  of_half[3] = __hmax2(x, y);
  of_half[4] = h2exp2(x);
  of_half[5] = __floats2half2_rn(c, __low2float(y));
  of_half[6] = __hgt2(x, y);
  of_half[7] = __hlt(x.x, y.x) ? x : y;
  of_half[8] = __halves2half2(__float2half(c), x.y);
  of_bfloat[0] = __hadd2(u, v);
  of_bfloat[1] = __hfma2(u, v, u);
  of_bfloat[2] = __hmul2(u, v);
  of_bfloat[3] = __hmin2(u, v);
  of_bfloat[4] = __floats2bfloat162_rn(c, __high2float(v));
  of_bfloat[5] = h2rcp(u);
  out[64] = __bfloat162float(u.x) + __half2float(x.y);
  out[65] = static_cast<float>(__half2int_rn(x.x)) + __half2float(__hmul(y.y, __float2half(c)));
}

__global__ void packed_conversions(const float* a, uint16_t* out, int8_t* bytes) {
  const float x = a[threadIdx.x], y = a[threadIdx.x + 32];
#if __CUDA_ARCH__ >= 890
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(out[0]) : "f"(x), "f"(y));
  asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(out[1]) : "f"(x), "f"(y));
#endif
  uint32_t tf32;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(tf32) : "f"(x));
  out[2] = static_cast<uint16_t>(tf32 >> 16);
  bytes[0] = static_cast<int8_t>(min(max(static_cast<int>(x), -128), 127));
  bytes[1] = static_cast<int8_t>(__float2int_rd(y));
}
