// The emulated launchers under the names of the host kernels: preloaded, they take their place in JAX on a
// CPU.

#include <cmath>
#include <stdexcept>
#include <vector>

#include "emulator.h"
#include "host/attention.h"
#include "launch/launch.h"
#include "launch/workspace.h"

namespace dhp {
namespace {

bool run(const LaunchStatus& status) {
  emulator::finish_launches();
  if (!status.ok()) throw std::runtime_error(status.message);
  return true;
}

}  // namespace

bool host_attention_fwd(const ForwardParams& params, const ThreadLender&) {
  ForwardParams with_workspace = params;
  std::vector<float> workspace(forward_workspace(workspace_facts(params.problem)), NAN);
  with_workspace.workspace = workspace.data();
  return run(launch_attention_fwd(with_workspace, nullptr));
}
bool host_attention_bwd(const BackwardParams& params, const ThreadLender&) {
  return run(launch_attention_bwd(params, nullptr));
}
bool host_attention_bwd_bias(const BiasBackwardParams& params, const ThreadLender&) {
  return run(launch_attention_bwd_bias(params, nullptr));
}
const char* host_isa() { return "emulated"; }

}  // namespace dhp
