// Spills: values that find no register lie in local memory for a while, where one is easily taken for
// another.

#include "force.cuh"

// More secrets at once than registers: they lie in memory after the kernel has ended.
//
// sass: STL \[R1
// sass: LDL
__global__ void __launch_bounds__(1024, 2) X03_spilled_secrets(const float* in, float* out) {
  float values[40];
#pragma unroll
  for (int i = 0; i < 40; ++i) values[i] = in[1024 * i + threadIdx.x];  // expect: CT08
#pragma unroll
  for (int round = 0; round < 2; ++round) {
#pragma unroll
    for (int i = 0; i < 40; ++i) values[i] = values[i] * values[(i + 7) % 40] + 1.0f;  // expect: CT08
  }
#pragma unroll
  for (int i = 0; i < 40; ++i) out[1024 * i + threadIdx.x] = values[i];
}

// Secrets, public places and a loop counter take turns in local memory. The verifier holds it for one region,
// so places and counter come back secret.
//
// sass: STL \[R1
// sass: LDL
__global__ void __launch_bounds__(1024, 2)
    X03_spilled_places_among_secrets(const float* in, int first, float* out) {
  const int thread = threadIdx.x;
  int places[12];
#pragma unroll
  for (int i = 0; i < 12; ++i) places[i] = opaque(first + i * thread);  // expect: CT08
  float values[34];
#pragma unroll
  for (int i = 0; i < 34; ++i) values[i] = opaque(in[1024 * i + threadIdx.x]);  // expect: CT08
#pragma unroll 1
  for (int round = 0; round < 4; ++round) {  // expect: CT01, CT08
#pragma unroll
    for (int i = 0; i < 34; ++i) values[i] = values[i] * values[(i + 7) % 34] + 1.0f;  // expect: CT08
  }
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < 34; ++i) sum += values[i];
#pragma unroll
  for (int i = 0; i < 12; ++i) out[places[i]] = sum + i;  // expect: CT02
}

// Local memory that holds public places alone, at fixed offsets from the stack pointer.
//
// expect: SAFE
// sass: STL \[R1
// sass: LDL
__global__ void __launch_bounds__(1024, 2) Y04_spilled_places(const float* in, int first, float* out) {
  int places[12];
#pragma unroll
  for (int i = 0; i < 12; ++i) places[i] = opaque(first + i * static_cast<int>(threadIdx.x));
  float values[24];
#pragma unroll
  for (int i = 0; i < 24; ++i) values[i] = opaque(in[1024 * i + threadIdx.x]);
#pragma unroll 1
  for (int round = 0; round < 4; ++round) {
#pragma unroll
    for (int i = 0; i < 24; ++i) values[i] = values[i] * values[(i + 7) % 24] + 1.0f;
  }
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < 24; ++i) sum += values[i];
#pragma unroll
  for (int i = 0; i < 12; ++i) out[places[i]] = sum + i;
}
