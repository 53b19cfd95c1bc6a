// Copies and the barriers at which they are waited for: by a thread, by tensor maps, from block to block.

#include "state.h"

namespace emulator {

void count_copy(uint32_t to, int size, int change) {
  for (int i = 0; i < size; i += 4) block->copies_to[word_of(to + i)] += change;
}

namespace {

void finish(const Copy& copy) {
  unsigned char* to = shared(copy.to, copy.size);
  std::memset(to, 0, copy.size);
  std::memcpy(to, copy.from, copy.bytes);
  count_copy(copy.to, copy.size, -1);
  note_store(copy.to, copy.size);
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

void finish_box(const Box& box) {
  for_each_chunk(box, [](const unsigned char* global, uint32_t place) {
    unsigned char* to = shared(place, 16);
    std::memset(to, 0, 16);
    if (global != nullptr) std::memcpy(to, global, 16);
    count_copy(place, 16, -1);
  });
}

void finish(Load& load) {
  int bytes = sizeof load.stored;
  if (load.box.map == nullptr) {
    std::memcpy(shared(load.box.at_shared, bytes), load.stored.data(), bytes);
    count_copy(load.box.at_shared, bytes, -1);
  } else {
    bytes = load.box.map->box_rows * kBoxRowBytes;
    finish_box(load.box);
  }
  Barrier& barrier = barrier_at(load.barrier);
  barrier.bytes_and_phase -= 2 * bytes;
  check_phase(barrier);
  load.has_come = true;
}

}  // namespace

bool finish_some_load(std::mt19937& chance) {
  std::vector<Load*> under_way;
  for (Load& load : block->loads) {
    if (!load.has_come) under_way.push_back(&load);
  }
  if (under_way.empty() || chance() % 2 != 0) return false;
  finish(*under_way[chance() % under_way.size()]);
  return true;
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
  cluster->progress = true;
}

void arrive_at_cluster() {
  Thread& self = *block->running;
  if (self.clusters_arrived != self.clusters_met)
    fail("a thread arrives twice without waiting for its cluster");
  ++self.clusters_arrived;
  cluster->progress = true;
  if (++cluster->arrived == static_cast<int>(cluster->blocks.size() * block->threads.size())) {
    cluster->arrived = 0;
    ++cluster->met;
  }
}

void wait_for_cluster() {
  Thread& self = *block->running;
  if (self.clusters_arrived == self.clusters_met) fail("a thread waits for its cluster without arriving");
  while (cluster->met == self.clusters_met) yield();
  ++self.clusters_met;
  cluster->progress = true;
}

uint32_t address_in_block(uint32_t address, uint32_t rank) {
  if (rank >= cluster->blocks.size()) fail("a block that the cluster does not have");
  return address - rank_bits() + (rank << kRankShift);
}

namespace {

void check_fenced(uint32_t barrier) {
  for (const Thread& thread : block->threads) {
    const auto& unfenced = thread.unfenced_barriers;
    if (std::find(unfenced.begin(), unfenced.end(), barrier) != unfenced.end())
      fail("a barrier that no fence has made known");
  }
}

}  // namespace

void store_async(uint32_t to, const float (&values)[4], uint32_t barrier) {
  if (to >> kRankShift != barrier >> kRankShift) fail("a store to one block that tells a barrier of another");
  if (block->running->clusters_met == 0) fail("a store to a block that may not have begun");
  Block* const own = block;
  block = &cluster->blocks[barrier >> kRankShift];
  if (block->has_ended()) fail("a store to a block that has ended");
  check_fenced(barrier);
  const uint32_t parity = barrier_at(barrier).bytes_and_phase & 1;
  std::memset(shared(to, 16), 0xff, 16);
  count_copy(to, 16, 1);
  block->loads.push_back(
      {{to, nullptr, {}}, {values[0], values[1], values[2], values[3]}, barrier, parity, false});
  block = own;
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

namespace {

Box checked_box(uint32_t at_shared, const void* map, const Coordinates& at) {
  if (at_shared % 1024 != 0) fail("a box in shared memory that is not aligned to 1024 bytes");
  if (reinterpret_cast<uintptr_t>(map) % 64 != 0) fail("a tensor map that is not aligned to 64 bytes");
  return {at_shared, static_cast<const Map*>(map), {at[0], at[1], at[2], at[3], at[4]}};
}

}  // namespace

void load_box(uint32_t to, const void* map, uint32_t barrier, const Coordinates& at) {
  const Box box = checked_box(to, map, at);
  check_fenced(barrier);
  const uint32_t parity = barrier_at(barrier).bytes_and_phase & 1;
  for_each_chunk(box, [](const unsigned char*, uint32_t place) {
    std::memset(shared(place, 16), 0xff, 16);
    count_copy(place, 16, 1);
  });
  block->loads.push_back({box, {}, barrier, parity, false});
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

}  // namespace emulator
