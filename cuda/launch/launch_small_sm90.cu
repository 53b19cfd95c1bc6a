#include <algorithm>
#include <cstdint>

#include "kernels/attention_fwd_small_sm90.cuh"
#include "launch/config.h"
#include "launch/grid.h"
#include "launch/launch_sm90.h"

namespace dhp {
namespace {

constexpr int64_t kMostKeys = 512, kMostChannels = 128, kBlocks = 2;  // of a cluster

// Of a multiprocessor.
constexpr int64_t blocks_resident(int64_t channels) { return channels <= 64 ? 2 : 1; }

// At least the bytes from the first element to past the last one.
template <typename Pointer>
bool is_near(const HeadRows<Pointer>& rows, const Shape& shape) {
  constexpr int64_t kMostBytes = int64_t{1} << 31, kElementBytes = 2;
  const int64_t extent = shape.V * rows.stride_v + shape.B * rows.stride_b +
                         std::max(shape.T, shape.S) * rows.stride_row + shape.N * rows.stride_head;
  return extent * kElementBytes <= kMostBytes;
}

template <typename Near, typename Pointer>
Near near_rows(const HeadRows<Pointer>& rows, DType dtype) {
  const auto bytes = [&](int64_t stride) { return static_cast<uint32_t>(stride * element_bytes(dtype)); };
  return {rows.data, bytes(rows.stride_v), bytes(rows.stride_b), bytes(rows.stride_row),
          bytes(rows.stride_head)};
}

template <typename Config>
LaunchStatus launch_fwd(const char* stem, const ForwardParams& params, void* stream) {
  using Tiles = SmallForwardTiles<Config>;
  static_assert(Tiles::kKeys == kMostKeys && Tiles::kBlocks == kBlocks && Tiles::kQueryRows == kGroupRows);
  static_assert(Tiles::kBlocksResident == blocks_resident(Tiles::kChannels));
  const Problem& problem = params.problem;
  const Shape& shape = problem.shape;
  if (shape.V * shape.B * shape.T * shape.N * shape.D == 0) return {};
  const Grid grid{.blocks = Tiles::kBlocks * shape.N,
                  .threads = Tiles::kThreads,
                  .shared_bytes = Tiles::kSharedBytes,
                  .rows = static_cast<int>(divide_up(shape.T, Tiles::kQueryRows)),
                  .planes = static_cast<int>(shape.V * shape.B),
                  .cluster = Tiles::kBlocks,
                  .waits_itself = true};
  const auto near_in = [&](const InRows& rows) {
    return near_rows<NearRows<const void*>>(rows, problem.dtype);
  };
  const auto small = [](int64_t size) { return static_cast<int32_t>(size); };
  const SmallForwardParams all{.query = near_in(problem.query),
                               .key = near_in(problem.key),
                               .value = near_in(problem.value),
                               .shape = {small(shape.T), small(shape.S), small(shape.N), small(shape.D)},
                               .heads_of_keys_group = Divisor::of(shape.group()),
                               .batch = Divisor::of(shape.B),
                               .scale = problem.scale,
                               .band = {small(problem.band.left), small(problem.band.right)},
                               .out = near_rows<NearRows<void*>>(params.out, problem.dtype),
                               .row_max = params.row_max,
                               .log_sum = params.log_sum};
  return launch<attention_fwd_small_sm90<Config>>(stem, problem, all, grid, stream);
}

template <DType dtype, int channels>
LaunchStatus launch_band(const char* stem, const ForwardParams& params, void* stream) {
  return has_band(params.problem)
             ? launch_fwd<HopperConfig<dtype, channels, Scores::kPlain, true>>(stem, params, stream)
             : launch_fwd<HopperConfig<dtype, channels, Scores::kPlain, false>>(stem, params, stream);
}

template <DType dtype>
LaunchStatus launch_channels(const char* stem, const ForwardParams& params, void* stream) {
  return params.problem.shape.D <= 64 ? launch_band<dtype, 64>(stem, params, stream)
                                      : launch_band<dtype, 128>(stem, params, stream);
}

}  // namespace

// Where its blocks are on the GPU all at once: two on a multiprocessor up to 64 channels, one above. With
// more the kernel for any number of rows is faster, DECISIONS 23.
bool prefers_attention_fwd_small_sm90(const ForwardParams& params, int multiprocessors) {
  const Problem& problem = params.problem;
  const Shape& shape = problem.shape;
  if (!has_attention_fwd_sm90(params) || has_score_operands(problem) || shape.S > kMostKeys ||
      shape.D > kMostChannels)
    return false;
  const int64_t clusters = count_blocks({shape.V, shape.B, shape.N, divide_up(shape.T, kGroupRows)});
  return clusters >= 0 && clusters * kBlocks <= blocks_resident(shape.D) * multiprocessors &&
         is_near(problem.query, shape) && is_near(problem.key, shape) && is_near(problem.value, shape) &&
         is_near(params.out, shape);
}

LaunchStatus launch_attention_fwd_small_sm90(const char* stem, const ForwardParams& params, void* stream) {
  return params.problem.dtype == DType::kBFloat16 ? launch_channels<DType::kBFloat16>(stem, params, stream)
                                                  : launch_channels<DType::kFloat16>(stem, params, stream);
}

}  // namespace dhp
