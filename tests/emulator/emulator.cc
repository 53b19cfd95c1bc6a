#include "emulator.h"

#include <immintrin.h>

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <mutex>
#include <random>
#include <vector>

namespace dhp {
// What the kernels call `extern __shared__ unsigned char sMemory[]`.
alignas(1024) unsigned char sMemory[227 * 1024];
}  // namespace dhp

namespace emulator {
namespace {

constexpr size_t kStackBytes = 256 * 1024;
constexpr unsigned kMostSteps = 64;  // of one warp before another one's turn
constexpr int kMostTurnsInVain = 200;
constexpr int kFlushSubnormals = 0x8040;  // MXCSR: results and operands, as -ftz=true

struct Copy {
  uint32_t to;
  const void* from;
  int size, bytes;
};

struct Warp {
  void* of_lanes[kLanes];
  Act act = nullptr;
  int arrived = 0;
  int64_t met = 0;
};

struct Thread {
  void* stack_pointer;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  uint3 index;
  bool ended = false;
  std::vector<Copy> open_group;
  std::deque<std::vector<Copy>> groups;
};

// The block that runs now.
struct Block {
  cudaLaunchConfig_t config;
  const std::function<void()>* body;
  uint3 index;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  int waiting = 0;  // at the block's barrier
  int64_t met = 0;
  bool progress = false;
  Thread* running = nullptr;
  std::vector<int> copies_to;  // under way, by word of shared memory
  void* scheduler;             // its stack pointer
};
Block* block = nullptr;

// Goes on where another fiber left off; returns when somebody comes back. (swapcontext does the same with two
// calls of the kernel, and there are millions of switches.)
extern "C" void emulator_switch(void** leave, void* enter);
asm(R"(
emulator_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
)");

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "emulator: %s (block %u, thread %u)\n", what, block->index.x,
               block->running ? block->running->index.x : 0);
  std::abort();
}

void yield() { emulator_switch(&block->running->stack_pointer, block->scheduler); }

void enter() {
  (*block->body)();
  Thread& self = *block->running;
  self.groups.push_back(self.open_group);
  for (const auto& group : self.groups) {
    if (!group.empty()) fail("a thread ends with copies under way");
  }
  self.ended = true;
  block->progress = true;
  yield();
}

// Looks as if `enter` had been about to be called: six registers, where to go, and where never to return to.
void* fresh_stack(char* stack) {
  const auto top = reinterpret_cast<uintptr_t>(stack + kStackBytes) & ~uintptr_t{15};
  void** const words = reinterpret_cast<void**>(top) - 8;
  std::fill_n(words, 8, nullptr);
  words[6] = reinterpret_cast<void*>(+enter);
  return words;
}

void count_copy(uint32_t to, int size, int change) {
  for (int i = 0; i < size; i += 4) block->copies_to[(to - kSharedBase + i) / 4] += change;
}

void finish(const Copy& copy) {
  unsigned char* to = shared(copy.to, copy.size);
  std::memset(to, 0, copy.size);
  std::memcpy(to, copy.from, copy.bytes);
  count_copy(copy.to, copy.size, -1);
}

void run_block(const uint3& index) {
  const int num_threads = static_cast<int>(block->threads.size());
  block->index = index;
  block->waiting = 0;
  for (Warp& warp : block->warps) warp = {};
  std::memset(dhp::sMemory, 0xff, block->config.dynamicSmemBytes);
  block->copies_to.assign(block->config.dynamicSmemBytes / 4, 0);
  for (int i = 0; i < num_threads; ++i) {
    Thread& thread = block->threads[i];
    thread.ended = false;
    thread.index = {static_cast<unsigned>(i), 0, 0};
    thread.open_group.clear();
    thread.groups.clear();
    thread.stack_pointer = fresh_stack(thread.stack.get());
  }
  std::mt19937 chance(index.x);
  const auto has_ended = [](const Thread& thread) { return thread.ended; };
  int turns_in_vain = 0;
  while (!std::all_of(block->threads.begin(), block->threads.end(), has_ended)) {
    // A warp goes on for a while, as far ahead of the others as barriers let it.
    const size_t warp = chance() % block->warps.size();
    const unsigned steps = 1 + chance() % kMostSteps;
    bool went_on = false;
    block->progress = true;
    for (unsigned i = 0; i < steps && block->progress; ++i) {
      block->progress = false;
      for (int lane = 0; lane < kLanes; ++lane) {
        Thread& thread = block->threads[warp * kLanes + lane];
        if (thread.ended) continue;
        block->running = &thread;
        emulator_switch(&block->scheduler, thread.stack_pointer);
      }
      went_on = went_on || block->progress;
    }
    turns_in_vain = went_on ? 0 : turns_in_vain + 1;
    if (turns_in_vain == kMostTurnsInVain) fail("no thread can go on: some wait for others that never come");
  }
}

}  // namespace

