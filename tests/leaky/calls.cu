// Calls whose target a secret chooses.

using Function = float (*)(float);

__device__ __noinline__ float twice(float x) { return x + x; }
__device__ __noinline__ float square(float x) { return x * x; }
__device__ __noinline__ float cube(float x) { return x * x * x; }

__constant__ Function constant_functions[3] = {twice, square, cube};
__device__ Function device_functions[3] = {twice, square, cube};

// Calls one of three functions, from a table of constants that a secret indexes.
//
// sass: LDC R\d+, c\[0x3\]\[R\d+
// sass: LDC.64 R\d+, c\[0x2\]\[R\d+
// sass: CALL.REL.NOINC R\d+
__global__ void L09_call_from_constant_table(const int* segments, float* out) {
  const int segment = segments[threadIdx.x];
  out[threadIdx.x] = constant_functions[segment](out[threadIdx.x]);  // expect: CT01, CT02
}

// The same from a table in global memory.
//
// sass: LDC.64 R\d+, c\[0x2\]\[R\d+
// sass: CALL.REL.NOINC R\d+
__global__ void L09_call_from_device_table(const int* tokens, float* out) {
  const int token = tokens[threadIdx.x];
  out[threadIdx.x] = device_functions[token](out[threadIdx.x]);  // expect: CT01, CT02
}

// One of two functions by the sign of a score, without a table.
//
// sass: SEL R\d+
// sass: LDC.64 R\d+, c\[0x2\]\[R\d+
// sass: CALL.REL.NOINC R\d+
__global__ void L09_call_chosen_by_score(const float* scores, float* out) {
  const float score = scores[threadIdx.x];
  const Function function = score > 0.0f ? square : cube;
  out[threadIdx.x] = function(out[threadIdx.x]);  // expect: CT01, CT02
}
