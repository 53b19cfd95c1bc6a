// Products of a warpgroup.

#include "state.h"

namespace emulator {

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

// Descriptors: see cuda/device/wgmma.cuh. Only this one way of changing chunks is known here. The next 64
// columns are whole boxes away, or named as 1 where there are none.
uint16_t element(uint64_t descriptor, uint32_t further) {
  const uint32_t next = static_cast<uint32_t>(descriptor >> 16 & 0x3fff);
  if (descriptor >> 62 != 1 || (descriptor >> 32 & 0x3fff) != 64 || (next != 1 && next % 64 != 0))
    fail("a descriptor of another layout");
  uint32_t address = static_cast<uint32_t>(descriptor & 0x3fff) * 16 + further + rank_bits();
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

}  // namespace emulator
