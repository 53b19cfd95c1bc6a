// The custom-call targets of each platform, for the Python module to hand to JAX.

#pragma once

#include <vector>

namespace dhp {

struct Registration {
  const char* target;
  void* handler;  // XLA_FFI_Handler*
};

std::vector<Registration> cpu_registrations();
std::vector<Registration> cuda_registrations();  // only in a build with CUDA

}  // namespace dhp
