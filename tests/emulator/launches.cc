// Launches, each of which runs as late as those after it allow.

#include <dlfcn.h>
#include <immintrin.h>

#include <cstdlib>
#include <fstream>
#include <mutex>
#include <utility>

#include "state.h"

namespace emulator {
namespace {

constexpr int kFlushSubnormals = 0x8040;  // MXCSR: results and operands, as -ftz=true
constexpr unsigned kMostBlocks = 8;       // of a cluster
alignas(1024) unsigned char memory_of_others[kMostBlocks - 1][sizeof dhp::sMemory];

struct Launch {
  cudaLaunchConfig_t config;
  std::function<void()> body;
  bool starts_early;
  unsigned blocks_of_cluster;
};
thread_local std::vector<Launch> launches;  // that nobody has waited for

unsigned blocks_of_cluster(const cudaLaunchConfig_t& config) {
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    if (config.attrs[i].id == cudaLaunchAttributeClusterDimension) return config.attrs[i].val.clusterDim.x;
  }
  return 1;
}

bool may_start_early(const cudaLaunchConfig_t& config) {
  return std::any_of(config.attrs, config.attrs + config.numAttrs, [](const cudaLaunchAttribute& attribute) {
    return attribute.id == cudaLaunchAttributeProgrammaticStreamSerialization &&
           attribute.val.programmaticStreamSerializationAllowed != 0;
  });
}

// Runs the first `count` launches, each as late as those after it allow.
void run_launches(size_t count) {
  if (count == 0) return;
  const Launch& last = launches[count - 1];
  if (!last.starts_early) run_launches(count - 1);
  Cluster now{.config = last.config,
              .body = &last.body,
              .starts_early = last.starts_early,
              .launches_before = last.starts_early ? count - 1 : 0};
  now.blocks.resize(last.blocks_of_cluster);
  for (unsigned rank = 0; rank < now.blocks.size(); ++rank) {
    Block& each = now.blocks[rank];
    each.rank = rank;
    each.memory = rank == 0 ? dhp::sMemory : memory_of_others[rank - 1];
    each.threads.resize(last.config.blockDim.x);
    each.warps.resize(last.config.blockDim.x / kLanes);
  }
  Cluster* const outer_cluster = std::exchange(cluster, &now);
  Block* const outer_block = block;
  const dim3 size = last.config.gridDim;
  for (unsigned z = 0; z < size.z; ++z) {
    for (unsigned y = 0; y < size.y; ++y) {
      for (unsigned x = 0; x < size.x; x += now.blocks.size()) run_cluster({x, y, z});
    }
  }
  cluster = outer_cluster;
  block = outer_block;
}

}  // namespace

// The last thread of the first block runs what is before.
void wait_for_launch_before() {
  block->running->has_waited = true;
  if (cluster->launches_before == 0) return;
  const int threads = static_cast<int>(block->threads.size());
  if (block->launch_before.arrived == threads - 1) {
    Thread* const self = block->running;
    std::vector<std::vector<unsigned char>> kept;
    for (const Block& each : cluster->blocks)
      kept.emplace_back(each.memory, each.memory + cluster->config.dynamicSmemBytes);
    run_launches(cluster->launches_before);
    for (size_t i = 0; i < kept.size(); ++i)
      std::copy(kept[i].begin(), kept[i].end(), cluster->blocks[i].memory);
    cluster->launches_before = 0;
    block->running = self;
  }
  meet_at(block->launch_before, threads);
}

cudaError_t run(const cudaLaunchConfig_t& config, const std::function<void()>& body) {
  if (config.dynamicSmemBytes > sizeof dhp::sMemory || config.blockDim.x % kLanes != 0)
    return cudaErrorInvalidValue;
  const unsigned blocks = blocks_of_cluster(config);
  if (blocks > kMostBlocks || config.gridDim.x % blocks != 0) return cudaErrorInvalidValue;
  launches.push_back({config, body, may_start_early(config), blocks});
  return cudaSuccess;
}

bool note_instead(const void* kernel) {
  const char* const file = std::getenv("DHP_EMULATED_LAUNCHES");
  if (file == nullptr) return false;
  Dl_info found{};
  if (dladdr(kernel, &found) == 0 || found.dli_sname == nullptr) std::abort();
  std::ofstream(file, std::ios::app) << found.dli_sname << '\n';
  return true;
}

void finish_launches() {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  const unsigned mode = _mm_getcsr();
  _mm_setcsr(mode | kFlushSubnormals);
  run_launches(launches.size());
  launches.clear();
  _mm_setcsr(mode);
}

}  // namespace emulator
