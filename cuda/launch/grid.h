// How a kernel is started, and what a failure says.

#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "launch/checks.h"
#include "launch/launch.h"
#include "params.h"

namespace dhp {

inline constexpr int kSharedBytesByDefault = 48 * 1024;  // that a kernel may have unless it asks for more
inline constexpr int kMostBlocks = INT32_MAX;  // along x, CUDA programming guide, technical specifications

struct Grid {
  int64_t blocks;            // along x, which alone counts beyond 65535; -1: more than a grid may have
  int threads;               // of a block
  int shared_bytes = 0;      // of a block, asked for at launch
  int rows = 1, planes = 1;  // along y and z
  int cluster = 1;           // blocks of a cluster, along x
  // It may start before the launch before it has ended, and waits for that itself where it must.
  bool waits_itself = false;
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

// Lets a kernel have so much shared memory, always the same for one kernel: asked for once on each device.
template <auto kernel>
cudaError_t allow_shared_memory(int bytes) {
  static std::atomic<uint64_t> allowed = 0;  // a bit for each device
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  const uint64_t bit = device < 64 ? uint64_t{1} << device : 0;  // beyond: at each launch
  if ((allowed.load(std::memory_order_relaxed) & bit) != 0) return cudaSuccess;
  const cudaError_t set = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                               cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (set == cudaSuccess) allowed.fetch_or(bit, std::memory_order_relaxed);
  return set;
}

// A call that has nothing to write succeeds without a launch.
template <auto kernel, typename Params>
LaunchStatus launch(const char* stem, const Problem& problem, const Params& params, const Grid& grid,
                    void* stream) {
  if (grid.blocks == 0 || problem.shape.D == 0) return {};
  if (grid.blocks < 0) {
    return failure(stem, problem,
                   "the work needs more than " + std::to_string(kMostBlocks) +
                       " blocks, the limit of a grid; split the call along the batch.");
  }
  cudaError_t error = cudaSuccess;
  if (grid.shared_bytes > kSharedBytesByDefault) error = allow_shared_memory<kernel>(grid.shared_bytes);
  if (error == cudaSuccess) {
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(grid.blocks), grid.rows, grid.planes);
    config.blockDim = dim3(grid.threads);
    config.dynamicSmemBytes = grid.shared_bytes;
    config.stream = static_cast<cudaStream_t>(stream);
    cudaLaunchAttribute attributes[2];
    config.attrs = attributes;
    if (grid.cluster > 1) {
      cudaLaunchAttribute& cluster = attributes[config.numAttrs++];
      cluster.id = cudaLaunchAttributeClusterDimension;
      cluster.val.clusterDim = {static_cast<unsigned>(grid.cluster), 1, 1};
    }
    if (grid.waits_itself) {
      cudaLaunchAttribute& overlap = attributes[config.numAttrs++];
      overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
      overlap.val.programmaticStreamSerializationAllowed = 1;
    }
    error = cudaLaunchKernelEx(&config, kernel, params);
  }
  if (error == cudaSuccess) return {};
  cudaGetLastError();  // taken: the next CUDA call of this thread must not report it again
  return failure(stem, problem, std::string("the kernel did not launch: ") + cudaGetErrorString(error) + ".");
}

}  // namespace dhp
