// What the parts of the emulator share: the blocks that run now, and what their threads have under way.

#pragma once

#include <array>
#include <deque>
#include <memory>
#include <random>
#include <vector>

#include "emulator.h"

namespace dhp {
// What the kernels call `extern __shared__ unsigned char sMemory[]`.
constexpr size_t kSharedMemory = 227 * 1024;
extern unsigned char sMemory[kSharedMemory];
}  // namespace dhp

namespace emulator {

constexpr size_t kStackBytes = 256 * 1024;

struct Copy {
  uint32_t to;
  const void* from;
  int size, bytes;
};

// How the emulated driver writes a tensor map.
struct Map {
  unsigned char* data;
  int64_t sizes[5], strides[4];  // bytes
  int box_rows;
};
constexpr int kBoxChannels = 64, kBoxRowBytes = 128;

struct Box {
  uint32_t at_shared;
  const Map* map;
  std::array<int, 5> at;
};

// A box that is loaded, or 16 bytes that another block of the cluster stores. It stays in the list until
// somebody has waited for the phase that it is part of.
struct Load {
  Box box;  // without a map: at_shared alone counts
  std::array<float, 4> stored;
  uint32_t barrier, parity;
  bool has_come;
};

// As it stands in shared memory.
struct Barrier {
  int16_t count, pending;
  int32_t bytes_and_phase;  // twice the bytes that are expected, and the parity of the phase
};

struct Warp {
  void* of_lanes[kLanes];
  Act act = nullptr;
  int arrived = 0;
  int64_t met = 0;
};

// Registers that products under way add to. They are full of NaN for as long.
struct Accumulator {
  float* registers;
  std::vector<float> sums;
  int under_way;
};

struct Started {
  Product product;
  std::array<uint32_t, 4> left;  // what the registers had
};

struct Thread {
  void* stack_pointer;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  uint3 index;
  bool ended = false;
  std::vector<Copy> open_group;
  std::deque<std::vector<Copy>> groups;
  std::vector<Started> open_products;
  std::deque<std::vector<Started>> product_groups;
  std::vector<Accumulator> accumulators;
  std::vector<Box> stores;
  std::vector<int> unfenced;  // words of shared memory that this thread has stored to
  std::vector<uint32_t> unfenced_barriers;
  int clusters_arrived = 0, clusters_met = 0;  // at the cluster's barrier
  bool has_waited = false;                     // for the launch before
};

struct Meeting {
  int threads = 0, arrived = 0;
  int64_t met = 0;
};

// A block that runs now, and has its own shared memory.
struct Block {
  uint3 index;
  unsigned rank;  // in the cluster
  unsigned char* memory;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  int waiting = 0;  // at the block's barrier
  int64_t met = 0;
  Thread* running = nullptr;
  std::vector<int> copies_to;  // under way, by word of shared memory
  std::vector<int> unfenced;   // stores that the asynchronous units do not know of, by word
  std::vector<Load> loads;
  Meeting numbered[16], groups[8], launch_before;

  bool has_ended() const {
    return std::all_of(threads.begin(), threads.end(), [](const Thread& thread) { return thread.ended; });
  }
};

// The blocks that run now: one, or those of a cluster.
struct Cluster {
  cudaLaunchConfig_t config;
  const std::function<void()>* body;
  bool starts_early;
  size_t launches_before;  // that have not begun
  std::vector<Block> blocks;
  int arrived = 0, met = 0;
  bool progress = false;
  void* scheduler;  // its stack pointer
};
extern Cluster* cluster;
extern Block* block;  // of the thread that runs

// As on the GPU, the rank of a block stands above the address, its own address included.
constexpr int kRankShift = 24;
inline uint32_t rank_bits() { return block->rank << kRankShift; }

[[noreturn]] void fail(const char* what);

// Others go on.
void yield();
// Waits for so many threads.
void meet_at(Meeting& meeting, int threads);

// The index of a word in shared memory.
int word_of(uint32_t address);
void count_copy(uint32_t to, int size, int change);
// The asynchronous units do not know of it before the thread's next fence.
void note_store(uint32_t to, int size);
// What the asynchronous units may read: all copies have come, all stores are known to them.
const unsigned char* known(uint32_t place, int size);

// One of the loads that are under way comes, or none yet.
bool finish_some_load(std::mt19937& chance);

// All blocks of a cluster, the first of which has this index.
void run_cluster(const uint3& index);

}  // namespace emulator
