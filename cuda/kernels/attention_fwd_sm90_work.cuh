// The work of attention_fwd_sm90: tiles and shared memory, the items that a block takes one after the other,
// and what brings their rows.

#pragma once

#include "device/band.cuh"
#include "device/block_merge.cuh"
#include "device/divisor.cuh"
#include "device/rows.cuh"
#include "device/tile.cuh"
#include "device/tile_ring.cuh"
#include "device/warp.cuh"
#include "device/wgmma.cuh"
#include "params.h"

namespace dhp {

template <typename Config>
struct HopperForwardTiles {
  static constexpr DType kDType = Config::kDType;
  static constexpr int kChannels = Config::kChannels;
  static constexpr bool kHasBand = Config::kHasBand;
  static constexpr bool kHasLengths = Config::kHasLengths;
  static constexpr bool kHasMaskBits = Config::kHasMaskBits;
  static constexpr bool kIsSplit = Config::kIsSplit;
  static constexpr int kBlocks = kIsSplit ? BlockMerge::kBlocks : 1;  // that share an item: a cluster
  static constexpr int kColumns = (kChannels + kBoxChannels - 1) / kBoxChannels;  // of 64 channels
  static constexpr int kRowBytes = kColumns * kBoxRowBytes;                       // in shared memory
  static constexpr bool kHasOperands = Config::kHasScoreOperands;
  static constexpr bool kHasMediumTiles = kHasBand || Config::kHasFewKeys;
  // Four warpgroups of 64 channels fit the registers of an SM, or of 96 channels four with smaller tiles and
  // three with larger ones; what is measured is in DECISIONS.
  static constexpr bool kIsThree = kChannels == 96 && kHasMediumTiles;
  static constexpr bool kIsFour = (kChannels == 64 || (kChannels == 96 && !kIsThree)) && !kHasOperands;
  static constexpr bool kHasProducer = !kIsFour;
  static constexpr int kGroups = kIsFour ? 4 : kIsThree ? 3 : 2;
  // Whether the scores of the next tile are under way beside P . value, where registers allow.
  static constexpr bool kOverlaps = kGroups == 2 && !(kChannels == 256 && kHasOperands);
  // Whether P . value runs beside the exponentials of the next tile, too. What is measured is in DECISIONS.
  static constexpr bool kDefersOutput = kChannels == 256 && kHasBand && !kHasOperands;
  static constexpr int kProducerRegisters = 24, kConsumerRegisters = kIsThree ? 160 : 240;
  static constexpr int kKeyWarp =
      (kGroups - !kHasProducer) * kGroupWarps;  // copies keys, the next one values
  static constexpr int kThreads = (kGroups + kHasProducer) * kGroupThreads;
  static constexpr int kQueryRows = kGroups * kGroupRows;
  // Large tiles need less energy; of smaller ones, where there are few keys, more are on their way at a time.
  // Score operands take registers.
  static constexpr int kKeyRows = kChannels == 256 || kHasOperands     ? 80
                                  : kChannels == 192                   ? 112
                                  : kChannels == 96 && kIsFour         ? 96
                                  : kChannels == 64 || kHasMediumTiles ? 128
                                                                       : 176;
  static constexpr int kKeyStages = kChannels > 128                   ? 2
                                    : kChannels == 64 || kHasOperands ? 4
                                    : kIsThree                        ? 2
                                    : kIsFour || kHasMediumTiles      ? 3
                                                                      : 2;
  // Query rows of two items and five tiles of 128 keys fill the shared memory.
  static constexpr int kValueStages = kKeyStages == 3 && !kIsFour ? 2 : kKeyStages;
  static constexpr int kAhead = kIsSplit ? 1 : kKeyStages / 2;  // tiles between the copy of one and its use
  static constexpr int kKeyTiles = kKeyRows / kMmaColumns;
  static constexpr int kDepth = kKeyRows / kMmaDepth<kDType>;
  static constexpr int kChannelTiles = kChannels / kMmaColumns;
  static constexpr bool kHasOnes = kChannels == 64;
  static constexpr int kOutTiles = kChannelTiles + kHasOnes;
  // Whether the weights of an item's only tile are summed before they are rounded. With lengths ptxas spills,
  // and where two blocks share the keys and there is no band; but then keys are many.
  static constexpr bool kSumsOnlyTile = kHasOnes && !kHasOperands && !kHasLengths && (kHasBand || !kIsSplit);

