// The kernels for compute capability 9.0 alone.

#pragma once

#include "launch/launch.h"
#include "params.h"

namespace dhp {

// Whether there is a kernel for this call; else those for 8.0 take it.
bool has_attention_fwd_sm90(const ForwardParams& params);
LaunchStatus launch_attention_fwd_sm90(const char* stem, const ForwardParams& params, void* stream);

// The same of the kernel for few rows and keys: whether it can take the call, and is the faster one on so
// many multiprocessors. Sizes, strides and which operands there are decide.
bool prefers_attention_fwd_small_sm90(const ForwardParams& params, int multiprocessors);
LaunchStatus launch_attention_fwd_small_sm90(const char* stem, const ForwardParams& params, void* stream);

// The same for few query tokens, which is asked first.
bool has_attention_fwd_decode_sm90(const Problem& problem);
LaunchStatus launch_attention_fwd_decode_sm90(const char* stem, const ForwardParams& params, void* stream);

}  // namespace dhp
