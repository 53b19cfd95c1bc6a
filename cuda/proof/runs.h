// What the driver does with a set of kernels. Every result is one line of fields between tabs.

#pragma once

#include <functional>

#include "proof/call.h"
#include "proof/hooks.h"

namespace dhp::proof {

struct Selection {
  const HostKernels* kernels;
  std::function<bool(Kernel)> kernel;
  std::function<bool(const Case&, DType)> call;
  int num_threads = 0;
};

// Under memcheck: runs each call with every array undefined. Fields: kernels, kernel, call, errors that
// memcheck saw, bytes of the outputs that were written and are undefined.
void run_undefined(const Selection& selection);

// Under callgrind: one profile for each call and sort of secret, or for each call and length; collects what
// the tasks of the kernel execute, and nothing else. Fields: kernels, kernel, call, sort of secret; the same
// words label the profile.
void run_counted(const Selection& selection, bool every_length);

// Under callgrind: one profile of all calls together.
void run_covered(const Selection& selection);

// Outside of valgrind: rounds, in each of which every sort of secret runs in every way. Fields: kernels,
// kernel, call, sort of secret, how it ran (flushed, unflushed or delayed), nanoseconds of processor time.
void run_timed(const Selection& selection, int rounds);

// Runs each call on subnormals alone. Fields: kernels, kernel, call, how it ran (flushed or unflushed), bytes
// of the outputs that are not those of zero.
void run_flushed(const Selection& selection);

}  // namespace dhp::proof
