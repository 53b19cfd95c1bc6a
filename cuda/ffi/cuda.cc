// The FFI handlers of platform CUDA. No CUDA header: the stream is passed through as an address.
//
// A handler only launches kernels on the given stream and touches only its operands and results, so XLA may
// record it into a command buffer; workspaces are extra results.

#include "ffi/handler.h"
#include "ffi/registrations.h"
#include "launch/launch.h"

namespace dhp {
namespace {

namespace ffi = xla::ffi;

template <auto decode, auto launch>
ffi::Error run(void* stream, ffi::RemainingArgs args, ffi::RemainingRets results, float scale,
               int64_t band_left, int64_t band_right, bool has_bias, bool has_mask, bool has_query_lengths,
               bool has_key_value_lengths) {
  return guarded([&] {
    const auto params =
        decode(args, results,
               {scale, band_left, band_right, has_bias, has_mask, has_query_lengths, has_key_value_lengths});
    const LaunchStatus status = launch(params, stream);
    return status.ok() ? ffi::Error::Success() : ffi::Error::InvalidArgument(status.message);
  });
}

auto binding() { return bind_call(ffi::Ffi::Bind().Ctx<ffi::PlatformStream<void*>>()); }

XLA_FFI_DEFINE_HANDLER(cuda_attention_fwd, (run<decode_forward, launch_attention_fwd>), binding(),
                       {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER(cuda_attention_bwd, (run<decode_backward, launch_attention_bwd>), binding(),
                       {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER(cuda_attention_bwd_bias, (run<decode_bias_backward, launch_attention_bwd_bias>),
                       binding(), {ffi::Traits::kCmdBufferCompatible});

}  // namespace

std::vector<Registration> cuda_registrations() {
  return {{"dhp_attention_fwd", reinterpret_cast<void*>(+cuda_attention_fwd)},
          {"dhp_attention_bwd", reinterpret_cast<void*>(+cuda_attention_bwd)},
          {"dhp_attention_bwd_bias", reinterpret_cast<void*>(+cuda_attention_bwd_bias)}};
}

}  // namespace dhp
