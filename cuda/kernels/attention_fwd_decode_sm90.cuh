// Forward attention of few query tokens over many keys, on compute capability 9.0: what decoding with a
// key/value cache does, which is to read the cache once, as fast as memory gives it.
//
// A block owns 16 query rows, of the tokens and heads that read one key/value head, and one of several parts
// of its keys. Each of its warps takes every fourth tile of the part and has a ring of places for tiles of
// its own, which it fills itself by tensor copies; no warp waits for another before all are done. Then the
// warps' shares of a row become one; where there are several parts, a second kernel makes those one
// (attention_fwd_combine_sm90.cuh).
//
// Constant time: parts and tiles are chosen by shapes and band. Lengths and masks choose scores by selects,
// and value rows past a length are replaced by zeros in registers, in every tile alike.

#pragma once

#include "device/band.cuh"
#include "device/divisor.cuh"
#include "device/packed_rows.cuh"
#include "device/product.cuh"
#include "device/row_part.cuh"
#include "device/softmax.cuh"
#include "device/tile_ring.cuh"
#include "device/warp.cuh"
#include "params.h"

namespace dhp {

template <typename Config>
struct DecodeTiles {
  static constexpr DType kDType = Config::kDType;
  static constexpr int kChannels = Config::kChannels;
  static constexpr int kRowBytes = Config::kRowBytes;
  static constexpr int kColumns = kChannels / kBoxChannels;  // of 64 channels
  static constexpr int kWarps = 4;
  static constexpr int kThreads = kWarps * kWarpLanes;
  static constexpr int kKeyRows = kChannels > 128 ? 16 : 32;  // of a tile
  static constexpr int kTileBytes = kKeyRows * kRowBytes;
  static constexpr int kColumnBytes = kKeyRows * kBoxRowBytes;
  static constexpr int kStages = 48 * 1024 / (2 * kTileBytes);  // a key and a value tile each
  static constexpr int kKeyTiles = kKeyRows / kMmaColumns;
  static constexpr int kDepth = kKeyRows / kMmaDepth<kDType>;
  static constexpr int kColumnTiles = kBoxChannels / kMmaColumns;
  static constexpr int kParts = kChannels / kPartChannels;  // of a row, one a thread

  // Query rows stay in registers where they leave enough of them to the sums.
  static constexpr bool kKeepsQuery = kChannels <= 128;

  // Shared memory of a warp, in bytes from its begin: places for tiles, query rows; in the end the share of
  // each row.
  static constexpr int kQuery = 2 * kStages * kTileBytes;
  static constexpr int kWarpBytes = kQuery + (kKeepsQuery ? 0 : kMmaRows * kRowBytes);
  static constexpr int kShareBytes = kChannels * 4 + 32;  // neighbouring rows in different banks
  static constexpr int kStatistics = kMmaRows * kShareBytes;
  static_assert(kStatistics + kMmaRows * 8 <= kWarpBytes);
  // Of the block.
  static constexpr int kBarriers = kWarps * kWarpBytes;
  static constexpr int kWarpBarriers = 2 * kStages * kBarrierBytes;
  static constexpr int kSharedBytes = kBarriers + kWarps * kWarpBarriers;
};

struct DecodeParams {
  ForwardParams forward;
  TensorMap key, value;
  Divisor row_blocks, heads, splits, batch;  // blocks are counted along these, then V
  Divisor group;
};

// The rows and the keys of a block.
template <typename Tiles>
struct DecodeItem {
  Place key_0;         // row 0 of the key/value head
  uint32_t first_row;  // packed, of the block
  int32_t split;       // which part of the keys
  int32_t num_splits;
  int32_t begin, end;  // its tiles

  __device__ explicit DecodeItem(const DecodeParams& params) {
    const Problem& problem = params.forward.problem;
    uint32_t rest = ptx::block_index();
    first_row = params.row_blocks.take_index(rest) * kMmaRows;
    key_0.head = params.heads.take_index(rest);
    split = params.splits.take_index(rest);
    key_0.b = params.batch.take_index(rest);
    key_0.v = rest;
    key_0.row = 0;
    // What the tokens of the block see, which is much the same: cut into parts of as many tiles, or one less.
    const int32_t last_token = static_cast<int32_t>(problem.shape.T) - 1;
    const int32_t from = packed_row(key_0, first_row, params.group).row;
    const int32_t to = min(packed_row(key_0, first_row + kMmaRows - 1, params.group).row, last_token);
    const int32_t first = keys_seen(problem, from).begin / Tiles::kKeyRows;
    const int32_t last = (keys_seen(problem, to).end + Tiles::kKeyRows - 1) / Tiles::kKeyRows;
    const uint32_t tiles = max(last - first, 0);
    num_splits = params.splits.divisor;
    begin = first + part_begin(tiles, split, params.splits);
    end = first + part_begin(tiles, split + 1, params.splits);
  }

