// The work of attention_fwd_sm90: tiles and shared memory, the items that a block takes one after the other,
// and what brings their rows.

#pragma once

#include "device/band.cuh"
#include "device/divisor.cuh"
#include "device/rows.cuh"
#include "device/tile_ring.cuh"
#include "device/warp.cuh"
#include "device/wgmma.cuh"
#include "params.h"

namespace dhp {

template <typename Config>
struct HopperForwardTiles {
  static constexpr DType kDType = Config::kDType;
  static constexpr int kChannels = Config::kChannels;
  static constexpr int kRowBytes = Config::kRowBytes;
  static constexpr bool kHasBand = Config::kHasBand;
  static constexpr int kColumns = kChannels / kBoxChannels;  // of 64 channels
  // As many warpgroups as the registers of an SM allow; what is measured is in DECISIONS.
  static constexpr int kGroups = kChannels == 64 ? 4 : kChannels == 128 && kHasBand ? 3 : 2;
  static constexpr bool kHasProducer = kChannels > 64;
  static constexpr bool kOverlaps = kGroups == 2;
  static constexpr int kProducerRegisters = kGroups == 2 ? 24 : 32,
                       kConsumerRegisters = kGroups == 2 ? 240 : 160;
  static constexpr int kKeyWarp =
      (kGroups - !kHasProducer) * kGroupWarps;  // copies keys, the next one values
  static constexpr int kThreads = (kGroups + kHasProducer) * kGroupThreads;
  static constexpr int kQueryRows = kGroups * kGroupRows;
  // Large tiles need less energy; of smaller ones, where there are few keys, more are on their way at a time.
  static constexpr int kKeyRows = kChannels == 256 ? 80 : kGroups > 2 || Config::kHasFewKeys ? 128 : 176;
  static constexpr int kStages = kChannels == 64 ? 4 : Config::kHasFewKeys ? 3 : 2;
  static constexpr int kAhead = kStages / 2;  // tiles between the copy of one and its use
  static constexpr int kKeyTiles = kKeyRows / kMmaColumns;
  static constexpr int kDepth = kKeyRows / kMmaDepth<kDType>;
  static constexpr int kChannelTiles = kChannels / kMmaColumns;
  static constexpr bool kHasOnes = kChannels == 64;
  static constexpr int kOutTiles = kChannelTiles + kHasOnes;

  // Shared memory, in bytes from its begin.
  static constexpr int kQueryBytes = kGroupRows * kRowBytes;  // of one warpgroup
  static constexpr int kTileBytes = kKeyRows * kRowBytes;
  static constexpr int kColumnBytes = kKeyRows * kBoxRowBytes;
  static constexpr int kKeys = kGroups * kQueryBytes;
  static constexpr int kValues = kKeys + kStages * kTileBytes;
  static constexpr int kOnes = kValues + kStages * kTileBytes;
  static constexpr int kOnesBytes = kHasOnes ? kMmaRows * kBoxRowBytes : 0;
  static constexpr int kQueryBarriers = kOnes + kOnesBytes;
  static constexpr int kKeyBarriers = kQueryBarriers + kGroups * kBarrierBytes;
  static constexpr int kValueBarriers = kKeyBarriers + 2 * kStages * kBarrierBytes;
  static constexpr int kSharedBytes = kValueBarriers + 2 * kStages * kBarrierBytes;
};

struct HopperForwardParams {
  ForwardParams forward;
  TensorMap query, key, value;
  uint32_t items;  // of all blocks
  // Items are counted along the tiles of query rows, then heads, batch and V. With a band, heads (of the
  // whole batch and V) come in sections, the last of which may be smaller, and in a section items are counted
  // along the heads.
  Divisor tiles, heads, batch, heads_of_keys_group;
  Divisor section_items, section, last_section;
  uint32_t zero;  // which the compiler cannot know
};

// An item of work: kQueryRows query rows of one head, and the key tiles that they see, from the last to the
// first. Tiles are numbered in the order in which a block uses them, through all its items.
template <typename Tiles>
struct Item {
  uint32_t round;  // of the block
  uint32_t index;  // among the items of all blocks; it exists if it is below their number
  Place first;     // its first query row
  int32_t head_of_keys;
  int begin, end;  // its tiles
  int top;         // the place on the key axis of tile n is top - n