  // Shared memory, in bytes from its begin.
  static constexpr int kQueryBytes = kGroupRows * kRowBytes;  // of one warpgroup
  static constexpr int kTileBytes = kKeyRows * kRowBytes;
  static constexpr int kColumnBytes = kKeyRows * kBoxRowBytes;
  static constexpr int kAllTilesBytes = (kKeyStages + kValueStages) * kTileBytes;
  // A block with one item waits for its first rows, and bulk copies come one after the other: threads copy
  // the query rows beside the first keys.
  static constexpr bool kCopiesQueryByThreads = kIsSplit;
  // Whether warpgroups begin one after the other, so that they do not all need the same unit at a time, nor
  // send all their sums at once. With a band they differ in what they have to do.
  static constexpr bool kBeginsInTurn = kIsSplit && !kHasBand;
  // Where there is room, the next item's query rows are loaded when an item begins, else when it ends.
  static constexpr bool kLoadsQueryEarly =
      2 * kGroups * kQueryBytes + kAllTilesBytes <= 224 * 1024 && !kIsSplit;
  // Whether rows are stored while the next item's first scores are under way, or while its query rows come.
  static constexpr bool kStoresBehindScores = kLoadsQueryEarly || kHasBand;
  static constexpr int kLeastTiles = kOverlaps ? 1 : 0;  // of an item, and of a warpgroup's: seen or not
  // With query rows early, the rows of an item are stored from where its own were.
  static constexpr bool kStoresByCopy = kLoadsQueryEarly && kOverlaps;
  static constexpr int kQueryPlaces = kLoadsQueryEarly ? 2 : 1;
  static constexpr int kKeys = kQueryPlaces * kGroups * kQueryBytes;
  static constexpr int kValues = kKeys + kKeyStages * kTileBytes;
  static constexpr int kOnes = kValues + kValueStages * kTileBytes;
  static constexpr int kOnesBytes = kHasOnes ? kMmaRows * kBoxRowBytes : 0;
  static constexpr int kZeros = kOnes + kOnesBytes;
  static constexpr int kQueryBarriers = kZeros + (kSumsOnlyTile ? kOnesBytes : 0);
  static constexpr int kKeyBarriers = kQueryBarriers + kQueryPlaces * kGroups * kBarrierBytes;
  static constexpr int kValueBarriers = kKeyBarriers + 2 * kKeyStages * kBarrierBytes;
  static constexpr int kMergeBarriers = kValueBarriers + 2 * kValueStages * kBarrierBytes;
  static_assert(!kIsSplit || kQueryBytes == kGroupWarps * BlockMerge::kOwnBytes);
  static constexpr int kMergedWarps = kIsSplit ? kGroups * kGroupWarps : 0;
  static constexpr int kMerges = (kMergeBarriers + kMergedWarps * kBarrierBytes + 15) / 16 * 16;
  static constexpr int kSharedBytes =
      kIsSplit ? kMerges + kMergedWarps * BlockMerge::kOtherBytes : kMergeBarriers;

  __device__ static int query_phase(uint32_t round) { return static_cast<int>(round / kQueryPlaces); }
  // What a descriptor takes of an address: not the rank that a block of a cluster has above it.
  __device__ static uint32_t operand(uint32_t address) { return kIsSplit ? address % (1u << 24) : address; }
};

struct HopperForwardParams {
  ForwardParams forward;
  TensorMap query, key, value, out;  // out: where rows are stored by copies
  uint32_t items;                    // of all blocks
  // Items are counted along the tiles of query rows, then heads, batch and V. With a band, heads (of the
  // whole batch and V) come in sections, the last of which may be smaller, and in a section items are counted
  // along the heads. Where two blocks share the keys all heads are one section.
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
  const uint32_t block = ptx::block_index() / Tiles::kBlocks, blocks = ptx::grid_size() / Tiles::kBlocks;
  uint32_t rest = round * blocks + (round % 2 == 0 ? block : blocks - 1 - block);
  Item<Tiles> item{};
  item.round = round;
  item.index = static_cast<uint32_t>(uniform(static_cast<int>(rest)));
  uint32_t tile;
  if constexpr (Tiles::kIsSplit) {
    uint32_t from_last = rest;
    rest = params.section.take_index(from_last);
    tile = params.tiles.divisor - 1 - from_last;
  } else if constexpr (Tiles::kHasBand) {
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
    end = uniform(max(count_tiles(keys_seen(problem, last_row).end, Tiles::kKeyRows), Tiles::kLeastTiles));
    num_tiles =
        uniform(max(end - keys_seen(problem, item.first.row).begin / Tiles::kKeyRows, Tiles::kLeastTiles));
  }
  if constexpr (Tiles::kIsSplit) {
    const int of_first = (num_tiles + 1) / 2;
    const bool is_first = ptx::block_index() % Tiles::kBlocks == 0;
    end = uniform(is_first ? end : end - of_first);
    num_tiles = uniform(is_first ? of_first : num_tiles - of_first);
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
    // Also where threads copy query rows: the kernel without was no faster (DECISIONS 38).
    for (int i = 0; i < Tiles::kQueryPlaces * Tiles::kGroups; ++i) ptx::init_barrier(query_barrier(i, 0), 1);
    keys.init();
    values.init();
    ptx::fence_barrier_init();
  }

