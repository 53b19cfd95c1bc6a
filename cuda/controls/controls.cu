// libdhp_controls: the controls that are run alone.

#include "controls/controls.h"

#include "controls/device_memory.h"
#include "controls/leak.h"

namespace dhp {
namespace {

constexpr int kControlThreads = 128;

// Stops at a secret length, as attention does that skips what is padded: fewer loads, exponents and cycles.
__global__ void __launch_bounds__(kControlThreads)
    control_leak(const float* scores, const int64_t* length, int64_t columns, float* out) {
  __shared__ float sSum[kControlThreads];
  const float* row = scores + blockIdx.x * columns;
  float sum = 0;
#pragma unroll 1
  for (int64_t s = threadIdx.x; s < *length; s += kControlThreads) sum += exp2f(row[s]);
  sSum[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int lane = 1; lane < kControlThreads; ++lane) sum += sSum[lane];
  out[blockIdx.x] = sum;
}

// Adds up in the order in which the hardware happens to run the threads.
__global__ void __launch_bounds__(kControlThreads)
    control_unordered_sum(const float* values, int64_t n, float* out) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kControlThreads + threadIdx.x;
  if (index < n) atomicAdd(out, values[index]);
}

}  // namespace

void launch_control_leak(const float* scores, int64_t rows, int64_t columns, const int64_t* length,
                         float* out, void* stream) {
  control_leak<<<static_cast<unsigned>(rows), kControlThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      scores, length, columns, out);
  check(cudaGetLastError(), "control_leak did not launch");
}

}  // namespace dhp

extern "C" const char* dhp_controls_count_sms(int32_t* num_sms) {
  return dhp::told([&] {
    int device = 0;
    dhp::check(cudaGetDevice(&device), "no current GPU");
    dhp::check(cudaDeviceGetAttribute(num_sms, cudaDevAttrMultiProcessorCount, device), "no count of SMs");
  });
}

extern "C" const char* dhp_controls_leak(const float* scores, int64_t rows, int64_t columns, int64_t length,
                                         float* out) {
  return dhp::told([&] {
    const dhp::DeviceArray<float> device_scores(scores, rows * columns);
    const dhp::DeviceArray<int64_t> device_length(&length, 1);
    const dhp::DeviceArray<float> device_out(rows);
    dhp::launch_control_leak(device_scores.data(), rows, columns, device_length.data(), device_out.data(),
                             nullptr);
    device_out.copy_to(out);
  });
}

extern "C" const char* dhp_controls_unordered_sum(const float* values, int64_t n, float* out) {
  return dhp::told([&] {
    const dhp::DeviceArray<float> device_values(values, n);
    const dhp::DeviceArray<float> device_out(1);
    const int64_t blocks = (n + dhp::kControlThreads - 1) / dhp::kControlThreads;
    dhp::control_unordered_sum<<<static_cast<unsigned>(blocks), dhp::kControlThreads>>>(device_values.data(),
                                                                                        n, device_out.data());
    dhp::check(cudaGetLastError(), "control_unordered_sum did not launch");
    device_out.copy_to(out);
  });
}
