// The doors to the CUDA kernels. The FFI layer calls these and knows nothing else of CUDA.
//
// Each launches on `stream` (a cudaStream_t) of the current device and returns at once: no allocation, no
// synchronisation, so that XLA may record the call into a command buffer.

#pragma once

#include <string>

#include "params.h"

namespace dhp {

// Empty message = success. A message names what came, the rule and the way out.
struct LaunchStatus {
  std::string message;
  bool ok() const { return message.empty(); }
};

LaunchStatus launch_attention_fwd(const ForwardParams& params, void* stream);
LaunchStatus launch_attention_bwd(const BackwardParams& params, void* stream);
LaunchStatus launch_attention_bwd_bias(const BiasBackwardParams& params, void* stream);

// Why the kernels cannot run on a GPU of this compute capability; empty where they can.
std::string gpu_objection(int major, int minor);

}  // namespace dhp
