// What must hold before a launch. Each check returns the message for the user, empty when all is well.

#pragma once

#include <string>

#include "params.h"

namespace dhp {

// The sizes, dtypes and alignments that the kernels are written for.
std::string check_problem(const Problem& problem);

// `name` is for the message; the kernels read and write rows 16 bytes at a time.
std::string check_alignment(const char* name, const void* data, int64_t stride_v, int64_t stride_b,
                            int64_t stride_row, int64_t stride_head, DType dtype);

template <typename Pointer>
std::string check_rows(const char* name, const HeadRows<Pointer>& rows, DType dtype) {
  return check_alignment(name, rows.data, rows.stride_v, rows.stride_b, rows.stride_row, rows.stride_head,
                         dtype);
}

// The current device is one that the library holds machine code for.
std::string check_device();

// Whether the current device has compute capability 9.0.
bool device_is_hopper();

// Of the current device; at least 1.
int count_multiprocessors();

// "V=1, B=2, T=8, S=8, N=4, K=2, D=64, bfloat16", for messages.
std::string describe(const Problem& problem);

}  // namespace dhp
