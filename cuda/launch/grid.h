// How a kernel is started, and what a failure says.

#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "launch/checks.h"
#include "launch/launch.h"
#include "params.h"

namespace dhp {

inline constexpr int kSharedBytesByDefault = 48 * 1024;  // that a kernel may have unless it asks for more
inline constexpr int kMostBlocks = INT32_MAX;  // along x, CUDA programming guide, technical specifications

// One-dimensional: x alone counts beyond 65535.
struct Grid {
  int64_t blocks;        // -1: more than a grid may have
  int threads;           // of a block
  int shared_bytes = 0;  // of a block, asked for at launch
};

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int64_t count_blocks(std::initializer_list<int64_t> axes) {
  if (std::find(axes.begin(), axes.end(), 0) != axes.end()) return 0;
  int64_t blocks = 1;
  for (const int64_t size : axes) {
    if (size > kMostBlocks / blocks) return -1;
    blocks *= size;
  }
  return blocks;
}

template <typename Tiles>
Grid query_grid(const Shape& shape) {
  return {count_blocks({shape.V, shape.B, shape.N, divide_up(shape.T, Tiles::kQueryRows)}), Tiles::kThreads,
          Tiles::kSharedBytes};
}

inline LaunchStatus failure(const char* stem, const Problem& problem, const std::string& message) {
  return {std::string(stem) + ": " + message + " (" + describe(problem) + ")"};
}

// A call that has nothing to write succeeds without a launch.
template <typename Params>
LaunchStatus launch(const char* stem, const Problem& problem, void (*kernel)(Params), const Params& params,
                    const Grid& grid, void* stream) {
  if (grid.blocks == 0 || problem.shape.D == 0) return {};
  if (grid.blocks < 0) {
    return failure(stem, problem,
                   "the work needs more than " + std::to_string(kMostBlocks) +
                       " blocks, the limit of a grid; split the call along the batch.");
  }
  cudaError_t error = cudaSuccess;
  if (grid.shared_bytes > kSharedBytesByDefault) {
    error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                 cudaFuncAttributeMaxDynamicSharedMemorySize, grid.shared_bytes);
  }
  if (error == cudaSuccess) {
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(grid.blocks));
    config.blockDim = dim3(grid.threads);
    config.dynamicSmemBytes = grid.shared_bytes;
    config.stream = static_cast<cudaStream_t>(stream);
    error = cudaLaunchKernelEx(&config, kernel, params);
  }
  if (error == cudaSuccess) return {};
  cudaGetLastError();  // taken: the next CUDA call of this thread must not report it again
  return failure(stem, problem, std::string("the kernel did not launch: ") + cudaGetErrorString(error) + ".");
}

}  // namespace dhp