 private:
  __device__ static int32_t part_begin(uint32_t tiles, uint32_t part, const Divisor& splits) {
    uint32_t each = tiles;
    const uint32_t longer = splits.take_index(each);  // so many parts have one more
    return part * each + min(part, longer);
  }
};

// The places of one warp for tiles. Of its n-th tile the keys have place 2 (n % kStages), the values the
// next.
template <typename Tiles>
class WarpRing {
 public:
  //   warp      of the block: takes tile item.begin + warp and every kWarps-th after it
  //   tiles     the places
  //   barriers  where each is waited for
  __device__ WarpRing(const DecodeParams& params, const DecodeItem<Tiles>& item, int warp, uint32_t tiles,
                      uint32_t barriers)
      : params_(params),
        key_0_(item.key_0),
        begin_(item.begin + warp),
        end_(item.end),
        tiles_(tiles),
        barriers_(barriers) {}

  __device__ void init() const {
    if (ptx::is_elected()) {
      for (int place = 0; place < 2 * Tiles::kStages; ++place) ptx::init_barrier(full(place), 1);
      ptx::fence_barrier_init();
    }
    __syncwarp();
  }

  // The first key of tile n.
  __device__ int32_t key(int n) const { return tile(n) * Tiles::kKeyRows; }
  __device__ bool has(int n) const { return tile(n) < end_; }

  // Start the copy of tile n, if there is one, into a place that the whole warp has read.
  __device__ void load_keys(int n) const {
    load(params_.key, params_.forward.problem.key, n, 2 * (n % Tiles::kStages));
  }
  __device__ void load_values(int n) const {
    load(params_.value, params_.forward.problem.value, n, 2 * (n % Tiles::kStages) + 1);
  }
  // Wait for tile n; its address.
  __device__ uint32_t take_keys(int n) const { return take(n, 2 * (n % Tiles::kStages)); }
  __device__ uint32_t take_values(int n) const { return take(n, 2 * (n % Tiles::kStages) + 1); }

 private:
  __device__ int32_t tile(int n) const { return begin_ + n * Tiles::kWarps; }
  __device__ uint32_t full(int place) const { return barriers_ + place * kBarrierBytes; }
  __device__ void load(const TensorMap& map, const InRows& rows, int n, int place) const {
    __syncwarp();  // what was there has been read
    if (has(n) && ptx::is_elected()) {
      Place at = place_in(rows, key_0_);
      at.row = key(n);
      ptx::arrive_expecting(full(place), Tiles::kTileBytes);
      load_rows<Tiles::kKeyRows, Tiles::kColumns>(tiles_ + place * Tiles::kTileBytes, map, full(place), at);
    }
  }
  __device__ uint32_t take(int n, int place) const {
    wait_for_phase(full(place), n / Tiles::kStages);
    return tiles_ + place * Tiles::kTileBytes;
  }

