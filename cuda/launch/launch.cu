#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "kernels/attention_bwd_bias_plain.cuh"
#include "kernels/attention_bwd_key_value_sm80.cuh"
#include "kernels/attention_bwd_plain.cuh"
#include "kernels/attention_bwd_query_sm80.cuh"
#include "kernels/attention_fwd_plain.cuh"
#include "kernels/attention_fwd_sm80.cuh"
#include "launch/checks.h"
#include "launch/config.h"
#include "launch/launch.h"

namespace dhp {
namespace {

constexpr int kSharedBytesByDefault = 48 * 1024;  // that a kernel may have unless it asks for more
constexpr int kMostBlocks = INT32_MAX;            // along x, CUDA programming guide, technical specifications

// One-dimensional: x alone counts beyond 65535.
struct Grid {
  int64_t blocks;        // -1: more than a grid may have
  int threads;           // of a block
  int shared_bytes = 0;  // of a block, asked for at launch
};

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t count_blocks(std::initializer_list<int64_t> axes) {
  if (std::find(axes.begin(), axes.end(), 0) != axes.end()) return 0;
  int64_t blocks = 1;
  for (const int64_t size : axes) {
    if (size > kMostBlocks / blocks) return -1;
    blocks *= size;
  }
  return blocks;
}

// One warp a row.
Grid query_grid(const Shape& shape) {
  return {count_blocks({shape.V, shape.B, shape.N, shape.T}), kWarpLanes};
}
Grid key_grid(const Shape& shape) { return {count_blocks({shape.V, shape.B, shape.K, shape.S}), kWarpLanes}; }

template <typename Tiles>
Grid query_tile_grid(const Shape& shape) {
  return {count_blocks({shape.V, shape.B, shape.N, divide_up(shape.T, Tiles::kQueryRows)}), Tiles::kThreads,
          Tiles::kSharedBytes};
}

template <typename Tiles>
Grid key_tile_grid(const Shape& shape) {
  return {count_blocks({shape.V, shape.B, shape.K, divide_up(shape.S, Tiles::kKeyRows)}), Tiles::kThreads,
          Tiles::kSharedBytes};
}

// More than one warp a block only where there are queries to share out.
Grid bias_grid(const Shape& shape, const Shape& bias) {
  const int64_t queries = bias.T == 1 ? shape.T : 1;
  const int64_t warps = std::clamp<int64_t>(queries, 1, kMaxBiasWarps);
  return {count_blocks({bias.V, bias.B, bias.N, bias.T, divide_up(bias.S, kWarpLanes)}),
          static_cast<int>(warps) * kWarpLanes};
}

LaunchStatus failure(const char* stem, const Problem& problem, const std::string& message) {
  return {std::string(stem) + ": " + message + " (" + describe(problem) + ")"};
}

LaunchStatus first_failure(const char* stem, const Problem& problem,
                           std::initializer_list<std::string> messages) {
  for (const std::string& message : messages) {
    if (!message.empty()) return failure(stem, problem, message);
  }
  return {};
}

// A call that has nothing to write succeeds without a launch.
template <typename Params>
LaunchStatus launch(const char* stem, void (*kernel)(Params), const Params& params, const Grid& grid,
                    void* stream) {
  if (grid.blocks == 0 || params.problem.shape.D == 0) return {};
  if (grid.blocks < 0) {
    return failure(stem, params.problem,
                   "the work needs more than " + std::to_string(kMostBlocks) +
                       " blocks, the limit of a grid; split the call along the batch.");
  }
  void* arguments[] = {const_cast<Params*>(&params)};
  const void* function = reinterpret_cast<const void*>(kernel);
  cudaError_t error = cudaSuccess;
  if (grid.shared_bytes > kSharedBytesByDefault) {
    error = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, grid.shared_bytes);
  }
  if (error == cudaSuccess) {
    error = cudaLaunchKernel(function, dim3(static_cast<unsigned>(grid.blocks)), dim3(grid.threads),
                             arguments, grid.shared_bytes, static_cast<cudaStream_t>(stream));
  }
  if (error == cudaSuccess) return {};
  cudaGetLastError();  // taken: the next CUDA call of this thread must not report it again
  return failure(stem, params.problem,
                 std::string("the kernel did not launch: ") + cudaGetErrorString(error) + ".");
}

// The one table of instances: calls run with the Config of this problem.
template <typename Run>
LaunchStatus with_config(const char* stem, const Problem& problem, Run run) {
  switch (problem.dtype) {
    case DType::kFloat32: return run.template operator()<Config<DType::kFloat32>>();
    case DType::kBFloat16: return run.template operator()<Config<DType::kBFloat16>>();
    case DType::kFloat16: return run.template operator()<Config<DType::kFloat16>>();
  }
  return failure(stem, problem, "no kernel is compiled for this dtype.");
}

// Whether a score is more than a positive multiple of the dot product.
bool has_score_operands(const Problem& problem) {
  return problem.bias.data != nullptr || problem.mask.data != nullptr ||
         problem.query_lengths.data != nullptr || problem.key_value_lengths.data != nullptr ||
         !(problem.scale > 0);
}

// The same for the tensor-core kernels, whose operands have 16 bits.
template <DType dtype, int channels, typename Run>
LaunchStatus with_tile_config(const Problem& problem, Run run) {
  return has_score_operands(problem) ? run.template operator()<TileConfig<dtype, channels, true>>()
                                     : run.template operator()<TileConfig<dtype, channels, false>>();
}
template <DType dtype, typename Run>
LaunchStatus with_tile_config(const Problem& problem, Run run) {
  if (problem.shape.D <= 64) return with_tile_config<dtype, 64>(problem, run);
  if (problem.shape.D <= 128) return with_tile_config<dtype, 128>(problem, run);
  return with_tile_config<dtype, 256>(problem, run);
}

// A limit beyond the last position is no limit; held to the shape, it cannot overflow where a kernel adds it.
template <typename Params>
Params with_near_band(Params params) {
  const Shape& shape = params.problem.shape;
  Band& band = params.problem.band;
  band.left = std::clamp(band.left, -shape.S, shape.T);
  band.right = std::clamp(band.right, -shape.T, shape.S);
  return params;
}

template <typename Config>
LaunchStatus launch_bwd_plain(const char* stem, const BackwardParams& params, void* stream) {
  const Shape& shape = params.problem.shape;
  const LaunchStatus status =
      launch(stem, attention_bwd_query_plain<Config>, params, query_grid(shape), stream);
  if (!status.ok()) return status;
  return launch(stem, attention_bwd_key_value_plain<Config>, params, key_grid(shape), stream);
}

template <typename Config, Gradients gradients>
LaunchStatus launch_bwd_key_value(const char* stem, const BackwardParams& params, void* stream) {
  return launch(stem, attention_bwd_key_value_sm80<Config, gradients>, params,
                key_tile_grid<KeyValueGradientTiles<Config, gradients>>(params.problem.shape), stream);
}

template <typename Config>
LaunchStatus launch_bwd_tiles(const char* stem, const BackwardParams& params, void* stream) {
  LaunchStatus status = launch(stem, attention_bwd_query_sm80<Config>, params,
                               query_tile_grid<QueryGradientTiles<Config>>(params.problem.shape), stream);
  if (!status.ok()) return status;
  if constexpr (Config::kChannels <= 128) {
    return launch_bwd_key_value<Config, Gradients::kBoth>(stem, params, stream);
  } else {
    status = launch_bwd_key_value<Config, Gradients::kValue>(stem, params, stream);
    return status.ok() ? launch_bwd_key_value<Config, Gradients::kKey>(stem, params, stream) : status;
  }
}

}  // namespace

