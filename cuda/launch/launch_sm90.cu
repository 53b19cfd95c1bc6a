#include "launch/launch_sm90.h"

#include <algorithm>
#include <cstdint>

#include "kernels/attention_fwd_sm90.cuh"
#include "launch/config.h"
#include "launch/grid.h"
#include "launch/tensor_map.h"

namespace dhp {
namespace {

// Of the current device.
int num_multiprocessors() {
  int device = 0, count = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return std::max(count, 1);
}

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
  if (!broken.empty()) return failure(stem, problem, broken);
  Grid grid = query_grid<Tiles>(shape);
  all.items = static_cast<uint32_t>(std::max<int64_t>(grid.blocks, 0));
  grid.blocks = std::min<int64_t>(grid.blocks, num_multiprocessors());
  // A quarter as many heads as blocks: where the tiles are a multiple of 8, a section then fills an even
  // number of rounds, in which all blocks have the same to do.
  const int64_t tiles = divide_up(shape.T, Tiles::kQueryRows), heads = shape.V * shape.B * shape.N;
  const int64_t section = std::clamp<int64_t>(grid.blocks / 4, 1, heads);
  all.tiles = Divisor::of(tiles);
  all.heads = Divisor::of(shape.N);
  all.batch = Divisor::of(shape.B);
  all.heads_of_keys_group = Divisor::of(shape.N / shape.K);
  all.section_items = Divisor::of(section * tiles);
  all.section = Divisor::of(section);
  all.last_section = Divisor::of((heads - 1) % section + 1);
  return launch(stem, problem, attention_fwd_sm90<Config>, all, grid, stream);
}

bool has_band(const Problem& problem) {
  return problem.band.left < problem.shape.T - 1 || problem.band.right < problem.shape.S - 1;
}

constexpr int kFewKeys = 2048;  // at most: the smaller tiles are faster, DECISIONS 20

template <DType dtype, int channels>
LaunchStatus launch_band(const char* stem, const ForwardParams& params, void* stream) {
  if (has_band(params.problem)) {
    return launch_fwd<HopperConfig<dtype, channels, false, true>>(stem, params, stream);
  }
  if constexpr (channels == 128) {
    if (params.problem.shape.S <= kFewKeys) {
      return launch_fwd<HopperConfig<dtype, channels, false, false, true>>(stem, params, stream);
    }
  }
  return launch_fwd<HopperConfig<dtype, channels, false, false>>(stem, params, stream);
}

template <DType dtype>
LaunchStatus launch_channels(const char* stem, const ForwardParams& params, void* stream) {
  if (params.problem.shape.D <= 64) return launch_band<dtype, 64>(stem, params, stream);
  if (params.problem.shape.D <= 128) return launch_band<dtype, 128>(stem, params, stream);
  return launch_band<dtype, 256>(stem, params, stream);
}

}  // namespace

bool has_attention_fwd_sm90(const Problem& problem) {
  return problem.dtype != DType::kFloat32 && !has_score_operands(problem) && problem.shape.S > 0;
}

LaunchStatus launch_attention_fwd_sm90(const char* stem, const ForwardParams& params, void* stream) {
  return params.problem.dtype == DType::kBFloat16 ? launch_channels<DType::kBFloat16>(stem, params, stream)
                                                  : launch_channels<DType::kFloat16>(stem, params, stream);
}

}  // namespace dhp