  const DecodeParams& params_;
  Place key_0_;
  int32_t begin_, end_;  // tiles
  uint32_t tiles_, barriers_;
};

// The warp's 16 query rows as left operands, from global memory. What lies past the last row or channel is 0.
template <typename Tiles>
class DecodeQuery {
 public:
  //   shared  of the warp, for what is not kept in registers
  __device__ DecodeQuery(const Problem& problem, const Place (&rows)[kStripRows], uint32_t shared)
      : shared_(shared + static_cast<int>(threadIdx.x) % kWarpLanes * kChunkBytes) {
    Fragment fragments[kSteps];
    // Each word is loaded, from the last token or the first channels where it does not exist: no branch
    // stands between one load and the next.
    const int lane_channel = static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
    for (int half = 0; half < kStripRows; ++half) {
      Place at = rows[half];
      at.row = min(at.row, static_cast<int32_t>(problem.shape.T) - 1);
      const bool exists = at.row == rows[half].row;
      const Element<Tiles::kDType>* const from = row_at<Tiles::kDType>(problem.query, at) + lane_channel;
#pragma unroll
      for (int i = 0; i < kSteps * 2; ++i) {
        const bool counts = i * kMmaColumns < problem.shape.D;
        const uint32_t word = *reinterpret_cast<const uint32_t*>(from + (counts ? i * kMmaColumns : 0));
        fragments[i / 2][i % 2 * 2 + half] = exists && counts ? word : 0;
      }
    }
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if constexpr (Tiles::kKeepsQuery) {
          kept_[k][i] = fragments[k][i];
        } else {
          ptx::store_shared(shared_ + k * kStepBytes + i * 4, fragments[k][i]);
        }
      }
    }
  }

  // scores = query . keys^T
  __device__ void multiply(Sums (&scores)[Tiles::kKeyTiles], uint32_t sKeys) const {
#pragma unroll
    for (Sums& sums : scores) {
#pragma unroll
      for (float& sum : sums) sum = 0.0f;
    }
    const uint32_t place = lane_in_columns<kBoxRowBytes>(sKeys);
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      Fragment fragment;
      get(fragment, k);
      const Operand<Tiles::kDType> rows = as_operand<Tiles::kDType>(fragment);
      const uint32_t column = place + k / kColumnSteps * Tiles::kColumnBytes;
#pragma unroll
      for (int tile = 0; tile < Tiles::kKeyTiles; tile += 2) {
        Fragment keys;
        ptx::load_matrices(keys, fragment_at<kBoxRowBytes>(column, tile * kMmaColumns, k % kColumnSteps));
        const Operand<Tiles::kDType> columns = as_operand<Tiles::kDType>(keys);
        multiply_add<Tiles::kDType>(scores[tile], rows, columns, 0);
        multiply_add<Tiles::kDType>(scores[tile + 1], rows, columns, 1);
      }
    }
  }

 private:
  static constexpr int kSteps = Tiles::kRowBytes / kMmaDepthBytes;
  static constexpr int kColumnSteps = kBoxRowBytes / kMmaDepthBytes;
  static constexpr int kStepBytes = kWarpLanes * kChunkBytes;

  __device__ void get(Fragment& fragment, int k) const {
    if constexpr (Tiles::kKeepsQuery) {
#pragma unroll
      for (int i = 0; i < 4; ++i) fragment[i] = kept_[k][i];
    } else {
      const uint4 words = ptx::load_shared_4(shared_ + k * kStepBytes);
      fragment[0] = words.x, fragment[1] = words.y, fragment[2] = words.z, fragment[3] = words.w;
    }
  }

  uint32_t shared_;  // the lane's part, if not kept
  Fragment kept_[Tiles::kKeepsQuery ? kSteps : 1];
};

// Attention of the block's rows over the tiles of one warp, from the first to the last. In the end its share
// of each row stands in the warp's shared memory.
template <typename Tiles>
__device__ void attend_warp(const Problem& problem, const Place (&rows)[kStripRows],
                            const WarpRing<Tiles>& ring, uint32_t sWarp) {
  constexpr DType kDType = Tiles::kDType;
  const DecodeQuery<Tiles> query(problem, rows, sWarp + Tiles::kQuery);
  const PackedScores<kDType, Tiles::kKeyTiles> packed(problem, rows);
  OnlineSoftmax softmax;
  StripSums<1, Tiles::kColumnTiles> out[Tiles::kColumns] = {};
  for (int n = 0; at_head(ring.has(n)); ++n) {
    Sums scores[Tiles::kKeyTiles];
    query.multiply(scores, ring.take_keys(n));
    ring.load_keys(n + Tiles::kStages);
    packed.finish(scores, ring.key(n));
    float rescale[kStripRows];
    softmax.take(scores, kLog2E, rescale);
    StripFragments<kDType, 1, Tiles::kKeyTiles> p;
    round_strip<kDType>(p[0], scores);
    const uint32_t sValues = ring.take_values(n);
#pragma unroll
    for (int column = 0; column < Tiles::kColumns; ++column) {
#pragma unroll
      for (Sums& sums : out[column][0]) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[i] *= rescale[i / 2];
      }
      add_weighted_rows<kDType>(out[column], p, sValues + column * Tiles::kColumnBytes,
                                [&](int k) { return packed.real_columns(ring.key(n), k); });
    }
    ring.load_values(n + Tiles::kStages);
  }

  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
