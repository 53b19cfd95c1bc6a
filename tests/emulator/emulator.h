// CUDA C++ on a CPU: what a block does, one thread after the other. Included before the kernels, in place of
// what nvcc knows by itself.
//
// Every thread of a block is a fiber. It runs until it needs others: at a barrier, or at an instruction of
// its whole warp. Blocks run one after the other but for those of a cluster, and which warp goes on first is
// drawn anew at each step, so that what a missing barrier spoils is spoiled here too, sooner or later.
// Numbers are those of the GPU but for the last bits: sums of a product are rounded once, approximate
// functions are exact.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>

namespace emulator {

inline constexpr int kLanes = 32;
inline constexpr uint32_t kSharedBase = 1024;  // address of the first byte, as on the GPU

uint3 thread_index();
uint3 block_index();
uint3 grid_size();

// Waits for all threads of the block.
void meet_block();

// Waits for all lanes of the warp; the last one runs `act` on what each has brought.
using Act = void (*)(void* const (&of_lanes)[kLanes]);
void meet_warp(Act act, void* mine);

// Shared memory, by its 32-bit address; stops the program where the block has not asked for it.
unsigned char* shared(uint32_t address, uint32_t bytes);
uint32_t shared_address(const void* pointer);
void store(uint32_t to, uint32_t word);

// An asynchronous copy: until it is waited for, its target is full of NaN.
void start_copy(uint32_t to, const void* from, int size, int bytes);
void close_copy_group();
void wait_for_copies(int groups_under_way);

// Compute capability 9.0. A barrier in shared memory of eight bytes, and the barriers with a number.
void init_barrier(uint32_t barrier, int count);
void fence_barriers();
void arrive(uint32_t barrier, int bytes);
bool is_over(uint32_t barrier, uint32_t parity);
void meet_threads(int number, int threads);
void arrive_at_meeting(int number, int threads);  // the same without waiting

// Blocks of a cluster run in turn, too. What one stores in another is NaN until it comes, some time later.
void arrive_at_cluster();
void wait_for_cluster();
uint32_t address_in_block(uint32_t address, uint32_t rank);
void store_async(uint32_t to, const float (&values)[4], uint32_t barrier);

// Tensor copies. A box is filled with NaN at once, and with rows some time later; a box is stored when it is
// waited for, and only what `fence_stores` has made known.
using Coordinates = int[5];
void load_box(uint32_t to, const void* map, uint32_t barrier, const Coordinates& at);
void store_box(uint32_t from, const void* map, const Coordinates& at);
void wait_for_stores();
void fence_stores();

// Products of a warpgroup: done, one after the other, when they are waited for. Until then the sums are full
// of NaN, and neither they nor what is in registers of the operands may change.
struct Product {
  void (*multiply)(const Product* const (&of_threads)[128]);
  float* sums;           // [columns / 8][4]
  const uint32_t* left;  // [4], or nullptr where it is in shared memory
  uint64_t left_descriptor, right_descriptor;
  int columns;
  bool accumulates;
};
void start_product(const Product& product);
void close_product_group();
void wait_for_products(int groups_under_way);
// The 16-bit element of an operand in shared memory.
uint16_t element_by_rows(uint64_t descriptor, int row, int k);
uint16_t element_by_columns(uint64_t descriptor, int k, int column);

// Runs `block` as every thread of every block, in finish_launches. A launch that may start before the one
// before it has ended does so: its first block goes on until all threads wait, and then the one before
// begins.
cudaError_t run(const cudaLaunchConfig_t& config, const std::function<void()>& block);
void finish_launches();
// With DHP_EMULATED_LAUNCHES writes the kernel's name into that file; whether it did, and nothing is to run.
bool note_instead(const void* kernel);
void wait_for_launch_before();

template <typename Params>
cudaError_t launch(const cudaLaunchConfig_t* config, void (*kernel)(Params), const Params& params) {
  if (note_instead(reinterpret_cast<const void*>(kernel))) return cudaSuccess;
  return run(*config, [=] { kernel(params); });
}

// What all 32 lanes give and get: each lane's value from the lane with another number.
template <typename T>
T shuffle_xor(T value, int distance) {
  struct Lane {
    T value, result;
    int distance;
  } mine{value, {}, distance};
  meet_warp(
      [](void* const(&of_lanes)[kLanes]) {
        for (int lane = 0; lane < kLanes; ++lane) {
          Lane& own = *static_cast<Lane*>(of_lanes[lane]);
          own.result = static_cast<Lane*>(of_lanes[lane ^ own.distance])->value;
        }
      },
      &mine);
  return mine.result;
}
template <typename T>
T shuffle(T value, int lane) {
  struct Lane {
    T value, result;
    int from;
  } mine{value, {}, lane};
  meet_warp(
      [](void* const(&of_lanes)[kLanes]) {
        for (void* of_lane : of_lanes) {
          Lane& own = *static_cast<Lane*>(of_lane);
          own.result = static_cast<Lane*>(of_lanes[own.from])->value;
        }
      },
      &mine);
  return mine.result;
}

}  // namespace emulator

#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __cluster_dims__
#define __cluster_dims__(...)
#define threadIdx (::emulator::thread_index())
#define cudaLaunchKernelEx(config, kernel, params) (::emulator::launch(config, kernel, params))

using std::max;
using std::min;

inline void __syncthreads() { ::emulator::meet_block(); }
inline void __syncwarp() {
  ::emulator::meet_warp([](void* const(&)[::emulator::kLanes]) {}, nullptr);
}
template <typename T>
T __shfl_xor_sync(uint32_t, T value, int distance) {
  return ::emulator::shuffle_xor(value, distance);
}
template <typename T>
T __shfl_sync(uint32_t, T value, int lane) {
  return ::emulator::shuffle(value, lane);
}
inline float __saturatef(float value) { return value > 0.0f ? std::fmin(value, 1.0f) : 0.0f; }  // NaN gives 0
inline float __uint_as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline uint32_t __float_as_uint(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline size_t __cvta_generic_to_global(const void* pointer) { return reinterpret_cast<size_t>(pointer); }
inline void* __cvta_global_to_generic(size_t address) { return reinterpret_cast<void*>(address); }
