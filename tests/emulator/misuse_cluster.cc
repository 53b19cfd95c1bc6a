// As misuse_sm90.cc, with clusters of two blocks: their barrier, and stores of one in the other.

#include "device/ptx.cuh"
#include "device/ptx_sm90.cuh"
#include "misuse.h"

namespace dhp {
extern unsigned char sMemory[];
namespace {

constexpr int kThreads = 64, kBytes = 16 * kThreads, kSharedBytes = kBytes + 16, kBlocks = 2;
float (&results)[128] = misuse::results;

uint32_t base() { return ptx::shared_address(sMemory); }
uint32_t barrier() { return base() + kBytes; }
uint32_t other() { return ptx::block_index() % kBlocks ^ 1; }
uint32_t in_other(uint32_t address) { return ptx::address_in_block(address, other()); }

void make_barrier(int thread, int bytes = kBytes) {
  if (thread == 0) {
    ptx::init_barrier(barrier(), 1);
    ptx::fence_barrier_init();
    ptx::arrive_expecting(barrier(), bytes);
  }
  __syncthreads();
}
void meet_cluster() {
  ptx::arrive_at_cluster();
  ptx::wait_for_cluster();
}
void store(int thread) {
  ptx::store_async(in_other(base() + 16 * thread), {1, 1, 1, 1}, in_other(barrier()));
}
void wait_for_stores() {
  while (!ptx::is_over(barrier(), 0)) {}
}
void read(int thread) { results[thread] = ptx::load_shared_2(base() + 16 * (kThreads - 1 - thread)).x; }

void proper(int thread) {
  make_barrier(thread);
  meet_cluster();
  store(thread);
  wait_for_stores();
  read(thread);
}
void store_read_too_early(int thread) {
  make_barrier(thread);
  meet_cluster();
  store(thread);
  read(thread);
  wait_for_stores();
}
void store_before_the_other_has_begun(int thread) {
  make_barrier(thread);
  ptx::arrive_at_cluster();
  store(thread);
  ptx::wait_for_cluster();
  wait_for_stores();
}
void store_that_tells_its_own_block(int thread) {
  make_barrier(thread);
  meet_cluster();
  ptx::store_async(in_other(base() + 16 * thread), {}, barrier());
}
void store_not_aligned(int thread) {
  make_barrier(thread);
  meet_cluster();
  ptx::store_async(in_other(base() + 16 * thread + 8), {}, in_other(barrier()));
}
void store_under_a_store(int thread) {
  make_barrier(thread);
  meet_cluster();
  store(thread);
  store(thread ^ 1);
  ptx::store_shared(base() + 16 * thread, 0);
}
void store_that_nobody_waits_for(int thread) {
  make_barrier(thread);
  meet_cluster();
  store(thread);
}
void fewer_bytes_than_come(int thread) {
  make_barrier(thread, kBytes - 16);
  meet_cluster();
  store(thread);
  wait_for_stores();
}
void more_bytes_than_come(int thread) {
  make_barrier(thread, kBytes + 16);
  meet_cluster();
  store(thread);
  wait_for_stores();
}
void barrier_not_fenced(int thread) {
  if (thread == 0) {
    ptx::init_barrier(barrier(), 1);
    ptx::arrive_expecting(barrier(), kBytes);
  }
  meet_cluster();
  store(thread);
  wait_for_stores();
}
void block_that_the_cluster_does_not_have(int) { ptx::address_in_block(base(), kBlocks); }
void address_of_the_other_block(int) { ptx::load_shared_4(in_other(base())); }
void arrives_twice(int) {
  ptx::arrive_at_cluster();
  ptx::arrive_at_cluster();
}
void waits_without_arriving(int) { ptx::wait_for_cluster(); }
void ends_without_waiting(int) { ptx::arrive_at_cluster(); }
void one_block_that_never_comes(int) {
  if (other() == 0) meet_cluster();
}

#define NAMED(check) {#check, check}
constexpr misuse::Named kChecks[] = {
    NAMED(proper),
    NAMED(store_read_too_early),
    NAMED(store_before_the_other_has_begun),
    NAMED(store_that_tells_its_own_block),
    NAMED(store_not_aligned),
    NAMED(store_under_a_store),
    NAMED(store_that_nobody_waits_for),
    NAMED(fewer_bytes_than_come),
    NAMED(more_bytes_than_come),
    NAMED(barrier_not_fenced),
    NAMED(block_that_the_cluster_does_not_have),
    NAMED(address_of_the_other_block),
    NAMED(arrives_twice),
    NAMED(waits_without_arriving),
    NAMED(ends_without_waiting),
    NAMED(one_block_that_never_comes),
};

}  // namespace
}  // namespace dhp

int main(int, char** arguments) {
  return misuse::run(dhp::kChecks, arguments[1], dhp::kThreads, dhp::kSharedBytes, dhp::kBlocks);
}
