// Device memory that is given back, and errors of the CUDA runtime as exceptions.

#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace dhp {

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // taken: the next CUDA call of this thread must not report it again
  throw std::runtime_error(std::string("dhp_controls: ") + what + ": " + cudaGetErrorString(error));
}

template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(int64_t size) : size_(size) {
    check(cudaMalloc(&data_, bytes()), "no device memory");
    check(cudaMemset(data_, 0, bytes()), "device memory cannot be cleared");
  }
  DeviceArray(const T* host, int64_t size) : DeviceArray(size) {
    check(cudaMemcpy(data_, host, bytes(), cudaMemcpyHostToDevice), "copy to the device");
  }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  ~DeviceArray() { cudaFree(data_); }

  T* data() const { return data_; }
  void copy_to(T* host) const {
    check(cudaMemcpy(host, data_, bytes(), cudaMemcpyDeviceToHost), "copy from the device");
  }

 private:
  size_t bytes() const { return (size_ > 0 ? size_ : 1) * sizeof(T); }
  int64_t size_;
  T* data_ = nullptr;
};

// Runs a body; nullptr, or the text of what it threw.
template <typename Body>
const char* told(Body body) {
  static thread_local std::string message;
  try {
    body();
    return nullptr;
  } catch (const std::exception& problem) {
    message = problem.what();
    return message.c_str();
  }
}

}  // namespace dhp
