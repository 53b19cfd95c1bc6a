#include "emulator.h"

#include <cuda.h>
#include <immintrin.h>

#include <array>
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
constexpr int kMostTurnsInVain = 5000;
constexpr int kFlushSubnormals = 0x8040;  // MXCSR: results and operands, as -ftz=true

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

// A box that is loaded. It stays in the list until somebody has waited for the phase that it is part of.
struct Load {
  Box box;
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
};

struct Meeting {
  int threads = 0, arrived = 0;
  int64_t met = 0;
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
  std::vector<int> unfenced;   // stores that the asynchronous units do not know of, by word
  std::vector<Load> loads;
  Meeting numbered[16], groups[8];
  void* scheduler;  // its stack pointer
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
  if (!self.stores.empty() || !self.product_groups.empty() || !self.open_products.empty())
    fail("a thread ends with stores or products under way");
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

// Calls act(row, global, shared) for the rows of a box that exist, and with nullptr for those that do not.
// The chunks of a row stand in other places, as the hardware puts them.
template <typename Act>
void for_each_chunk(const Box& box, Act act) {
  const Map& map = *box.map;
  for (int row = 0; row < map.box_rows; ++row) {
    for (int chunk = 0; chunk < kBoxRowBytes / 16; ++chunk) {
      const int at[5] = {box.at[0] + 8 * chunk, box.at[1] + row, box.at[2], box.at[3], box.at[4]};
      unsigned char* global = map.data + 2 * at[0];
      bool exists = true;
      for (int axis = 0; axis < 5; ++axis) {
        exists = exists && at[axis] >= 0 && at[axis] < map.sizes[axis];
        if (axis > 0) global += at[axis] * map.strides[axis - 1];
      }
      const uint32_t place = box.at_shared + row * kBoxRowBytes + (chunk ^ row % 8) * 16;
      act(exists ? global : nullptr, place);
    }
  }
}

void check_phase(Barrier& barrier) {
  if (barrier.pending != 0 || barrier.bytes_and_phase >> 1 != 0) return;
  barrier.pending = barrier.count;
  barrier.bytes_and_phase ^= 1;
}

Barrier& barrier_at(uint32_t address) {
  Barrier& barrier = *reinterpret_cast<Barrier*>(shared(address, sizeof(Barrier)));
  if (barrier.count <= 0) fail("a barrier that nobody has made");
  return barrier;
}

void finish(Load& load) {
  int bytes = 0;
  for_each_chunk(load.box, [&](const unsigned char* global, uint32_t place) {
    unsigned char* to = shared(place, 16);
    std::memset(to, 0, 16);
    if (global != nullptr) std::memcpy(to, global, 16);
    count_copy(place, 16, -1);
    bytes += 16;
  });
  Barrier& barrier = barrier_at(load.barrier);
  barrier.bytes_and_phase -= 2 * bytes;
  check_phase(barrier);
  load.has_come = true;
}

// One of the loads that are under way comes, or none yet.
bool finish_some_load(std::mt19937& chance) {
  std::vector<Load*> under_way;
  for (Load& load : block->loads) {
    if (!load.has_come) under_way.push_back(&load);
  }
  if (under_way.empty() || chance() % 2 != 0) return false;
  finish(*under_way[chance() % under_way.size()]);
  return true;
}

void run_block(const uint3& index) {
  const int num_threads = static_cast<int>(block->threads.size());
  block->index = index;
  block->waiting = 0;
  for (Warp& warp : block->warps) warp = {};
  std::memset(dhp::sMemory, 0xff, block->config.dynamicSmemBytes);
  block->copies_to.assign(block->config.dynamicSmemBytes / 4, 0);
  block->unfenced.assign(block->config.dynamicSmemBytes / 4, 0);
  for (Meeting& meeting : block->numbered) meeting = {};
  for (Meeting& meeting : block->groups) meeting = {};
  for (int i = 0; i < num_threads; ++i) {
    Thread& thread = block->threads[i];
    thread.ended = false;
    thread.index = {static_cast<unsigned>(i), 0, 0};
    thread.open_group.clear();
    thread.groups.clear();
    thread.unfenced.clear();
    thread.unfenced_barriers.clear();
    thread.stack_pointer = fresh_stack(thread.stack.get());
  }
  std::mt19937 chance(index.x);
  const auto has_ended = [](const Thread& thread) { return thread.ended; };
  int turns_in_vain = 0;
  while (!std::all_of(block->threads.begin(), block->threads.end(), has_ended)) {
    // A warp goes on for a while, as far ahead of the others as barriers let it.
    if (finish_some_load(chance)) turns_in_vain = 0;
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
  if (!block->loads.empty()) fail("a block ends with copies that nobody has waited for");
}

}  // namespace

uint3 thread_index() { return block->running->index; }
uint3 block_index() { return block->index; }
uint3 grid_size() { return {block->config.gridDim.x, 1, 1}; }

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
  const int index = (to - kSharedBase) / 4;
  ++block->unfenced[index];
  block->running->unfenced.push_back(index);
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

void init_barrier(uint32_t barrier, int count) {
  const Barrier made{static_cast<int16_t>(count), static_cast<int16_t>(count), 0};
  std::memcpy(shared(barrier, sizeof made), &made, sizeof made);
  block->running->unfenced_barriers.push_back(barrier);
}

void fence_barriers() { block->running->unfenced_barriers.clear(); }

void arrive(uint32_t address, int bytes) {
  Barrier& barrier = barrier_at(address);
  if (barrier.pending == 0) fail("a barrier has more arrivals in a phase than it was made for");
  barrier.bytes_and_phase += 2 * bytes;
  --barrier.pending;
  check_phase(barrier);
  block->progress = true;
}

bool is_over(uint32_t address, uint32_t parity) {
  const bool over = static_cast<uint32_t>(barrier_at(address).bytes_and_phase & 1) != parity;
  if (!over) {
    yield();
    return false;
  }
  const auto is_part = [&](const Load& load) {
    return load.has_come && load.barrier == address && load.parity == parity;
  };
  block->loads.erase(std::remove_if(block->loads.begin(), block->loads.end(), is_part), block->loads.end());
  return true;
}

void meet_at(Meeting& meeting, int threads) {
  if (meeting.arrived > 0 && meeting.threads != threads) fail("threads meet in different numbers");
  meeting.threads = threads;
  const int64_t met = meeting.met;
  block->progress = true;
  if (++meeting.arrived == threads) {
    meeting.arrived = 0;
    ++meeting.met;
  }
  while (meeting.met == met) yield();
  block->progress = true;
}

void meet_threads(int number, int threads) {
  if (number < 1 || number > 15) fail("a barrier whose number is not 1 to 15");
  meet_at(block->numbered[number], threads);
}

Box checked_box(uint32_t at_shared, const void* map, const Coordinates& at) {
  if (at_shared % 1024 != 0) fail("a box in shared memory that is not aligned to 1024 bytes");
  if (reinterpret_cast<uintptr_t>(map) % 64 != 0) fail("a tensor map that is not aligned to 64 bytes");
  return {at_shared, static_cast<const Map*>(map), {at[0], at[1], at[2], at[3], at[4]}};
}

void load_box(uint32_t to, const void* map, uint32_t barrier, const Coordinates& at) {
  const Box box = checked_box(to, map, at);
  for (const Thread& thread : block->threads) {
    const auto& unfenced = thread.unfenced_barriers;
    if (std::find(unfenced.begin(), unfenced.end(), barrier) != unfenced.end())
      fail("a barrier that no fence has made known");
  }
  const uint32_t parity = barrier_at(barrier).bytes_and_phase & 1;
  for_each_chunk(box, [](const unsigned char*, uint32_t place) {
    std::memset(shared(place, 16), 0xff, 16);
    count_copy(place, 16, 1);
  });
  block->loads.push_back({box, barrier, parity, false});
}

// What the asynchronous units may read: all copies have come, all stores are known to them.
const unsigned char* known(uint32_t place, int size) {
  for (int i = 0; i < size; i += 4) {
    if (block->unfenced[(place - kSharedBase + i) / 4] != 0) fail("a store that no fence has made known");
  }
  return shared(place, size);
}

void store_box(uint32_t from, const void* map, const Coordinates& at) {
  block->running->stores.push_back(checked_box(from, map, at));
}

void wait_for_stores() {
  for (const Box& box : block->running->stores) {
    for_each_chunk(box, [](unsigned char* global, uint32_t place) {
      if (global != nullptr) std::memcpy(global, known(place, 16), 16);
    });
  }
  block->running->stores.clear();
}

void fence_stores() {
  Thread& self = *block->running;
  for (const int index : self.unfenced) --block->unfenced[index];
  self.unfenced.clear();
}

void start_product(const Product& product) {
  Thread& self = *block->running;
  float* const registers = product.sums;
  const int size = product.columns / 2;
  const auto is_same = [&](const Accumulator& known) { return known.registers == registers; };
  auto found = std::find_if(self.accumulators.begin(), self.accumulators.end(), is_same);
  if (found == self.accumulators.end()) {
    self.accumulators.push_back({registers, {registers, registers + size}, 0});
    found = self.accumulators.end() - 1;
    std::memset(registers, 0xff, size * sizeof(float));
  }
  ++found->under_way;
  Started started{product, {}};
  started.product.sums = found->sums.data();
  if (product.left != nullptr) std::copy_n(product.left, 4, started.left.begin());
  self.open_products.push_back(started);
}

void close_product_group() {
  Thread& self = *block->running;
  self.product_groups.push_back(std::move(self.open_products));
  self.open_products.clear();
}

namespace {

// What a thread has of a product that is done: the sums are in its registers when nothing more adds to them.
void finish(Thread& thread, const Started& started) {
  if (started.product.left != nullptr &&
      !std::equal(started.left.begin(), started.left.end(), started.product.left))
    fail("an operand was changed under a product");
  const auto is_its = [&](const Accumulator& known) { return known.sums.data() == started.product.sums; };
  const auto found = std::find_if(thread.accumulators.begin(), thread.accumulators.end(), is_its);
  if (--found->under_way > 0) return;
  for (size_t i = 0; i < found->sums.size(); ++i) {
    if (__float_as_uint(found->registers[i]) != ~0u) fail("sums were changed under a product");
  }
  std::copy(found->sums.begin(), found->sums.end(), found->registers);
  thread.accumulators.erase(found);
}

// The i-th product of the oldest group, of all threads of a warpgroup.
void multiply(Thread* threads, size_t i) {
  const Product* of_threads[128];
  for (int t = 0; t < 128; ++t) {
    const auto& groups = threads[t].product_groups;
    if (groups.empty() || groups.front().size() != threads[0].product_groups.front().size())
      fail("threads of a warpgroup wait for different products");
    of_threads[t] = &groups.front()[i].product;
    if (of_threads[t]->left_descriptor != of_threads[0]->left_descriptor ||
        of_threads[t]->right_descriptor != of_threads[0]->right_descriptor)
      fail("threads of a warpgroup have different operands");
  }
  of_threads[0]->multiply(of_threads);
  for (int t = 0; t < 128; ++t) finish(threads[t], threads[t].product_groups.front()[i]);
}

}  // namespace

// The last thread of the warpgroup that comes does the products of all.
void wait_for_products(int groups_under_way) {
  const int group = static_cast<int>(block->running->index.x) / 128;
  Meeting& meeting = block->groups[group];
  if (meeting.arrived == 127) {
    Thread* const threads = &block->threads[128 * group];
    while (static_cast<int>(threads[0].product_groups.size()) > groups_under_way) {
      for (size_t i = 0; i < threads[0].product_groups.front().size(); ++i) multiply(threads, i);
      for (int t = 0; t < 128; ++t) threads[t].product_groups.pop_front();
    }
  }
  meet_at(meeting, 128);
}

namespace {

// Descriptors: see cuda/device/wgmma.cuh. Only this one way of changing chunks is known here.
uint16_t element(uint64_t descriptor, uint32_t further) {
  if (descriptor >> 62 != 1 || (descriptor >> 32 & 0x3fff) != 64) fail("a descriptor of another layout");
  uint32_t address = static_cast<uint32_t>(descriptor & 0x3fff) * 16 + further;
  address ^= (address >> 7 & 7) << 4;
  uint16_t bits;
  std::memcpy(&bits, known(address & ~3u, 4) + (address & 2), sizeof bits);
  return bits;
}

}  // namespace

uint16_t element_by_rows(uint64_t descriptor, int row, int k) {
  return element(descriptor, row * kBoxRowBytes + 2 * k);
}
uint16_t element_by_columns(uint64_t descriptor, int k, int column) {
  const uint32_t next = static_cast<uint32_t>(descriptor >> 16 & 0x3fff) * 16;
  return element(descriptor, column / kBoxChannels * next + k * kBoxRowBytes + column % kBoxChannels * 2);
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

namespace {

// DHP_EMULATED_CAPABILITY is 8 or, where it is not set, 9.
int capability() {
  const char* const asked = std::getenv("DHP_EMULATED_CAPABILITY");
  return asked == nullptr ? 9 : std::atoi(asked);
}

// DHP_EMULATED_DRIVER is "old", "refusing" or not set.
bool driver_is(const std::string& sort) {
  const char* const asked = std::getenv("DHP_EMULATED_DRIVER");
  return asked != nullptr && asked == sort;
}

CUresult encode(CUtensorMap* to, CUtensorMapDataType type, cuuint32_t axes, void* data,
                const cuuint64_t* sizes, const cuuint64_t* strides, const cuuint32_t* box, const cuuint32_t*,
                CUtensorMapInterleave, CUtensorMapSwizzle swizzle, CUtensorMapL2promotion,
                CUtensorMapFloatOOBfill fill) {
  if (driver_is("refusing")) return CUDA_ERROR_INVALID_VALUE;
  const bool is_known =
      (type == CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 || type == CU_TENSOR_MAP_DATA_TYPE_FLOAT16) && axes == 5 &&
      box[0] == emulator::kBoxChannels && box[2] * box[3] * box[4] == 1 &&
      swizzle == CU_TENSOR_MAP_SWIZZLE_128B && fill == CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE;
  if (!is_known || box[1] < 1 || box[1] > 256 || reinterpret_cast<uintptr_t>(data) % 16 != 0)
    return CUDA_ERROR_INVALID_VALUE;
  emulator::Map map{static_cast<unsigned char*>(data), {}, {}, static_cast<int>(box[1])};
  static_assert(sizeof map <= sizeof *to);
  std::copy_n(sizes, 5, map.sizes);
  std::copy_n(strides, 4, map.strides);
  for (const int64_t stride : map.strides) {
    if (stride % 16 != 0 || stride == 0) return CUDA_ERROR_INVALID_VALUE;
  }
  for (const int64_t size : map.sizes) {
    if (size == 0) return CUDA_ERROR_INVALID_VALUE;
  }
  std::memcpy(to, &map, sizeof map);
  return CUDA_SUCCESS;
}

}  // namespace

// The part of CUDA that the launchers call.
extern "C" {
cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  *function = reinterpret_cast<void*>(+encode);
  *result = driver_is("old") ? cudaDriverEntryPointSymbolNotFound : cudaDriverEntryPointSuccess;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  constexpr int kMultiprocessors = 3;  // so that blocks that persist have more than one item
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? capability()
           : attribute == cudaDevAttrMultiProcessorCount  ? kMultiprocessors
                                                          : 0;
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int value) {
  return value <= static_cast<int>(sizeof dhp::sMemory) ? cudaSuccess : cudaErrorInvalidValue;
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "the emulator refused it"; }
}
