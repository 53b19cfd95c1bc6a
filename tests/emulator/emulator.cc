// Fibers: the threads of the blocks that run, where they meet, and their shared memory.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <iterator>

#include "state.h"

namespace dhp {
alignas(1024) unsigned char sMemory[kSharedMemory];
}  // namespace dhp

namespace emulator {

Cluster* cluster = nullptr;
Block* block = nullptr;

namespace {

constexpr unsigned kMostSteps = 64;  // of one warp before another one's turn
constexpr int kMostTurnsInVain = 5000;

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

}  // namespace

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "emulator: %s (block %u, thread %u)\n", what, block->index.x,
               block->running ? block->running->index.x : 0);
  std::abort();
}

void yield() { emulator_switch(&block->running->stack_pointer, cluster->scheduler); }

namespace {

void enter() {
  (*cluster->body)();
  Thread& self = *block->running;
  self.groups.push_back(self.open_group);
  for (const auto& group : self.groups) {
    if (!group.empty()) fail("a thread ends with copies under way");
  }
  if (!self.stores.empty() || !self.product_groups.empty() || !self.open_products.empty())
    fail("a thread ends with stores or products under way");
  if (self.clusters_arrived != self.clusters_met) fail("a thread ends without waiting for its cluster");
  if (cluster->starts_early && !self.has_waited)
    fail("a thread of a launch that starts early ends without waiting for the launch before");
  self.ended = true;
  cluster->progress = true;
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

void begin_block(const uint3& index) {
  const size_t bytes = cluster->config.dynamicSmemBytes;
  block->index = index;
  block->waiting = 0;
  for (Warp& warp : block->warps) warp = {};
  std::memset(block->memory, 0xff, bytes);
  block->copies_to.assign(bytes / 4, 0);
  block->unfenced.assign(bytes / 4, 0);
  for (Meeting& meeting : block->numbered) meeting = {};
  for (Meeting& meeting : block->groups) meeting = {};
  block->launch_before = {};
  for (size_t i = 0; i < block->threads.size(); ++i) {
    Thread& thread = block->threads[i];
    thread.ended = thread.has_waited = false;
    thread.index = {static_cast<unsigned>(i), 0, 0};
    thread.open_group.clear();
    thread.groups.clear();
    thread.unfenced.clear();
    thread.unfenced_barriers.clear();
    thread.clusters_arrived = thread.clusters_met = 0;
    thread.stack_pointer = fresh_stack(thread.stack.get());
  }
}

// A warp of the block goes on for a while, as far ahead of the others as barriers let it. Whether it did.
bool run_some_warp(std::mt19937& chance) {
  bool went_on = finish_some_load(chance);
  const size_t warp = chance() % block->warps.size();
  const unsigned steps = 1 + chance() % kMostSteps;
  cluster->progress = true;
  for (unsigned i = 0; i < steps && cluster->progress; ++i) {
    cluster->progress = false;
    for (int lane = 0; lane < kLanes; ++lane) {
      Thread& thread = block->threads[warp * kLanes + lane];
      if (thread.ended) continue;
      block->running = &thread;
      emulator_switch(&cluster->scheduler, thread.stack_pointer);
    }
    went_on = went_on || cluster->progress;
  }
  return went_on;
}

bool has_open_meeting(const Block& block) {
  return std::any_of(std::begin(block.numbered), std::end(block.numbered),
                     [](const Meeting& meeting) { return meeting.arrived > 0; });
}

}  // namespace

void run_cluster(const uint3& index) {
  cluster->arrived = cluster->met = 0;
  for (Block& each : cluster->blocks) {
    block = &each;
    begin_block({index.x + each.rank, index.y, index.z});
  }
  std::mt19937 chance(index.x + 1000003 * index.y + 10007 * index.z);
  const auto has_ended = [](const Block& each) { return each.has_ended(); };
  int turns_in_vain = 0;
  while (!std::all_of(cluster->blocks.begin(), cluster->blocks.end(), has_ended)) {
    block = &cluster->blocks[cluster->blocks.size() == 1 ? 0 : chance() % cluster->blocks.size()];
    if (block->has_ended()) continue;
    turns_in_vain = run_some_warp(chance) ? 0 : turns_in_vain + 1;
    if (turns_in_vain == kMostTurnsInVain) fail("no thread can go on: some wait for others that never come");
    if (block->has_ended() && !block->loads.empty())
      fail("a block ends with copies that nobody has waited for");
    if (block->has_ended() && has_open_meeting(*block))
      fail("a block ends with threads that have arrived where others never come");
  }
}

uint3 thread_index() { return block->running->index; }
uint3 block_index() { return block->index; }
uint3 grid_size() {
  return {cluster->config.gridDim.x, cluster->config.gridDim.y, cluster->config.gridDim.z};
}

void meet_block() {
  const int64_t met = block->met;
  cluster->progress = true;
  if (++block->waiting == static_cast<int>(block->threads.size())) {
    block->waiting = 0;
    ++block->met;
  }
  while (block->met == met) yield();
  cluster->progress = true;
}

void meet_warp(Act act, void* mine) {
  const int thread = static_cast<int>(block->running->index.x);
  Warp& warp = block->warps[thread / kLanes];
  if (warp.arrived > 0 && warp.act != act) fail("lanes of one warp meet at different instructions");
  warp.act = act;
  warp.of_lanes[thread % kLanes] = mine;
  cluster->progress = true;
  const int64_t met = warp.met;
  if (++warp.arrived == kLanes) {
    act(warp.of_lanes);
    warp.arrived = 0;
    ++warp.met;
  }
  while (warp.met == met) yield();
  cluster->progress = true;
}

void arrive_at(Meeting& meeting, int threads) {
  if (meeting.arrived > 0 && meeting.threads != threads) fail("threads meet in different numbers");
  meeting.threads = threads;
  cluster->progress = true;
  if (++meeting.arrived == threads) {
    meeting.arrived = 0;
    ++meeting.met;
  }
}

void meet_at(Meeting& meeting, int threads) {
  const int64_t met = meeting.met;
  arrive_at(meeting, threads);
  while (meeting.met == met) yield();
  cluster->progress = true;
}

Meeting& numbered(int number) {
  if (number < 1 || number > 15) fail("a barrier whose number is not 1 to 15");
  return block->numbered[number];
}

void meet_threads(int number, int threads) { meet_at(numbered(number), threads); }
void arrive_at_meeting(int number, int threads) { arrive_at(numbered(number), threads); }

int word_of(uint32_t address) { return static_cast<int>(address - rank_bits() - kSharedBase) / 4; }

void note_store(uint32_t to, int size) {
  for (int i = 0; i < size; i += 4) {
    const int index = word_of(to + i);
    ++block->unfenced[index];
    block->running->unfenced.push_back(index);
  }
}

// What the asynchronous units may read: all copies have come, all stores are known to them.
const unsigned char* known(uint32_t place, int size) {
  for (int i = 0; i < size; i += 4) {
    if (block->unfenced[word_of(place + i)] != 0) fail("a store that no fence has made known");
  }
  return shared(place, size);
}

unsigned char* shared(uint32_t address, uint32_t bytes) {
  const uint32_t offset = address - rank_bits() - kSharedBase;
  if (offset + bytes > cluster->config.dynamicSmemBytes)
    fail("an address outside of the block's shared memory");
  if (address % bytes != 0) fail("an address in shared memory that is not a multiple of the size");
  return block->memory + offset;
}

void store(uint32_t to, uint32_t word) {
  unsigned char* place = shared(to, sizeof word);
  if (block->copies_to[word_of(to)] != 0) fail("a store to where a copy is under way");
  std::memcpy(place, &word, sizeof word);
  note_store(to, sizeof word);
}

uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(static_cast<const unsigned char*>(pointer) - dhp::sMemory) + kSharedBase +
         rank_bits();
}

}  // namespace emulator
