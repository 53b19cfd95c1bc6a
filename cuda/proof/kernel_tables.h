// What the library shows of its host kernels, for the proof that they are constant-time. Names without
// mangling: the machine-code check (dhp_jax/verify/host) looks them up in the file.

#pragma once

#include "host/kernels.h"

extern "C" {

// The kernels of every instruction set in this library, narrowest first; ends with nullptr.
extern const dhp::HostKernels* const dhp_host_kernel_tables[];

// The arguments of Phase::run, one letter each:
//   p  pointer to memory that is public: the params struct
//   n  number, public
//   s  pointer to memory that is secret
//   c  pointer to memory that is public and written: counters that order the tasks
// Arguments in braces are the fields of a public struct that is passed by reference.
extern const char dhp_host_task_arguments[];
}