uint3 thread_index() { return block->running->index; }
uint3 block_index() { return block->index; }

void meet_block() {
  const int64_t met = block->met;
  block->progress = true;
  if (++block->waiting == static_cast<int>(block->threads.size())) {
    block->waiting = 0;
    ++block->met;
  }
  while (block->met == met) yield();
  block->progress = true;
}

void meet_warp(Act act, void* mine) {
  const int thread = static_cast<int>(block->running->index.x);
  Warp& warp = block->warps[thread / kLanes];
  if (warp.arrived > 0 && warp.act != act) fail("lanes of one warp meet at different instructions");
  warp.act = act;
  warp.of_lanes[thread % kLanes] = mine;
  block->progress = true;
  const int64_t met = warp.met;
  if (++warp.arrived == kLanes) {
    act(warp.of_lanes);
    warp.arrived = 0;
    ++warp.met;
  }
  while (warp.met == met) yield();
  block->progress = true;
}

unsigned char* shared(uint32_t address, uint32_t bytes) {
  const uint32_t offset = address - kSharedBase;
  if (offset + bytes > block->config.dynamicSmemBytes)
    fail("an address outside of the block's shared memory");
  if (address % bytes != 0) fail("an address in shared memory that is not a multiple of the size");
  return dhp::sMemory + offset;
}

void store(uint32_t to, uint32_t word) {
  unsigned char* place = shared(to, sizeof word);
  if (block->copies_to[(to - kSharedBase) / 4] != 0) fail("a store to where a copy is under way");
  std::memcpy(place, &word, sizeof word);
}

uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(static_cast<const unsigned char*>(pointer) - dhp::sMemory) + kSharedBase;
}

void start_copy(uint32_t to, const void* from, int size, int bytes) {
  if (bytes != 0 && reinterpret_cast<uintptr_t>(from) % size != 0)
    fail("a copy from an address that is not aligned");
  std::memset(shared(to, size), 0xff, size);
  count_copy(to, size, 1);
  block->running->open_group.push_back({to, from, size, bytes});
}

void close_copy_group() {
  Thread& self = *block->running;
  self.groups.push_back(std::move(self.open_group));
  self.open_group.clear();
}

void wait_for_copies(int groups_under_way) {
  auto& groups = block->running->groups;
  while (static_cast<int>(groups.size()) > groups_under_way) {
    for (const Copy& copy : groups.front()) finish(copy);
    groups.pop_front();
  }
}

cudaError_t run(const cudaLaunchConfig_t& config, const std::function<void()>& body) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  if (config.dynamicSmemBytes > sizeof dhp::sMemory || config.blockDim.x % kLanes != 0)
    return cudaErrorInvalidValue;
  const unsigned mode = _mm_getcsr();
  _mm_setcsr(mode | kFlushSubnormals);
  Block now{.config = config, .body = &body};
  now.threads.resize(config.blockDim.x);
  now.warps.resize(config.blockDim.x / kLanes);
  block = &now;
  for (unsigned x = 0; x < config.gridDim.x; ++x) run_block({x, 0, 0});
  block = nullptr;
  _mm_setcsr(mode);
  return cudaSuccess;
}

}  // namespace emulator

// The part of the CUDA runtime that the launchers call: a device of compute capability 9.0.
extern "C" {
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? 9 : 0;
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int value) {
  return value <= static_cast<int>(sizeof dhp::sMemory) ? cudaSuccess : cudaErrorInvalidValue;
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "the emulator refused it"; }
}
