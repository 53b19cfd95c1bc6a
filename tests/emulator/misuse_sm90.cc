// As misuse.cc, with what compute capability 9.0 has: barriers in shared memory, boxes, products of a
// warpgroup, which is the whole block.

#include <cuda.h>

#include "device/ptx.cuh"
#include "device/ptx_sm90.cuh"
#include "misuse.h"

namespace dhp {
extern unsigned char sMemory[];
namespace {

constexpr int kThreads = 128, kRows = 64, kChannels = 64, kTileBytes = kRows * kChannels * 2;
constexpr uint32_t kTile = emulator::kSharedBase, kOther = kTile + kTileBytes, kBarrier = kOther + kTileBytes;
constexpr int kSharedBytes = 2 * kTileBytes + 1024;
constexpr uint16_t kQuarter = 0x3e80;  // bfloat16: 16 products of two of them are 1

alignas(16) uint16_t rows[kRows * kChannels], stored[kRows * kChannels];
CUtensorMap map_of_rows, map_of_stored;
float (&results)[128] = misuse::results;
float made[kThreads];

using Sums = float[1][4];

// 8 rows of 128 bytes, one after the other.
uint64_t descriptor(uint32_t address) { return 1ull << 62 | 64ull << 32 | 1 << 16 | address / 16; }

void make_barrier(int thread, int count = 1) {
  if (thread == 0) {
    ptx::init_barrier(kBarrier, count);
    ptx::fence_barrier_init();
  }
  __syncthreads();
}
void load(int thread, uint32_t to = kTile, int bytes = kTileBytes) {
  if (thread == 0) {
    ptx::arrive_expecting(kBarrier, bytes);
    ptx::load_box(to, &map_of_rows, kBarrier, 0, 0, 0, 0, 0);
  }
}
void wait_for_box() {
  while (!ptx::is_over(kBarrier, 0)) {}
}
void load_and_wait(int thread) {
  make_barrier(thread);
  load(thread);
  wait_for_box();
}
void start_product(Sums& sums) {
  ptx::fence_products();
  ptx::wgmma_bf16(sums, descriptor(kTile), descriptor(kTile), 0);
  ptx::close_product_group();
}
void start_product(Sums& sums, const uint32_t (&left)[4]) {
  ptx::fence_products();
  ptx::wgmma_bf16(sums, left, descriptor(kTile), 1);
  ptx::close_product_group();
}
void store(int thread) {
  ptx::meet<kThreads>(1);
  if (thread == 0) {
    ptx::store_box(kOther, &map_of_stored, 0, 0, 0, 0, 0);
    ptx::wait_for_stores();
  }
}
void fill_other(int thread) {
  for (int i = thread; i < kTileBytes / 4; i += kThreads) ptx::store_shared(kOther + 4 * i, 0);
}

void proper(int thread) {
  load_and_wait(thread);
  Sums sums;
  start_product(sums);
  const uint32_t left[4] = {};
  start_product(sums, left);
  ptx::wait_for_products<0>();
  results[thread] = sums[0][0];
  fill_other(thread);
  ptx::fence_stores();
  store(thread);
  if (thread == 0) results[0] += stored[kRows * kChannels - 1];
}
void box_read_too_early(int thread) {
  make_barrier(thread);
  load(thread);
  if (thread == 0) results[0] = ptx::load_shared_2(kTile).x;
  wait_for_box();
}
void sums_read_too_early(int thread) {
  load_and_wait(thread);
  Sums sums;
  start_product(sums);
  results[thread] = sums[0][0];
  ptx::wait_for_products<0>();
}
void sums_read_with_their_group_under_way(int thread) {
  load_and_wait(thread);
  Sums first, second;
  start_product(first);
  start_product(second);
  ptx::wait_for_products<1>();
  results[thread] = second[0][0];
  ptx::wait_for_products<0>();
}
void sums_changed(int thread) {
  load_and_wait(thread);
  Sums sums;
  start_product(sums);
  sums[0][3] = 1;
  ptx::wait_for_products<0>();
}
void operand_changed(int thread) {
  load_and_wait(thread);
  Sums sums = {};
  uint32_t left[4] = {};
  start_product(sums, left);
  left[3] = 1;
  ptx::wait_for_products<0>();
}
void operands_differ(int thread) {
  load_and_wait(thread);
  Sums sums;
  ptx::wgmma_bf16(sums, descriptor(kTile), descriptor(kTile + thread / 32 * 1024), 0);
  ptx::close_product_group();
  ptx::wait_for_products<0>();
}
void operand_of_another_layout(int thread) {
  load_and_wait(thread);
  Sums sums;
  ptx::wgmma_bf16(sums, descriptor(kTile), descriptor(kTile) ^ 1ull << 62, 0);
  ptx::close_product_group();
  ptx::wait_for_products<0>();
}
void group_that_never_waits(int thread) {
  load_and_wait(thread);
  Sums sums;
  start_product(sums);
}
void half_a_group(int thread) {
  load_and_wait(thread);
  Sums sums;
  if (thread >= kThreads / 2) return;
  start_product(sums);
  ptx::wait_for_products<0>();
}
void product_of_what_is_not_fenced(int thread) {
  load_and_wait(thread);
  fill_other(thread);
  __syncthreads();
  Sums sums;
  ptx::wgmma_bf16(sums, descriptor(kTile), descriptor(kOther), 0);
  ptx::close_product_group();
  ptx::wait_for_products<0>();
}
void product_of_copies_that_are_not_fenced(int thread) {
  for (int i = thread; i < kTileBytes / 16; i += kThreads)
    ptx::copy_16_async(kTile + 16 * i, rows + 8 * i, 16);
  ptx::close_copy_group();
  ptx::wait_for_copies<0>();
  __syncthreads();
  Sums sums;
  start_product(sums);
  ptx::wait_for_products<0>();
}
void box_of_what_is_not_fenced(int thread) {
  fill_other(thread);
  store(thread);
}
void stored_box_that_nobody_waits_for(int thread) {
  if (thread == 0) ptx::store_box(kOther, &map_of_stored, 0, 0, 0, 0, 0);
}
void loaded_box_that_nobody_waits_for(int thread) {
  make_barrier(thread);
  load(thread);
}
void store_under_a_box(int thread) {
  make_barrier(thread);
  load(thread);
  if (thread == 0) ptx::store_shared(kTile, 0);
  wait_for_box();
}
void box_not_aligned(int thread) {
  make_barrier(thread);
  load(thread, kTile + 512);
  wait_for_box();
}
void stored_box_not_aligned(int thread) {
  if (thread == 0) ptx::store_box(kOther + 512, &map_of_stored, 0, 0, 0, 0, 0);
}
void box_outside_of_shared_memory(int thread) {
  make_barrier(thread);
  load(thread, kTile + 2 * kTileBytes);
  wait_for_box();
}
void map_not_aligned(int thread) {
  make_barrier(thread);
  if (thread == 0) ptx::load_box(kTile, map_of_rows.opaque + 1, kBarrier, 0, 0, 0, 0, 0);
}
void barrier_not_made(int) { ptx::arrive(kBarrier); }
void barrier_not_fenced(int thread) {
  if (thread == 0) ptx::init_barrier(kBarrier, 1);
  __syncthreads();
  load(thread);
  wait_for_box();
}
void too_many_arrivals(int thread) {
  make_barrier(thread);
  if (thread == 0) ptx::arrive_expecting(kBarrier, kTileBytes);
  if (thread == 0) ptx::arrive(kBarrier);
}
void too_few_arrivals(int thread) {
  make_barrier(thread, 2);
  load(thread);
  wait_for_box();
}
void more_bytes_than_come(int thread) {
  make_barrier(thread);
  load(thread, kTile, kTileBytes + 16);
  wait_for_box();
}
void fewer_bytes_than_come(int thread) {
  make_barrier(thread);
  load(thread, kTile, kTileBytes - 16);
  wait_for_box();
}
void met_in_different_numbers(int thread) { thread < 32 ? ptx::meet<64>(1) : ptx::meet<96>(1); }
void numbered_barrier_for_one_warp(int thread) {
  if (thread < 32) ptx::meet<kThreads>(1);
}
void barrier_without_a_number(int) { ptx::meet<kThreads>(16); }
// The first half of the threads goes on at once, and the second when the first has stored.
void proper_turns(int thread) {
  const bool is_first = thread < kThreads / 2;
  if (is_first) {
    made[thread] = 1;
    ptx::arrive_at_meeting<kThreads>(1);
  } else {
    ptx::meet<kThreads>(1);
  }
  results[thread] = is_first ? 1 : made[thread - kThreads / 2];
}
void arrival_that_nobody_waits_for(int thread) {
  if (thread < kThreads / 2) ptx::arrive_at_meeting<kThreads>(1);
}

void make(int thread) { made[thread] = 1; }
void proper_after_another(int thread) {
  ptx::store_shared(kTile + 4 * thread, 7);
  ptx::wait_for_launch_before();
  results[thread] = made[thread] + static_cast<float>(ptx::load_shared<uint32_t>(kTile + 4 * thread) - 7);
}
void launch_before_read_too_early(int thread) {
  results[thread] += made[thread] - 1;  // of the first block, too early
  ptx::wait_for_launch_before();
}
void launch_before_not_waited_for(int thread) {
  if (thread < 32) ptx::wait_for_launch_before();
}

#define NAMED(check) {#check, check}
constexpr misuse::Named kChecks[] = {
    NAMED(proper),
    NAMED(box_read_too_early),
    NAMED(sums_read_too_early),
    NAMED(sums_read_with_their_group_under_way),
    NAMED(sums_changed),
    NAMED(operand_changed),
    NAMED(operands_differ),
    NAMED(operand_of_another_layout),
    NAMED(group_that_never_waits),
    NAMED(half_a_group),
    NAMED(product_of_what_is_not_fenced),
    NAMED(product_of_copies_that_are_not_fenced),
    NAMED(box_of_what_is_not_fenced),
    NAMED(stored_box_that_nobody_waits_for),
    NAMED(loaded_box_that_nobody_waits_for),
    NAMED(store_under_a_box),
    NAMED(box_not_aligned),
    NAMED(stored_box_not_aligned),
    NAMED(box_outside_of_shared_memory),
    NAMED(map_not_aligned),
    NAMED(barrier_not_made),
    NAMED(barrier_not_fenced),
    NAMED(too_many_arrivals),
    NAMED(too_few_arrivals),
    NAMED(more_bytes_than_come),
    NAMED(fewer_bytes_than_come),
    NAMED(met_in_different_numbers),
    NAMED(numbered_barrier_for_one_warp),
    NAMED(barrier_without_a_number),
    NAMED(proper_turns),
    NAMED(arrival_that_nobody_waits_for),
    {"proper_after_another", proper_after_another, make},
    {"launch_before_read_too_early", launch_before_read_too_early, make},
    {"launch_before_not_waited_for", launch_before_not_waited_for, make},
};

void describe(CUtensorMap& map, void* data) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result;
  cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result);
  constexpr cuuint64_t kSize = kRows * kChannels * 2;
  const cuuint64_t sizes[5] = {kChannels, kRows, 1, 1, 1}, strides[4] = {kChannels * 2, kSize, kSize, kSize};
  const cuuint32_t box[5] = {kChannels, kRows, 1, 1, 1}, steps[5] = {1, 1, 1, 1, 1};
  reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function)(
      &map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 5, data, sizes, strides, box, steps,
      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_NONE,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

}  // namespace
}  // namespace dhp

int main(int, char** arguments) {
  using namespace dhp;
  std::fill(std::begin(rows), std::end(rows), kQuarter);
  std::fill(std::begin(stored), std::end(stored), kQuarter);
  std::fill(std::begin(made), std::end(made), NAN);
  describe(map_of_rows, rows);
  describe(map_of_stored, stored);
  return misuse::run(kChecks, arguments[1], kThreads, kSharedBytes);
}
