// The emulated launchers under the names of the host kernels: preloaded, they take their place in JAX on a
// CPU.

#include <stdexcept>

#include "host/attention.h"
#include "launch/launch.h"

namespace dhp {
namespace {

bool run(const LaunchStatus& status) {
  if (!status.ok()) throw std::runtime_error(status.message);
  return true;
}

}  // namespace

bool host_attention_fwd(const ForwardParams& params, const ThreadLender&) {
  return run(launch_attention_fwd(params, nullptr));
}
bool host_attention_bwd(const BackwardParams& params, const ThreadLender&) {
  return run(launch_attention_bwd(params, nullptr));
}
bool host_attention_bwd_bias(const BiasBackwardParams& params, const ThreadLender&) {
  return run(launch_attention_bwd_bias(params, nullptr));
}
const char* host_isa() { return "emulated"; }

}  // namespace dhp
