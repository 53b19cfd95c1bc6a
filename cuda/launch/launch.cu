#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "kernels/attention_bwd_bias_sm80.cuh"
#include "kernels/attention_bwd_delta.cuh"
#include "kernels/attention_bwd_key_value_sm80.cuh"
#include "kernels/attention_bwd_query_sm80.cuh"
#include "kernels/attention_fwd_sm80.cuh"
#include "launch/checks.h"
#include "launch/config.h"
#include "launch/grid.h"
#include "launch/launch.h"
#include "launch/launch_sm90.h"

namespace dhp {
namespace {

template <typename Tiles>
Grid key_grid(const Shape& shape) {
  return {count_blocks({shape.V, shape.B, shape.K, divide_up(shape.S, Tiles::kKeyRows)}), Tiles::kThreads,
          Tiles::kSharedBytes};
}

template <typename Tiles>
Grid bias_grid(const Shape& bias) {
  return {count_blocks({bias.V, bias.B, bias.N, divide_up(bias.T, Tiles::kQueryRows),
                        divide_up(bias.S, Tiles::kKeyRows)}),
          Tiles::kThreads, Tiles::kSharedBytes};
}

LaunchStatus first_failure(const char* stem, const Problem& problem,
                           std::initializer_list<std::string> messages) {
  for (const std::string& message : messages) {
    if (!message.empty()) return failure(stem, problem, message);
  }
  return {};
}

// The one table of instances: calls run with the Config of this problem. `Operands` says which of them are
// compiled with score operands and which without.
enum class Operands { kAsGiven, kAlways, kNever };

template <Operands operands, DType dtype, int channels, typename Run>
LaunchStatus with_operands(const Problem& problem, Run run) {
  using With = Config<dtype, channels, true>;
  using Without = Config<dtype, channels, false>;
  if constexpr (operands == Operands::kNever) {
    return run.template operator()<Without>();
  } else if constexpr (operands == Operands::kAlways) {
    return run.template operator()<With>();
  } else {
    return has_score_operands(problem) ? run.template operator()<With>() : run.template operator()<Without>();
  }
}

template <Operands operands, DType dtype, typename Run>
LaunchStatus with_channels(const Problem& problem, Run run) {
  if (problem.shape.D <= 64) return with_operands<operands, dtype, 64>(problem, run);
  if (problem.shape.D <= 128) return with_operands<operands, dtype, 128>(problem, run);
  return with_operands<operands, dtype, 256>(problem, run);
}

template <Operands operands, typename Run>
LaunchStatus with_config(const char* stem, const Problem& problem, Run run) {
  switch (problem.dtype) {
    case DType::kFloat32: return with_channels<operands, DType::kFloat32>(problem, run);
    case DType::kBFloat16: return with_channels<operands, DType::kBFloat16>(problem, run);
    case DType::kFloat16: return with_channels<operands, DType::kFloat16>(problem, run);
  }
  return failure(stem, problem, "no kernel is compiled for this dtype.");
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

template <typename Params>
LaunchStatus launch_delta(const char* stem, const Params& params, void* stream) {
  const Problem& problem = params.problem;
  const DeltaParams delta{problem.shape,         params.out,   params.d_out,
                          problem.query_lengths, params.d_lse, params.delta};
  return with_config<Operands::kNever>(stem, problem, [&]<typename Config>() {
    return launch<attention_bwd_delta<Config>>(stem, problem, delta,
                                               query_grid<DeltaTiles<Config>>(problem.shape), stream);
  });
}

template <typename Config, Gradients gradients>
LaunchStatus launch_bwd_key_value(const char* stem, const BackwardParams& params, void* stream) {
  return launch<attention_bwd_key_value_sm80<Config, gradients>>(
      stem, params.problem, params, key_grid<KeyValueGradientTiles<Config, gradients>>(params.problem.shape),
      stream);
}

template <typename Config>
LaunchStatus launch_bwd(const char* stem, const BackwardParams& params, void* stream) {
  LaunchStatus status = launch<attention_bwd_query_sm80<Config>>(
      stem, params.problem, params, query_grid<QueryGradientTiles<Config>>(params.problem.shape), stream);
  if (!status.ok()) return status;
  if constexpr (kBothFit<Config>) {
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
  if (device_is_hopper() && has_attention_fwd_decode_sm90(problem)) {
    return launch_attention_fwd_decode_sm90(kStem, near, stream);
  }
  if (device_is_hopper() && has_attention_fwd_sm90(near)) {
    return prefers_attention_fwd_small_sm90(near, count_multiprocessors())
               ? launch_attention_fwd_small_sm90(kStem, near, stream)
               : launch_attention_fwd_sm90(kStem, near, stream);
  }
  return with_config<Operands::kAsGiven>(kStem, problem, [&]<typename Config>() {
    return launch<attention_fwd_sm80<Config>>(kStem, problem, near,
                                              query_grid<ForwardTiles<Config>>(problem.shape), stream);
  });
}

LaunchStatus launch_attention_bwd(const BackwardParams& params, void* stream) {
  constexpr const char* kStem = "attention_bwd";
  const BackwardParams near = with_near_band(params);
  const Problem& problem = near.problem;
  const LaunchStatus checked = first_failure(
      kStem, problem,
      {check_problem(problem), check_rows("out", near.out, problem.dtype),
       check_rows("d_out", near.d_out, problem.dtype), check_rows("d_query", near.d_query, problem.dtype),
       check_rows("d_key", near.d_key, problem.dtype), check_rows("d_value", near.d_value, problem.dtype),
       check_device()});
  if (!checked.ok()) return checked;
  const LaunchStatus status = launch_delta(kStem, near, stream);
  if (!status.ok()) return status;
  return with_config<Operands::kAsGiven>(
      kStem, problem, [&]<typename Config>() { return launch_bwd<Config>(kStem, near, stream); });
}

LaunchStatus launch_attention_bwd_bias(const BiasBackwardParams& params, void* stream) {
  constexpr const char* kStem = "attention_bwd_bias";
  const BiasBackwardParams near = with_near_band(params);
  const Problem& problem = near.problem;
  const LaunchStatus checked =
      first_failure(kStem, problem,
                    {check_problem(problem), check_rows("out", near.out, problem.dtype),
                     check_rows("d_out", near.d_out, problem.dtype), check_device()});
  if (!checked.ok()) return checked;
  const LaunchStatus status = launch_delta(kStem, near, stream);
  if (!status.ok()) return status;
  return with_config<Operands::kAlways>(kStem, problem, [&]<typename Config>() {
    return launch<attention_bwd_bias_sm80<Config>>(
        kStem, problem, near, bias_grid<BiasGradientTiles<Config>>(near.bias_shape), stream);
  });
}

}  // namespace dhp
