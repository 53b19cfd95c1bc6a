// Kernels that leak on purpose: each check must report them, or it proves nothing.

#pragma once

#include "host/kernels.h"

extern "C" {

// Named "<instruction set>:<control>"; each list ends with nullptr. A control has a forward kernel only.
extern const dhp::HostKernels* const dhp_host_controls_baseline[];
extern const dhp::HostKernels* const dhp_host_controls_avx2[];
extern const dhp::HostKernels* const dhp_host_controls_avx512[];
}
