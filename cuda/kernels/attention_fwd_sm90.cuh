// Forward attention on the tensor cores of Hopper (wgmma), with tensor copies.
//
// A block owns kQueryRows query rows of one head, each warpgroup 64 of them. Key and value tiles come through a
// ring of kStages places each; one thread of the last warpgroup starts the copies, between its products. For
// each tile, from the last that is seen to the first, a warpgroup does
//
//   1  scores = query . key                              wgmma
//   2  running maximum; P = exp2(c score - reference), rounded to the operands' dtype, and between these
//      out *= rescale
//   3  out += P . value                                  wgmma
//
// and the products of one run beside the softmax of the others. With 64 channels P is also multiplied by a
// column of ones, so that the product has the sum of a row too.
//
// Who waits for whom: a copy announces its bytes to the barrier `full` of its place, at which all threads wait
// before they read; one thread of each warpgroup arrives at `empty` when its warpgroup has read, and the copying
// thread waits there before it fills the place again.
//
// Constant time: tiles are chosen by the band alone, and the rescale runs on every tile.

#pragma once

#include "device/band.cuh"
#include "device/fused_softmax.cuh"
#include "device/rows.cuh"
#include "device/score_tile.cuh"
#include "device/wgmma.cuh"
#include "params.h"

namespace dhp {

template <typename Config>
struct HopperForwardTiles {
  static constexpr DType kDType = Config::kDType;
  static constexpr int kChannels = Config::kChannels;
  static constexpr int kRowBytes = Config::kRowBytes;
  static constexpr int kColumns = kChannels / kBoxChannels;  // of 64 channels
  // As many as the registers of an SM allow.
  static constexpr int kGroups = kChannels == 64 ? 4 : kChannels == 128 ? 3 : 2;
  static constexpr int kThreads = kGroups * kGroupThreads;
  static constexpr int kQueryRows = kGroups * kGroupRows;
  static constexpr int kKeyRows = kChannels == 256 ? 80 : 128;
  static constexpr int kStages = kChannels == 64 ? 4 : 2;
  static constexpr int kAhead = kStages / 2;  // tiles between the copy of one and its use
  static constexpr int kKeyTiles = kKeyRows / kMmaColumns;
  static constexpr int kDepth = kKeyRows / kMmaDepth<kDType>;
  static constexpr int kChannelTiles = kChannels / kMmaColumns;
  static constexpr bool kHasOnes = kChannels == 64;
  static constexpr int kOutTiles = kChannelTiles + (kHasOnes ? 1 : 0);

  // Shared memory, in bytes from its begin.
  static constexpr int kQueryBytes = kGroupRows * kRowBytes;  // of one warpgroup
  static constexpr int kTileBytes = kKeyRows * kRowBytes;
  static constexpr int kColumnBytes = kKeyRows * kBoxRowBytes;
  static constexpr int kKeys = kGroups * kQueryBytes;
  static constexpr int kValues = kKeys + kStages * kTileBytes;
  static constexpr int kOnes = kValues + kStages * kTileBytes;
  static constexpr int kOnesBytes = kHasOnes ? kMmaRows * kBoxRowBytes : 0;
  static constexpr int kBarriers = kOnes + kOnesBytes;
  static constexpr int kBarrierBytes = 8;
  static constexpr int kNumBarriers = kGroups + 4 * kStages;
  static constexpr int kSharedBytes = kBarriers + kNumBarriers * kBarrierBytes;
};

struct HopperForwardParams {
  ForwardParams forward;
  TensorMap query, key, value, out;
};

// The places of key or of value tiles.
template <typename Tiles>
class TileRing {
 public:
  //   tiles     the places
  //   barriers  a full one for each place, then an empty one
  __device__ TileRing(uint32_t tiles, uint32_t barriers) : tiles_(tiles), barriers_(barriers) {}

  __device__ void init() const {
    for (int place = 0; place < Tiles::kStages; ++place) {
      ptx::init_barrier(full(place), 1);
      ptx::init_barrier(full(place) + kToEmpty, Tiles::kGroups);
    }
  }

  // Starts the copy of the i-th tile of the walk, whose first row is `at`, when its place is empty. One thread.
  __device__ void load(const TensorMap& map, int i, const Place& at) const {
    const int place = i % Tiles::kStages;
    if (i >= Tiles::kStages) wait(full(place) + kToEmpty, i / Tiles::kStages + 1);
    ptx::arrive_expecting(full(place), Tiles::kTileBytes);
#pragma unroll
    for (int column = 0; column < Tiles::kColumns; ++column) {
      ptx::load_box(tiles_ + place * Tiles::kTileBytes + column * Tiles::kColumnBytes, &map, full(place),
                    column * kBoxChannels, at.row, at.head, at.b, at.v);
    }
  }
  // Waits for the i-th tile; its address.
  __device__ uint32_t take(int i) const {
    wait(full(i % Tiles::kStages), i / Tiles::kStages);
    return tiles_ + i % Tiles::kStages * Tiles::kTileBytes;
  }
  // The i-th tile has been read. One thread of each warpgroup.
  __device__ void release(int i) const { ptx::arrive(full(i % Tiles::kStages) + kToEmpty); }

