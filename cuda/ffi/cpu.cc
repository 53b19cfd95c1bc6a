// The FFI handlers of platform cpu.

#include "ffi/handler.h"
#include "ffi/registrations.h"
#include "host/attention.h"

namespace dhp {
namespace {

namespace ffi = xla::ffi;

ThreadLender lend(ffi::ThreadPool& pool) {
  return {pool.num_threads(), [&pool](std::function<void()> task) { pool.Schedule(std::move(task)); }};
}

template <auto decode, auto compute>
ffi::Error run(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets results, float scale,
               int64_t band_left, int64_t band_right, bool has_bias, bool has_mask, bool has_query_lengths,
               bool has_key_value_lengths) {
  return guarded([&] {
    const auto params =
        decode(args, results,
               {scale, band_left, band_right, has_bias, has_mask, has_query_lengths, has_key_value_lengths});
    if (!compute(params, lend(pool))) throw std::bad_alloc();
    return ffi::Error::Success();
  });
}

auto binding() { return bind_call(ffi::Ffi::Bind().Ctx<ffi::ThreadPool>()); }

XLA_FFI_DEFINE_HANDLER(cpu_attention_fwd, (run<decode_forward, host_attention_fwd>), binding());
XLA_FFI_DEFINE_HANDLER(cpu_attention_bwd, (run<decode_backward, host_attention_bwd>), binding());
XLA_FFI_DEFINE_HANDLER(cpu_attention_bwd_bias, (run<decode_bias_backward, host_attention_bwd_bias>),
                       binding());

}  // namespace

std::vector<Registration> cpu_registrations() {
  return {{"dhp_attention_fwd", reinterpret_cast<void*>(+cpu_attention_fwd)},
          {"dhp_attention_bwd", reinterpret_cast<void*>(+cpu_attention_bwd)},
          {"dhp_attention_bwd_bias", reinterpret_cast<void*>(+cpu_attention_bwd_bias)}};
}

}  // namespace dhp
