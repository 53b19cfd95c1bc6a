// The kernels for compute capability 9.0 alone.

#pragma once

#include "launch/launch.h"
#include "params.h"

namespace dhp {

// Whether there is a kernel for this problem; else those for 8.0 take it.
bool has_attention_fwd_sm90(const Problem& problem);
LaunchStatus launch_attention_fwd_sm90(const char* stem, const ForwardParams& params, void* stream);

}  // namespace dhp