  // Waits for the phase of this number.
  __device__ static void wait(uint32_t barrier, int phase) {
    while (!ptx::is_over(barrier, phase & 1)) {
    }
  }

 private:
  static constexpr uint32_t kToEmpty = Tiles::kStages * Tiles::kBarrierBytes;
  __device__ uint32_t full(int place) const { return barriers_ + place * Tiles::kBarrierBytes; }

  uint32_t tiles_, barriers_;
};

// The first query row of the block and its head. Heads are taken in sections whose keys and values stay in the
// cache; in a section, those rows that see most come first, all heads beside each other.
template <typename Tiles>
__device__ Place query_rows_of_block(const Problem& problem) {
  constexpr int kSection = 16;
  const Shape& shape = problem.shape;
  const int tiles = static_cast<int>((shape.T + Tiles::kQueryRows - 1) / Tiles::kQueryRows);
  uint32_t rest = ptx::block_index();
  int32_t tile, flat;
  if (problem.band.right < shape.S - 1) {
    const uint32_t heads = static_cast<uint32_t>(shape.V * shape.B * shape.N);
    const uint32_t section = rest / (kSection * tiles);
    const uint32_t size = min(heads - section * kSection, kSection);
    rest -= section * kSection * tiles;
    tile = tiles - 1 - static_cast<int>(rest / size);
    flat = section * kSection + rest % size;
  } else {
    tile = rest % tiles;
    flat = rest / tiles;
  }
  uint32_t heads = flat;
  const int32_t head = take_index(heads, shape.N);
  const int32_t b = take_index(heads, shape.B);
  return {static_cast<int32_t>(heads), b, tile * Tiles::kQueryRows, head};
}

// Coordinates of the V and B axes in a tensor that may repeat along them.
template <typename Pointer>
__device__ Place place_in(const HeadRows<Pointer>& rows, Place at) {
  at.v = rows.stride_v == 0 ? 0 : at.v;
  at.b = rows.stride_b == 0 ? 0 : at.b;
  return at;
}

template <typename Tiles>
__device__ void fill_with_ones(uint32_t ones) {
  const uint32_t one = pack<Tiles::kDType>(1.0f, 1.0f);
  for (int i = threadIdx.x; i < Tiles::kOnesBytes / 4; i += Tiles::kThreads) ptx::store_shared(ones + 4 * i, one);
  ptx::fence_stores();
}

// Scores to P, and earlier results to those of the new reference. The multiplications of `out` stand between
// the exponentials, whose unit is the slower one.
template <typename Tiles>
__device__ void weigh(Fragment (&p)[Tiles::kDepth], Sums (&scores)[Tiles::kKeyTiles],
                      Sums (&out)[Tiles::kOutTiles], FusedSoftmax& softmax,
                      const float (&factors)[kStripRows], const float (&rescale)[kStripRows]) {
  float tile_sum[kStripRows] = {};
#pragma unroll
  for (int k = 0; k < Tiles::kDepth; ++k) {
#pragma unroll
    for (int tile = 2 * k; tile < 2 * k + 2; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& score = scores[tile][i];
        score = ct_exp2(fmaf(score, factors[i / 2], -softmax.reference[i / 2]));
        if constexpr (!Tiles::kHasOnes) tile_sum[i / 2] += score;
      }
    }
    as_left_fragment<Tiles::kDType>(p[k], scores, k);
#pragma unroll
    for (int tile = k * Tiles::kOutTiles / Tiles::kDepth; tile < (k + 1) * Tiles::kOutTiles / Tiles::kDepth;
         ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) out[tile][i] *= rescale[i / 2];
    }
  }
  if constexpr (!Tiles::kHasOnes) {
#pragma unroll
    for (int row = 0; row < kStripRows; ++row) {
      softmax.sum[row] = fmaf(softmax.sum[row], rescale[row], tile_sum[row]);
    }
  }
}

// out += P . value. The column of ones is the second 64 columns of every step: it stands in one place, so the
// distance to it shrinks as the rows go on.
template <typename Tiles>
__device__ void start_values(Sums (&out)[Tiles::kOutTiles], const Fragment (&p)[Tiles::kDepth], uint32_t sValues,
                             uint32_t sOnes) {
  constexpr uint32_t kRows = kMmaRows * kBoxRowBytes / SharedOperand::kUnit;
  constexpr uint32_t kStep = Tiles::kHasOnes ? kRows - (kRows << 16) : kRows;
  const uint32_t next = Tiles::kHasOnes ? sOnes - sValues : Tiles::kColumnBytes;
  start_weighted_rows<Tiles::kDType, kStep>(out, p, SharedOperand::by_columns(sValues, next));
}

