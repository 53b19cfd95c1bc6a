#include "launch/launch_sm90.h"

#include <algorithm>
#include <cstdint>

#include "device/hidden_keys.cuh"
#include "kernels/attention_fwd_mask_bits.cuh"
#include "kernels/attention_fwd_real_rows.cuh"
#include "kernels/attention_fwd_sm90.cuh"
#include "launch/checks.h"
#include "launch/config.h"
#include "launch/grid.h"
#include "launch/tensor_map.h"
#include "launch/workspace.h"

namespace dhp {
namespace {

template <typename Config>
LaunchStatus launch_fwd(const char* stem, const ForwardParams& params, void* stream) {
  using Tiles = HopperForwardTiles<Config>;
  const Problem& problem = params.problem;
  const Shape& shape = problem.shape;
  if (shape.V * shape.B * shape.T * shape.N * shape.D == 0) return {};
  HopperForwardParams all{};
  all.forward = params;
  std::string broken;
  const auto describe_rows = [&](TensorMap& map, const auto& rows, int64_t positions, int64_t heads,
                                 int box) {
    if (broken.empty()) {
      broken =
          encode_tensor_map(map, rows, {shape.D, positions, heads, shape.B, shape.V}, problem.dtype, box);
    }
  };
  describe_rows(all.query, problem.query, shape.T, shape.N, kGroupRows);
  describe_rows(all.key, problem.key, shape.S, shape.K, Tiles::kKeyRows);
  describe_rows(all.value, problem.value, shape.S, shape.K, Tiles::kKeyRows);
  if constexpr (Tiles::kStoresByCopy) describe_rows(all.out, params.out, shape.T, shape.N, kGroupRows);
  if (!broken.empty()) return failure(stem, problem, broken);
  Grid grid = query_grid<Tiles>(shape);
  all.items = static_cast<uint32_t>(std::max<int64_t>(grid.blocks, 0));
  grid.cluster = Tiles::kBlocks;
  grid.waits_itself = true;
  grid.blocks = Tiles::kIsSplit ? grid.blocks * Tiles::kBlocks
                                : std::min<int64_t>(grid.blocks, count_multiprocessors());
  // A quarter as many heads as blocks: where the tiles are a multiple of 8, a section then fills an even
  // number of rounds, in which all blocks have the same to do.
  const int64_t tiles = divide_up(shape.T, Tiles::kQueryRows), heads = shape.V * shape.B * shape.N;
  const int64_t section = std::clamp<int64_t>(grid.blocks / 4, 1, heads);
  all.tiles = Divisor::of(tiles);
  all.heads = Divisor::of(shape.N);
  all.batch = Divisor::of(shape.B);
  all.heads_of_keys_group = Divisor::of(shape.N / shape.K);
  all.section_items = Divisor::of(section * tiles);
  all.section = Divisor::of(Tiles::kIsSplit ? heads : section);
  all.last_section = Divisor::of((heads - 1) % section + 1);
  return launch<attention_fwd_sm90<Config>>(stem, problem, all, grid, stream);
}

// Key and value as the lengths leave them, in the workspace; params then reads those.
template <DType dtype>
LaunchStatus launch_real_rows(const char* stem, ForwardParams& params, void* stream) {
  using Tiles = RealRowsTiles;
  Problem& problem = params.problem;
  const Shape& shape = problem.shape;
  if (shape.V * shape.B * shape.T * shape.N * shape.D == 0) return {};
  RealRowsParams rows{};
  const WorkspaceFacts facts = workspace_facts(problem);
  rows.shape = shape;
  rows.shape.V = facts.maps_keys ? shape.V : 1;
  rows.key = problem.key;
  rows.value = problem.value;
  rows.lengths = problem.key_value_lengths;
  const int64_t bytes = real_rows_bytes(facts);
  unsigned char* const copies = reinterpret_cast<unsigned char*>(params.workspace);
  rows.real_key = reinterpret_cast<uint4*>(copies);
  rows.real_value = reinterpret_cast<uint4*>(copies + bytes);
  const int64_t row_chunks = shape.K * shape.D / Tiles::kChunkElements;
  const int64_t blocks = divide_up(divide_up(shape.S, Tiles::kRows) * row_chunks, Tiles::kThreads);
  rows.blocks = Divisor::of(blocks);
  rows.batch = Divisor::of(shape.B);
  rows.row_chunks = Divisor::of(row_chunks);
  const Grid grid{count_blocks({rows.shape.V, shape.B, blocks}), Tiles::kThreads};
  const int64_t row = shape.K * shape.D, sequence = shape.S * row;
  const int64_t stride_v = rows.shape.V > 1 ? shape.B * sequence : 0, stride_b = shape.B > 1 ? sequence : 0;
  problem.key = {rows.real_key, stride_v, stride_b, row, shape.D};
  problem.value = {rows.real_value, stride_v, stride_b, row, shape.D};
  return launch<attention_fwd_real_rows<dtype>>(stem, problem, rows, grid, stream);
}

// The bits of the mask, in the workspace behind what the true lengths need; problem.mask then has those, in
// words: along its last axis whole tiles.
template <DType dtype>
LaunchStatus launch_mask_bits(const char* stem, const ForwardParams& params, ScorePlane<const uint8_t*>& mask,
                              void* stream) {
  using Tiles = MaskBitsTiles;
  const Problem& problem = params.problem;
  MaskBitsParams all{};
  all.shape = problem.shape;
  if (all.shape.V * all.shape.B * all.shape.T * all.shape.N * all.shape.D == 0) return {};
  const WorkspaceFacts facts = workspace_facts(problem);
  all.shape.V = facts.mask.V;
  all.shape.B = facts.mask.B;
  all.shape.N = facts.mask.N;
  all.shape.T = facts.mask.T;
  all.mask = problem.mask;
  all.bits = reinterpret_cast<uint32_t*>(params.workspace);
  if (needs_real_rows(facts)) all.bits += 2 * real_rows_bytes(facts) / static_cast<int64_t>(sizeof(uint32_t));
  const Shape& shape = all.shape;
  all.tile_keys = static_cast<int32_t>(mask_tile_keys(shape.D));
  const int64_t strides = mask.stride_v | mask.stride_b | mask.stride_n | mask.stride_t | shape.S |
                          reinterpret_cast<intptr_t>(mask.data);
  all.is_in_chunks = mask.stride_s == 1 && strides % Tiles::kChunk == 0;
  const int64_t tiles = mask_tiles(shape), row_blocks = divide_up(shape.T, Tiles::kRows);
  all.tiles = Divisor::of(tiles);
  all.row_blocks = Divisor::of(row_blocks);
  all.heads = Divisor::of(shape.N);
  all.batch = Divisor::of(shape.B);
  const int64_t plane = mask_words(shape, shape.T);
  mask = {reinterpret_cast<const uint8_t*>(all.bits),
          shape.V > 1 ? shape.B * shape.N * plane : 0,
          shape.B > 1 ? shape.N * plane : 0,
          shape.N > 1 ? plane : 0,
          shape.T > 1 ? 4 : 0,
          4 * shape.T};
  const Grid grid{count_blocks({shape.V, shape.B, shape.N, row_blocks, tiles}), Tiles::kThreads};
  return launch<attention_fwd_mask_bits<dtype>>(stem, problem, all, grid, stream);
}

constexpr int kFewKeys = 2048;  // at most: the smaller tiles are faster, DECISIONS 20

// Where two blocks for each item still have a multiprocessor to themselves each, and keys.
bool prefers_split(const Shape& shape) {
  using Tiles = HopperForwardTiles<SplitHopperConfig<DType::kBFloat16, 64, false>>;  // in size as all of them
  const Grid grid = query_grid<Tiles>(shape);
  return shape.S > Tiles::kKeyRows && grid.blocks >= 0 &&
         grid.blocks * Tiles::kBlocks <= count_multiprocessors();
}

template <DType dtype, bool has_band>
LaunchStatus launch_split(const char* stem, const ForwardParams& params, void* stream) {
  return launch_fwd<SplitHopperConfig<dtype, 64, has_band>>(stem, params, stream);
}

template <DType dtype, int channels, Scores scores>
LaunchStatus launch_band(const char* stem, const ForwardParams& params, void* stream) {
  if constexpr (channels == 64 && scores == Scores::kPlain) {
    if (prefers_split(params.problem.shape)) {
      return has_band(params.problem) ? launch_split<dtype, true>(stem, params, stream)
                                      : launch_split<dtype, false>(stem, params, stream);
    }
  }
  constexpr bool always_has_band = scores == Scores::kOperands || scores == Scores::kMask;
  if (always_has_band || has_band(params.problem)) {
    using Config = HopperConfig<dtype, channels, scores, true>;
    static_assert(scores != Scores::kMask ||
                  HopperForwardTiles<Config>::kKeyRows == mask_tile_keys(channels));
    return launch_fwd<Config>(stem, params, stream);
  }
  if constexpr (!always_has_band) {
    if constexpr (channels == 96 || channels == 128) {
      if (params.problem.shape.S <= kFewKeys) {
        return launch_fwd<HopperConfig<dtype, channels, scores, false, true>>(stem, params, stream);
      }
    }
    return launch_fwd<HopperConfig<dtype, channels, scores, false>>(stem, params, stream);
  }
}

template <DType dtype, Scores scores>
LaunchStatus launch_channels(const char* stem, const ForwardParams& params, void* stream) {
  if (params.problem.shape.D <= 64) return launch_band<dtype, 64, scores>(stem, params, stream);
  if constexpr (scores == Scores::kPlain) {
    if (params.problem.shape.D > 64 && params.problem.shape.D <= 96) {
      return launch_band<dtype, 96, scores>(stem, params, stream);
    }
    if (params.problem.shape.D > 128 && params.problem.shape.D <= 192) {
      return launch_band<dtype, 192, scores>(stem, params, stream);
    }
  }
  if (params.problem.shape.D <= 128) return launch_band<dtype, 128, scores>(stem, params, stream);
  return launch_band<dtype, 256, scores>(stem, params, stream);
}

// Past a true length key 0 stands in for the others: it must be one that every row sees which sees any.
bool are_lengths_alone(const Problem& problem) {
  return problem.bias.data == nullptr && problem.mask.data == nullptr && problem.scale > 0 &&
         (problem.key_value_lengths.data == nullptr ||
          (problem.band.left >= problem.shape.T - 1 && problem.shape.S <= kMostHiddenKeys));
}

template <DType dtype>
LaunchStatus launch_scores(const char* stem, const ForwardParams& params, void* stream) {
  const Problem& problem = params.problem;
  if (!has_score_operands(problem)) return launch_channels<dtype, Scores::kPlain>(stem, params, stream);
  ForwardParams real = params;
  if (problem.key_value_lengths.data != nullptr) {
    const LaunchStatus status = launch_real_rows<dtype>(stem, real, stream);
    if (!status.ok()) return status;
  }
  if (params.workspace != nullptr && needs_mask_bits(workspace_facts(problem))) {
    const LaunchStatus status = launch_mask_bits<dtype>(stem, params, real.problem.mask, stream);
    return status.ok() ? launch_channels<dtype, Scores::kMask>(stem, real, stream) : status;
  }
  return are_lengths_alone(problem) ? launch_channels<dtype, Scores::kLengths>(stem, real, stream)
                                    : launch_channels<dtype, Scores::kOperands>(stem, real, stream);
}

}  // namespace

bool has_attention_fwd_sm90(const ForwardParams& params) {
  const Problem& problem = params.problem;
  return problem.dtype != DType::kFloat32 && problem.shape.S > 0 &&
         (problem.key_value_lengths.data == nullptr || params.workspace != nullptr);
}

LaunchStatus launch_attention_fwd_sm90(const char* stem, const ForwardParams& params, void* stream) {
  return params.problem.dtype == DType::kBFloat16 ? launch_scores<DType::kBFloat16>(stem, params, stream)
                                                  : launch_scores<DType::kFloat16>(stem, params, stream);
}

}  // namespace dhp
