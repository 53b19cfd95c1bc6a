#include "launch/launch_sm90.h"

#include <cstdint>

#include "kernels/attention_fwd_sm90.cuh"
#include "launch/config.h"
#include "launch/grid.h"
#include "launch/tensor_map.h"

namespace dhp {
namespace {

template <typename Config>
LaunchStatus launch_fwd(const char* stem, const ForwardParams& params, void* stream) {
  using Tiles = HopperForwardTiles<Config>;
  const Problem& problem = params.problem;
  const Shape& shape = problem.shape;
  if (shape.V * shape.B * shape.T * shape.N * shape.D == 0) return {};
  HopperForwardParams all{.forward = params};
  std::string broken;
  const auto describe_rows = [&](TensorMap& map, const auto& rows, int64_t positions, int64_t heads, int box) {
    if (broken.empty()) {
      broken = encode_tensor_map(map, rows, {shape.D, positions, heads, shape.B, shape.V}, problem.dtype, box);
    }
  };
  describe_rows(all.query, problem.query, shape.T, shape.N, kGroupRows);
  describe_rows(all.key, problem.key, shape.S, shape.K, Tiles::kKeyRows);
  describe_rows(all.value, problem.value, shape.S, shape.K, Tiles::kKeyRows);
  describe_rows(all.out, params.out, shape.T, shape.N, kGroupRows);
  if (!broken.empty()) return failure(stem, problem, broken);
  return launch(stem, problem, attention_fwd_sm90<Config>, all, query_grid<Tiles>(shape), stream);
}

template <DType dtype>
LaunchStatus launch_channels(const char* stem, const ForwardParams& params, void* stream) {
  if (params.problem.shape.D <= 64) return launch_fwd<Config<dtype, 64, false>>(stem, params, stream);
  if (params.problem.shape.D <= 128) return launch_fwd<Config<dtype, 128, false>>(stem, params, stream);
  return launch_fwd<Config<dtype, 256, false>>(stem, params, stream);
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