// Writes the rows of a warpgroup, by way of the place of its query rows.
template <typename Tiles>
__device__ void store_group(const HopperForwardParams& params, const Sums (&out)[Tiles::kOutTiles],
                            const FusedSoftmax& softmax, uint32_t sRows, Place at) {
  const Problem& problem = params.forward.problem;
  const Shape& shape = problem.shape;
  const int group = static_cast<int>(threadIdx.x) / kGroupThreads;
  const int row_0 = static_cast<int>(threadIdx.x) % kGroupThreads / kWarpLanes * kMmaRows +
                    static_cast<int>(threadIdx.x) % kWarpLanes / 4;
  ptx::meet<kGroupThreads>(1 + group);  // all four warps have read the query rows
#pragma unroll
  for (int half = 0; half < kStripRows; ++half) {
    const int row = row_0 + half * 8;
    float sum;
    if constexpr (Tiles::kHasOnes) {
      sum = out[Tiles::kChannelTiles][2 * half];
    } else {
      sum = quad_sum(softmax.sum[half]);
    }
    const CtMask is_empty = ct_equal(sum, 0.0f);  // no key took part, or all that did scored -inf
    const float factor = ct_reciprocal(sum);
    const Place place{at.v, at.b, at.row + row, at.head};
    if (threadIdx.x % 4 == 0 && place.row < shape.T) {
      constexpr float kLn2 = 0.6931471805599453f;
      const int64_t index = statistic_index(shape, place);
      params.forward.row_max[index] = fmaxf(softmax.max[half] * problem.scale, -FLT_MAX);
      params.forward.log_sum[index] =
          ct_select(is_empty, -INFINITY, kLn2 * softmax.log2_sum(half, sum, problem.scale * kLog2E));
    }
#pragma unroll
    for (int tile = 0; tile < Tiles::kChannelTiles; ++tile) {
      const uint32_t column = sRows + tile / 8 * (kGroupRows * kBoxRowBytes);
      const float left = ct_keep(~is_empty, factor * out[tile][2 * half]);
      const float right = ct_keep(~is_empty, factor * out[tile][2 * half + 1]);
      ptx::store_shared(chunk_at<kBoxRowBytes>(column, row, tile % 8) + threadIdx.x % 4 * 4,
                        pack<Tiles::kDType>(left, right));
    }
  }
  ptx::fence_stores();
  ptx::meet<kGroupThreads>(1 + group);
  if (threadIdx.x % kGroupThreads == 0) {
#pragma unroll
    for (int column = 0; column < Tiles::kColumns; ++column) {
      ptx::store_box(sRows + column * kGroupRows * kBoxRowBytes, &params.out, column * kBoxChannels, at.row,
                     at.head, at.b, at.v);
    }
    ptx::wait_for_stores();
  }
}

