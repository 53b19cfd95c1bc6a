// The table of host kernels that one instruction set provides, and the choice among them.

#pragma once

#include <stdint.h>

#include "params.h"

namespace dhp {

// Memory of a task: scratch belongs to the thread, workspace and turns to the call. What scratch and
// workspace hold is secret; turns are public, since they count tasks (turns.h), and 0 when a call begins.
struct TaskMemory {
  float *scratch, *workspace;
  int32_t* turns;
};

// A loop of tasks. `run` may be called from any thread, once for each task in [0, num_tasks). Tasks must
// begin in the order of their numbers: one may wait for another of a lower number.
struct Phase {
  int64_t num_tasks = 0;
  void (*run)(const void* params, int64_t task, const TaskMemory& memory) = nullptr;
};

// The phases of one call, in order; each waits for the one before.
struct Plan {
  static constexpr int kMaxPhases = 3;
  Phase phases[kMaxPhases];
  int64_t scratch_floats = 0;    // for each thread
  int64_t workspace_floats = 0;  // for all threads together
  int64_t num_turns = 0;         // likewise
};

struct HostKernels {
  const char* isa;
  Plan (*attention_fwd)(const ForwardParams&);
  Plan (*attention_bwd)(const BackwardParams&);
  Plan (*attention_bwd_bias)(const BiasBackwardParams&);
};

// The widest instruction set of this processor for which kernels were compiled.
const HostKernels& host_kernels();

}  // namespace dhp