  __device__ BlockMerge block_merge(int warp) const {
    // The warp's query rows have been read then, and give their place.
    return {sBegin_ + Tiles::kMerges + warp * BlockMerge::kOtherBytes, sBegin_ + warp * BlockMerge::kOwnBytes,
            sBegin_ + Tiles::kMergeBarriers + warp * kBarrierBytes, ptx::block_index() % Tiles::kBlocks};
  }
  __device__ uint32_t ones() const { return sBegin_ + Tiles::kOnes; }
  __device__ uint32_t zeros() const { return sBegin_ + Tiles::kZeros; }
  // Of a warpgroup, for the item of this round.
  __device__ uint32_t query_rows(int group, uint32_t round) const {
    return sBegin_ + query_place(group, round) * Tiles::kQueryBytes;
  }
  __device__ uint32_t query_barrier(int group, uint32_t round) const {
    return sBegin_ + Tiles::kQueryBarriers + query_place(group, round) * kBarrierBytes;
  }
  // The query rows of a warpgroup. One warp.
  __device__ void load_query(const Item<Tiles>& item, int group) const {
    Place at = place_in(problem().query, item.first);
    at.row += group * kGroupRows;
    if (ptx::is_elected()) {
      const uint32_t barrier = query_barrier(group, item.round);
      ptx::arrive_expecting(barrier, Tiles::kQueryBytes);
      load_rows<kGroupRows, Tiles::kColumns>(query_rows(group, item.round), params_.query, barrier, at);
    }
  }
  // The same by the threads of the warpgroup, each of which waits for its own.
  __device__ void copy_query(const Item<Tiles>& item, int group) const {
    static_assert(Tiles::kColumns == 1);
    Place head = place_in(problem().query, item.first);
    head.row = 0;
    copy_tile_async<kGroupRows, kBoxRowBytes, kGroupThreads>(
        query_rows(group, item.round), row_at<Tiles::kDType>(problem().query, head),
        problem().query.stride_row, item.first.row + group * kGroupRows,
        static_cast<int32_t>(problem().shape.T), static_cast<int32_t>(problem().shape.D),
        ptx::opaque(static_cast<int>(threadIdx.x)) % kGroupThreads);
    ptx::close_copy_group();
  }
  // The output of a warpgroup, from the place of its query rows. One warp.
  __device__ void store_output(const Item<Tiles>& item, int group) const {
    if (ptx::is_elected()) {
      const Place& at = item.first;
#pragma unroll
      for (int column = 0; column < Tiles::kColumns; ++column) {
        ptx::store_box(query_rows(group, item.round) + column * kGroupRows * kBoxRowBytes, &params_.out,
                       column * kBoxChannels, at.row + group * kGroupRows, at.head, at.b, at.v);
      }
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

  TileRing<Tiles, Tiles::kKeyStages> keys;
  TileRing<Tiles, Tiles::kValueStages> values;

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
  __device__ static uint32_t query_place(uint32_t group, uint32_t round) {
    return round % Tiles::kQueryPlaces * Tiles::kGroups + group;
  }
  __device__ const Problem& problem() const { return params_.forward.problem; }

  const HopperForwardParams& params_;
  uint32_t sBegin_;
};

}  // namespace dhp
