#include <algorithm>
#include <cstdint>

#include "kernels/attention_fwd_combine_sm90.cuh"
#include "kernels/attention_fwd_decode_sm90.cuh"
#include "launch/config.h"
#include "launch/grid.h"
#include "launch/launch_sm90.h"
#include "launch/splits.h"
#include "launch/tensor_map.h"

namespace dhp {
namespace {

static_assert(kDecodeRows == kMmaRows);

template <DType dtype>
LaunchStatus launch_combine(const char* stem, const ForwardParams& params, int64_t splits, void* stream) {
  const Shape& shape = params.problem.shape;
  const int64_t rows = shape.V * shape.B * shape.T * shape.N, chunks = shape.D / kPartChannels;
  const CombineParams all{params.out,
                          params.row_max,
                          params.log_sum,
                          {params.workspace, splits * rows, static_cast<int32_t>(shape.D)},
                          static_cast<int32_t>(splits),
                          static_cast<uint32_t>(rows),
                          Divisor::of(chunks),
                          Divisor::of(shape.N),
                          Divisor::of(shape.T),
                          Divisor::of(shape.B)};
  const Grid grid{.blocks = count_blocks({divide_up(rows * chunks, kCombineThreads)}),
                  .threads = kCombineThreads,
                  .waits_itself = true};
  return launch<attention_fwd_combine_sm90<dtype>>(stem, params.problem, all, grid, stream);
}

template <typename Config>
LaunchStatus launch_decode(const char* stem, const ForwardParams& params, void* stream) {
  using Tiles = DecodeTiles<Config>;
  const Problem& problem = params.problem;
  const Shape& shape = problem.shape;
  if (shape.V * shape.B * shape.T * shape.N * shape.D == 0) return {};
  DecodeParams all{};
  all.forward = params;
  std::string broken;
  const auto describe_rows = [&](TensorMap& map, const InRows& rows) {
    if (broken.empty()) {
      broken = encode_tensor_map(map, rows, {shape.D, shape.S, shape.K, shape.B, shape.V}, problem.dtype,
                                 Tiles::kKeyRows, Fetch::kOneLine);
    }
  };
  describe_rows(all.key, problem.key);
  describe_rows(all.value, problem.value);
  if (!broken.empty()) return failure(stem, problem, broken);
  const int64_t splits = params.workspace == nullptr ? 1 : decode_splits(shape),
                row_blocks = decode_row_blocks(shape);
  all.row_blocks = Divisor::of(row_blocks);
  all.heads = Divisor::of(shape.K);
  all.splits = Divisor::of(splits);
  all.batch = Divisor::of(shape.B);
  all.group = Divisor::of(shape.group());
  const Grid grid{.blocks = count_blocks({shape.V, shape.B, splits, shape.K, row_blocks}),
                  .threads = Tiles::kThreads,
                  .shared_bytes = Tiles::kSharedBytes,
                  .waits_itself = true};
  const LaunchStatus status = launch<attention_fwd_decode_sm90<Config>>(stem, problem, all, grid, stream);
  if (!status.ok() || splits == 1) return status;
  return launch_combine<Config::kDType>(stem, params, splits, stream);
}

template <DType dtype>
LaunchStatus launch_channels(const char* stem, const ForwardParams& params, void* stream) {
  if (params.problem.shape.D <= 64) return launch_decode<Config<dtype, 64, true>>(stem, params, stream);
  if (params.problem.shape.D <= 128) return launch_decode<Config<dtype, 128, true>>(stem, params, stream);
  return launch_decode<Config<dtype, 256, true>>(stem, params, stream);
}

}  // namespace

bool has_attention_fwd_decode_sm90(const Problem& problem) {
  return is_decode(problem.shape, problem.dtype != DType::kFloat32);
}

LaunchStatus launch_attention_fwd_decode_sm90(const char* stem, const ForwardParams& params, void* stream) {
  return params.problem.dtype == DType::kBFloat16 ? launch_channels<DType::kBFloat16>(stem, params, stream)
                                                  : launch_channels<DType::kFloat16>(stem, params, stream);
}

}  // namespace dhp