#pragma unroll
  for (int half = 0; half < kStripRows; ++half) {
    const int row = lane / 4 + half * 8;
    const float sum = quad_sum(softmax.sum[half]);
    if (lane % 4 == 0) {
      ptx::store_shared_2(sWarp + Tiles::kStatistics + row * 8, {softmax.max[half], sum});
    }
#pragma unroll
    for (int tile = 0; tile < Tiles::kColumns * Tiles::kColumnTiles; ++tile) {
      const Sums& sums = out[tile / Tiles::kColumnTiles][0][tile % Tiles::kColumnTiles];
      ptx::store_shared_2(sWarp + row * Tiles::kShareBytes + (tile * kMmaColumns + lane % 4 * 2) * 4,
                          {sums[2 * half], sums[2 * half + 1]});
    }
  }
}

// The warps' shares of the block's rows become one, which is written: to the results or, where there are
// several parts, to the workspace.
template <typename Tiles>
__device__ void join_warps(const DecodeParams& params, uint32_t sShares) {
  const DecodeItem<Tiles> item(params);  // computed again rather than kept in the registers of the loop
  const ForwardParams& forward = params.forward;
  const Shape& shape = forward.problem.shape;
  const int64_t num_rows = shape.V * shape.B * shape.T * shape.N;
  for (int i = static_cast<int>(threadIdx.x); i < kMmaRows * Tiles::kParts; i += Tiles::kThreads) {
    const int row = i / Tiles::kParts, channel = i % Tiles::kParts * kPartChannels;
    const Place at = packed_row(item.key_0, item.first_row + row, params.group);
    if (at.row >= shape.T || channel >= shape.D) continue;
    RowPart parts[Tiles::kWarps];
#pragma unroll
    for (int warp = 0; warp < Tiles::kWarps; ++warp) {
      const uint32_t sShare = sShares + warp * Tiles::kWarpBytes;
      const float2 statistics = ptx::load_shared_2(sShare + Tiles::kStatistics + row * 8);
      const uint4 out = ptx::load_shared_4(sShare + row * Tiles::kShareBytes + channel * 4);
      parts[warp] = {
          statistics.x,
          statistics.y,
          {__uint_as_float(out.x), __uint_as_float(out.y), __uint_as_float(out.z), __uint_as_float(out.w)}};
    }
    const RowPart all = join(parts);
    const int64_t index = statistic_index(shape, at);
    if (item.num_splits == 1) {
      store_row<Tiles::kDType>(forward.out, forward.row_max, forward.log_sum, at, index, channel, all);
    } else {
      store_part(PartialRows{forward.workspace, num_rows * item.num_splits, static_cast<int32_t>(shape.D)},
                 item.split * num_rows + index, channel, all);
    }
  }
}

// Grid: one block for each 16 packed rows of a key/value head and each part of its keys.
template <typename Config>
__global__ void __launch_bounds__(DecodeTiles<Config>::kThreads, 1)
    attention_fwd_decode_sm90(const __grid_constant__ DecodeParams params) {
  using Tiles = DecodeTiles<Config>;
  extern __shared__ __align__(kBoxAlignment) unsigned char sMemory[];
  const uint32_t sBegin = ptx::shared_address(sMemory);
  const int warp = warp_of_block();
  const uint32_t sWarp = sBegin + warp * Tiles::kWarpBytes;

  const DecodeItem<Tiles> item(params);
  const WarpRing<Tiles> ring(params, item, warp, sWarp,
                             sBegin + Tiles::kBarriers + warp * Tiles::kWarpBarriers);
  ring.init();
  ptx::wait_for_launch_before();
  for (int n = 0; n < Tiles::kStages; ++n) {
    ring.load_keys(n);
    ring.load_values(n);
  }
  const int lane_row = static_cast<int>(threadIdx.x) % kWarpLanes / 4;
  const Place rows[kStripRows] = {packed_row(item.key_0, item.first_row + lane_row, params.group),
                                  packed_row(item.key_0, item.first_row + lane_row + 8, params.group)};
  attend_warp(params.forward.problem, rows, ring, sWarp);
  ptx::let_next_launch_start();
  __syncthreads();
  join_warps<Tiles>(params, sBegin);
}

}  // namespace dhp