// Grid: one block for each kQueryRows query rows of a head.
template <typename Config>
__global__ void __launch_bounds__(HopperForwardTiles<Config>::kThreads, 1)
    attention_fwd_sm90(const __grid_constant__ HopperForwardParams params) {
  using Tiles = HopperForwardTiles<Config>;
  constexpr DType kDType = Tiles::kDType;
  extern __shared__ __align__(kBoxAlignment) unsigned char sMemory[];
  const uint32_t sBegin = ptx::shared_address(sMemory);
  const Problem& problem = params.forward.problem;
  const Shape& shape = problem.shape;
  const int group = static_cast<int>(threadIdx.x) / kGroupThreads;
  const bool is_first_of_group = threadIdx.x % kGroupThreads == 0;
  const bool copies = threadIdx.x == (Tiles::kGroups - 1) * kGroupThreads;  // the last group sees most keys

  const uint32_t sBarriers = sBegin + Tiles::kBarriers;
  const TileRing<Tiles> keys(sBegin + Tiles::kKeys, sBarriers + Tiles::kGroups * Tiles::kBarrierBytes);
  const TileRing<Tiles> values(sBegin + Tiles::kValues,
                               sBarriers + (Tiles::kGroups + 2 * Tiles::kStages) * Tiles::kBarrierBytes);
  const Place first = query_rows_of_block<Tiles>(problem);
  const int32_t last_row = min(first.row + Tiles::kQueryRows, static_cast<int32_t>(shape.T)) - 1;
  const int begin = keys_seen(problem, first.row).begin / Tiles::kKeyRows;
  const int end = (keys_seen(problem, last_row).end + Tiles::kKeyRows - 1) / Tiles::kKeyRows;
  const int num_tiles = max(end - begin, 0);
  const Place head_of_keys{first.v, first.b, 0, key_value_head(shape, first.head)};
  const auto load_keys = [&](int i) {
    Place at = place_in(problem.key, head_of_keys);
    at.row = (end - 1 - i) * Tiles::kKeyRows;
    keys.load(params.key, i, at);
  };
  const auto load_values = [&](int i) {
    Place at = place_in(problem.value, head_of_keys);
    at.row = (end - 1 - i) * Tiles::kKeyRows;
    values.load(params.value, i, at);
  };

  if constexpr (Tiles::kHasOnes) fill_with_ones<Tiles>(sBegin + Tiles::kOnes);
  if (copies) {
    for (int i = 0; i < Tiles::kGroups; ++i) ptx::init_barrier(sBarriers + i * Tiles::kBarrierBytes, 1);
    keys.init();
    values.init();
    ptx::fence_barrier_init();
  }
  __syncthreads();
  if (copies) {
    const Place at = place_in(problem.query, first);
    for (int i = 0; i < Tiles::kGroups; ++i) {
      const uint32_t barrier = sBarriers + i * Tiles::kBarrierBytes;
      ptx::arrive_expecting(barrier, Tiles::kQueryBytes);
#pragma unroll
      for (int column = 0; column < Tiles::kColumns; ++column) {
        ptx::load_box(sBegin + i * Tiles::kQueryBytes + column * kGroupRows * kBoxRowBytes, &params.query, barrier,
                      column * kBoxChannels, at.row + i * kGroupRows, at.head, at.b, at.v);
      }
    }
    for (int i = 0; i < min(Tiles::kAhead, num_tiles); ++i) {
      load_keys(i);
      load_values(i);
    }
  }
  __syncwarp();

  // What this warpgroup sees.
  const int32_t group_row = first.row + group * kGroupRows;
  const int32_t group_last = min(group_row + kGroupRows, static_cast<int32_t>(shape.T)) - 1;
  const bool has_rows = group_row < shape.T;
  const int32_t seen_begin = keys_seen(problem, group_row).begin;
  const int32_t seen_end = has_rows ? keys_seen(problem, group_last).end : 0;
  Place warp = first;
  warp.row = group_row + static_cast<int>(threadIdx.x) % kGroupThreads / kWarpLanes * kMmaRows;

  const ScoreTile<Config, Rows::kQueries, 1, Tiles::kKeyTiles> score_tile(problem, warp);
  const float exponent_scale = problem.scale * kLog2E;
  const SharedOperand query = SharedOperand::by_rows(sBegin + group * Tiles::kQueryBytes);
  FusedSoftmax softmax(exponent_scale);
  Sums out[Tiles::kOutTiles] = {};
  TileRing<Tiles>::wait(sBarriers + group * Tiles::kBarrierBytes, 0);

  for (int i = 0; at_head(i < num_tiles); ++i) {
    const int32_t key = (end - 1 - i) * Tiles::kKeyRows;
    const bool refills = copies & (i + Tiles::kAhead < num_tiles);
    const uint32_t sKeys = keys.take(i);
    if ((key < seen_end) & (key + Tiles::kKeyRows > seen_begin)) {
      StripSums<1, Tiles::kKeyTiles> scores;
      ptx::fence_products();
      start_rows_by_rows<kDType, Tiles::kChannels, kGroupRows>(scores[0], query, SharedOperand::by_rows(sKeys));
      if (refills) load_keys(i + Tiles::kAhead);
      __syncwarp();
      finish_products(scores[0]);
      if (is_first_of_group) keys.release(i);
      score_tile.finish_but_scale(scores, key);
      float factors[kStripRows], rescale[kStripRows];
      softmax.take_max(scores[0], exponent_scale, factors, rescale);
      Fragment p[Tiles::kDepth];
      weigh<Tiles>(p, scores[0], out, softmax, factors, rescale);
      if (refills) load_values(i + Tiles::kAhead);
      __syncwarp();
      const uint32_t sValues = values.take(i);
      ptx::fence_products();
      start_values<Tiles>(out, p, sValues, sBegin + Tiles::kOnes);
      finish_products(out);
    } else {
      if (refills) load_keys(i + Tiles::kAhead);
      __syncwarp();
      if (is_first_of_group) keys.release(i);
      if (refills) load_values(i + Tiles::kAhead);
      __syncwarp();
      values.take(i);
    }
    if (is_first_of_group) values.release(i);
  }
  if (has_rows) {
    Place rows = query_rows_of_block<Tiles>(problem);  // computed again rather than kept
    rows.row += group * kGroupRows;
    store_group<Tiles>(params, out, softmax, sBegin + group * Tiles::kQueryBytes, rows);
  }
}

}  // namespace dhp
