// The kernel that leaks, for those that time it.

#pragma once

#include <cstdint>

namespace dhp {

// out[r] = sum of 2^scores[r * columns + s] over s < *length, on a stream (a cudaStream_t). Device memory.
void launch_control_leak(const float* scores, int64_t rows, int64_t columns, const int64_t* length,
                         float* out, void* stream);

}  // namespace dhp
