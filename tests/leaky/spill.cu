// A control of the build: 64 values that live at once in the 32 registers that 2048 threads leave each other.
// ptxas must spill them, and the build must refuse that (CMakeLists.txt).

constexpr int kValues = 64;

__global__ void __launch_bounds__(1024, 2) spill(const float* in, float* out) {
  float values[kValues];
  for (int i = 0; i < kValues; ++i) values[i] = in[1024 * i + threadIdx.x];
  for (int round = 0; round < 4; ++round) {
    for (int i = 0; i < kValues; ++i) values[i] = values[i] * values[(i + 7) % kValues] + 1.0f;
  }
  for (int i = 0; i < kValues; ++i) out[1024 * i + threadIdx.x] = values[i];
}
