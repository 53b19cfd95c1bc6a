#include "launch/checks.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>

#include "launch/config.h"
#include "launch/launch.h"

namespace dhp {
namespace {

constexpr int64_t kRowAlignment = 16;    // bytes, of one vector load
constexpr int64_t kChannelMultiple = 8;  // D
constexpr int64_t kChannelLimit = 256;
constexpr int64_t kPositionLimit = int64_t{1} << 30;  // T, S: the sum of two positions fits 32 bits

std::string text(int64_t value) { return std::to_string(value); }

std::string check_dtype(const char* what, DType dtype) {
  if (dtype_name(dtype) != nullptr) return {};
  return std::string(what) + " has dtype number " + text(static_cast<int32_t>(dtype)) +
         ", for which no kernel is compiled; use " + kDTypesHeld + ".";
}

}  // namespace

std::string describe(const Problem& problem) {
  const Shape& shape = problem.shape;
  const char* dtype = dtype_name(problem.dtype);
  return "V=" + text(shape.V) + ", B=" + text(shape.B) + ", T=" + text(shape.T) + ", S=" + text(shape.S) +
         ", N=" + text(shape.N) + ", K=" + text(shape.K) + ", D=" + text(shape.D) + ", " +
         (dtype == nullptr ? "unknown dtype" : dtype);
}

std::string check_alignment(const char* name, const void* data, int64_t stride_v, int64_t stride_b,
                            int64_t stride_row, int64_t stride_head, DType dtype) {
  const int64_t strides = stride_v | stride_b | stride_row | stride_head;
  const bool is_aligned = reinterpret_cast<uintptr_t>(data) % kRowAlignment == 0 &&
                          strides * element_bytes(dtype) % kRowAlignment == 0;
  if (is_aligned) return {};
  return std::string(name) + " has rows that do not start on " + text(kRowAlignment) +
         "-byte boundaries; pass a contiguous array.";
}

std::string check_problem(const Problem& problem) {
  const Shape& shape = problem.shape;
  std::string broken = check_dtype("query", problem.dtype);
  if (broken.empty() && problem.bias.data != nullptr) broken = check_dtype("bias", problem.bias_dtype);
  if (broken.empty() && (shape.D % kChannelMultiple != 0 || shape.D < 0 || shape.D > kChannelLimit)) {
    broken = "D=" + text(shape.D) + " channels; D must be a multiple of " + text(kChannelMultiple) +
             " up to " + text(kChannelLimit) + ": pad with zeros.";
  }
  if (broken.empty() && shape.N != 0 && (shape.K <= 0 || shape.N % shape.K != 0)) {
    broken = text(shape.N) + " query heads cannot be shared evenly by " + text(shape.K) +
             " key heads; make N a multiple of K.";
  }
  if (broken.empty() && std::max(shape.T, shape.S) > kPositionLimit) {
    broken = "T=" + text(shape.T) + ", S=" + text(shape.S) + " positions; at most " + text(kPositionLimit) +
             " are supported: split the sequence.";
  }
  if (broken.empty()) broken = check_rows("query", problem.query, problem.dtype);
  if (broken.empty()) broken = check_rows("key", problem.key, problem.dtype);
  if (broken.empty()) broken = check_rows("value", problem.value, problem.dtype);
  return broken;
}

std::string check_device() {
  int device = 0, major = 0, minor = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  if (error != cudaSuccess) {
    return std::string("cannot ask for the current GPU: ") + cudaGetErrorString(error) + ".";
  }
  return gpu_objection(major, minor);
}

bool device_is_hopper() {
  int device = 0, major = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         major == 9;
}

int count_multiprocessors() {
  int device = 0, count = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return std::max(count, 1);
}

// Machine code runs on its own major version from its own minor version upward, the embedded 8.7 aside;
// sm_90a on 9.0 alone.
std::string gpu_objection(int major, int minor) {
  switch (10 * major + minor) {
    case 80:
    case 86:
    case 89:
    case 90: return {};
  }
  return "the GPU has compute capability " + text(major) + "." + text(minor) +
         "; the library holds machine code for sm_80 (runs on 8.0, 8.6 and 8.9) and sm_90a (9.0), and no "
         "PTX, on purpose, so that what runs is what was checked. Use one of these GPUs, or the CPU.";
}

}  // namespace dhp
