// Runs one of a list of kernels, by its name, on the emulator.

#pragma once

#include <cstdio>
#include <string>

#include "emulator.h"

namespace misuse {

// What the threads of a kernel found; at most 2 where all is well.
inline float results[128];

struct Named {
  const char* name;
  void (*check)(int thread);
  void (*before)(int thread) = nullptr;  // a launch before it, whose end it does not wait for to start
};

// Exit status: 0, or 1 where a result is not a number, or 2 where there is no such kernel.
template <size_t count>
int run(const Named (&checks)[count], const std::string& name, int threads, int shared_bytes,
        int blocks_of_cluster = 1) {
  for (const Named& named : checks) {
    if (named.name != name) continue;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(3 * blocks_of_cluster);
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared_bytes;
    cudaLaunchAttribute attributes[2]{};
    config.attrs = attributes;
    config.numAttrs = 1;
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim = {static_cast<unsigned>(blocks_of_cluster), 1, 1};
    attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[1].val.programmaticStreamSerializationAllowed = 1;
    if (named.before != nullptr) {
      emulator::run(config, [&] { named.before(static_cast<int>(threadIdx.x)); });
      config.numAttrs = 2;
    }
    emulator::run(config, [&] { named.check(static_cast<int>(threadIdx.x)); });
    emulator::finish_launches();
    for (const float result : results) {
      if (!(result <= 2)) {
        std::fprintf(stderr, "a result is not a number\n");
        return 1;
      }
    }
    return 0;
  }
  return 2;
}

}  // namespace misuse
