// Which kernels the library runs, and what happens around each of their tasks.
//
// Nothing here sees a secret, nor do the library's own scheduler and its threads: they know the params
// struct, which is public, and the numbers of tasks.

#pragma once

#include <functional>

#include "host/kernels.h"

namespace dhp::proof {

// Calls body() around a task, once or more often; `task` is its number.
using Around = std::function<void(int64_t task, const std::function<void()>& body)>;

// From now on the library runs these kernels, with `around` (which may be empty) around each task.
void use_kernels(const HostKernels& kernels, Around around = {});

// The kernels that the library itself would choose for this processor.
const HostKernels& native_kernels();

// The file of the library.
const char* library_path();

}  // namespace dhp::proof