  __device__ bool exists(const HopperForwardParams& params) const { return index < params.items; }
  __device__ int32_t key(int n) const { return (top - n) * Tiles::kKeyRows; }
};

__device__ inline int count_tiles(int32_t rows, int size) { return (rows + size - 1) / size; }

// Blocks take items in turn, in every second round the other way round. Where later rows see more, heads come
// in sections, and in a section the last rows come first, all heads beside each other: so a block that has
// much to do in one round has little in the next.
template <typename Tiles>
__device__ Item<Tiles> item_of_block(const HopperForwardParams& params, uint32_t round, int begin) {
  const Problem& problem = params.forward.problem;
  const Shape& shape = problem.shape;
  const uint32_t block = ptx::block_index(), blocks = ptx::grid_size();
  uint32_t rest = round * blocks + (round % 2 == 0 ? block : blocks - 1 - block);
  Item<Tiles> item{};
  item.round = round;
  item.index = static_cast<uint32_t>(uniform(static_cast<int>(rest)));
  uint32_t tile;
  if constexpr (Tiles::kHasBand) {
    uint32_t section = rest, from_last = params.section_items.take_index(section);
    const bool is_last = (section + 1) * params.section_items.divisor > params.items;
    const uint32_t head = (is_last ? params.last_section : params.section).take_index(from_last);
    tile = params.tiles.divisor - 1 - from_last;
    rest = section * params.section.divisor + head;
  } else {
    tile = params.tiles.take_index(rest);
  }
  const int32_t head = static_cast<int32_t>(params.heads.take_index(rest));
  const int32_t b = static_cast<int32_t>(params.batch.take_index(rest));
  item.first = {uniform(static_cast<int32_t>(rest)), uniform(b),
                uniform(static_cast<int32_t>(tile) * Tiles::kQueryRows), uniform(head)};
  uint32_t head_of_keys = static_cast<uint32_t>(head);
  params.heads_of_keys_group.take_index(head_of_keys);
  item.head_of_keys = uniform(static_cast<int32_t>(head_of_keys));
  int end = count_tiles(static_cast<int32_t>(shape.S), Tiles::kKeyRows), num_tiles = end;
  if constexpr (Tiles::kHasBand) {
    const int32_t last_row =
        min(item.first.row + Tiles::kQueryRows, static_cast<int32_t>(problem.shape.T)) - 1;
    end = uniform(count_tiles(keys_seen(problem, last_row).end, Tiles::kKeyRows));
    num_tiles = uniform(max(end - keys_seen(problem, item.first.row).begin / Tiles::kKeyRows, 0));
  }
  item.begin = uniform(begin);
  item.end = item.begin + num_tiles;
  item.top = begin + end - 1;
  return item;
}

// The rings of a block and what fills them.
template <typename Tiles>
class Supply {
 public:
  __device__ Supply(const HopperForwardParams& params, uint32_t sBegin)
      : keys(sBegin + Tiles::kKeys, sBegin + Tiles::kKeyBarriers),
        values(sBegin + Tiles::kValues, sBegin + Tiles::kValueBarriers),
        params_(params),
        sBegin_(sBegin) {}

  __device__ void init() const {
    for (int group = 0; group < Tiles::kGroups; ++group) ptx::init_barrier(query_barrier(group), 1);
    keys.init();
    values.init();
    ptx::fence_barrier_init();
  }

  __device__ uint32_t query_rows(int group) const { return sBegin_ + group * Tiles::kQueryBytes; }
  __device__ uint32_t query_barrier(int group) const {
    return sBegin_ + Tiles::kQueryBarriers + group * kBarrierBytes;
  }
  // The query rows of a warpgroup. One warp.
  __device__ void load_query(const Item<Tiles>& item, int group) const {
    Place at = place_in(problem().query, item.first);
    at.row += group * kGroupRows;
    if (ptx::is_elected()) {
      ptx::arrive_expecting(query_barrier(group), Tiles::kQueryBytes);
      load_rows<kGroupRows, Tiles::kColumns>(query_rows(group), params_.query, query_barrier(group), at);
    }
  }
  // What the warp of this number loads, if it is one of the two that load: tile n of keys or of values, of
  // this item or one of the next.
  __device__ void load(int warp, const Item<Tiles>& item, int n) const {
    if (warp == Tiles::kKeyWarp) {
      load<true>(item, n);
    } else if (warp == Tiles::kKeyWarp + 1) {
      load<false>(item, n);
    }
  }

  TileRing<Tiles> keys, values;

 private:
  template <bool kIsOfKeys>
  __device__ void load(const Item<Tiles>& item, int n) const {
    if (n < item.end) {
      load_of<kIsOfKeys>(item, n);
    } else {
      Item<Tiles> of = item;
      do {
        of = item_of_block<Tiles>(params_, of.round + 1, of.end);
      } while (of.exists(params_) & (n >= of.end));
      if (of.exists(params_)) load_of<kIsOfKeys>(of, n);
    }
  }
  template <bool kIsOfKeys>
  __device__ void load_of(const Item<Tiles>& item, int n) const {
    const Place at{item.first.v, item.first.b, item.key(n), item.head_of_keys};
    if constexpr (kIsOfKeys) {
      keys.load(params_.key, n, place_in(problem().key, at));
    } else {
      values.load(params_.value, n, place_in(problem().value, at));
    }
  }
  __device__ const Problem& problem() const { return params_.forward.problem; }

  const HopperForwardParams& params_;
  uint32_t sBegin_;
};

}  // namespace dhp
