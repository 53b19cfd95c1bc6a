// Every CUDA call is checked.

#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace latency {

inline void check(cudaError_t status, const std::string& what) {
  if (status != cudaSuccess) throw std::runtime_error(what + " failed: " + cudaGetErrorString(status));
}

}  // namespace latency
