// The doors to the host kernels, the CPU counterpart of launch/launch.h.

#pragma once

#include <cstdint>
#include <functional>

#include "params.h"

namespace dhp {

// Threads lent by the caller. `schedule` may run a task at any later time, or after the call has returned.
struct ThreadLender {
  int64_t num_threads = 0;
  std::function<void(std::function<void()>)> schedule;
};

// Each returns false where memory for scratch ran out, before anything was written; a later shortage throws
// std::bad_alloc.
bool host_attention_fwd(const ForwardParams& params, const ThreadLender& threads);
bool host_attention_bwd(const BackwardParams& params, const ThreadLender& threads);
bool host_attention_bwd_bias(const BiasBackwardParams& params, const ThreadLender& threads);

// Name of the instruction set in use: baseline, avx2 or avx512.
const char* host_isa();

}  // namespace dhp