LaunchStatus launch_attention_fwd(const ForwardParams& params, void* stream) {
  constexpr const char* kStem = "attention_fwd";
  const ForwardParams near = with_near_band(params);
  const Problem& problem = near.problem;
  const LaunchStatus checked = first_failure(
      kStem, problem, {check_problem(problem), check_rows("out", near.out, problem.dtype), check_device()});
  if (!checked.ok()) return checked;
  const auto launch_tiles = [&]<typename Config>() {
    return launch(kStem, attention_fwd_sm80<Config>, near,
                  query_tile_grid<ForwardTiles<Config>>(problem.shape), stream);
  };
  switch (problem.dtype) {
    case DType::kFloat32:
      return launch(kStem, attention_fwd_plain<Config<DType::kFloat32>>, near, query_grid(problem.shape),
                    stream);
    case DType::kBFloat16: return with_tile_config<DType::kBFloat16>(problem, launch_tiles);
    case DType::kFloat16: return with_tile_config<DType::kFloat16>(problem, launch_tiles);
  }
  return failure(kStem, problem, "no kernel is compiled for this dtype.");
}

LaunchStatus launch_attention_bwd(const BackwardParams& params, void* stream) {
  constexpr const char* kStem = "attention_bwd";
  const BackwardParams near = with_near_band(params);
  const Problem& problem = near.problem;
  const Shape& shape = problem.shape;
  const LaunchStatus checked = first_failure(
      kStem, problem,
      {check_problem(problem), check_rows("out", near.out, problem.dtype),
       check_rows("d_out", near.d_out, problem.dtype), check_rows("d_query", near.d_query, problem.dtype),
       check_rows("d_key", near.d_key, problem.dtype), check_rows("d_value", near.d_value, problem.dtype),
       check_device()});
  if (!checked.ok()) return checked;
  LaunchStatus status = with_config(kStem, problem, [&]<typename Config>() {
    return launch(kStem, attention_bwd_delta_plain<Config, BackwardParams>, near, query_grid(shape), stream);
  });
  if (!status.ok()) return status;
  switch (problem.dtype) {
    case DType::kFloat32: return launch_bwd_plain<Config<DType::kFloat32>>(kStem, near, stream);
    case DType::kBFloat16:
      return with_tile_config<DType::kBFloat16>(
          problem, [&]<typename Config>() { return launch_bwd_tiles<Config>(kStem, near, stream); });
    case DType::kFloat16:
      return with_tile_config<DType::kFloat16>(
          problem, [&]<typename Config>() { return launch_bwd_tiles<Config>(kStem, near, stream); });
  }
  return failure(kStem, problem, "no kernel is compiled for this dtype.");
}

LaunchStatus launch_attention_bwd_bias(const BiasBackwardParams& params, void* stream) {
  constexpr const char* kStem = "attention_bwd_bias";
  const BiasBackwardParams near = with_near_band(params);
  const Problem& problem = near.problem;
  const Shape& shape = problem.shape;
  const LaunchStatus checked =
      first_failure(kStem, problem,
                    {check_problem(problem), check_rows("out", near.out, problem.dtype),
                     check_rows("d_out", near.d_out, problem.dtype), check_device()});
  if (!checked.ok()) return checked;
  return with_config(kStem, problem, [&]<typename Config>() {
    LaunchStatus status =
        launch(kStem, attention_bwd_delta_plain<Config, BiasBackwardParams>, near, query_grid(shape), stream);
    if (status.ok()) {
      status =
          launch(kStem, attention_bwd_bias_plain<Config>, near, bias_grid(shape, near.bias_shape), stream);
    }
    return status;
  });
}

}  // namespace dhp
