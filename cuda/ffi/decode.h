// XLA buffers -> Params. Every check of a native call is here, before any launch.
//
// Python has checked the user's arguments already (dhp_jax/spec.py); what fails here is a broken caller, and
// gets an INVALID_ARGUMENT with the shapes in it instead of a crash.

#pragma once

#include <string>

#include "params.h"
#include "xla/ffi/api/ffi.h"

namespace dhp {

// The static options of a call; attributes of the custom call, named as here.
struct Options {
  float scale;
  int64_t band_left, band_right;
  bool has_bias, has_mask, has_query_lengths, has_key_value_lengths;
};

// Operands in order: query, key, value, then those of bias, mask, query lengths, key/value lengths that are
// present. Backward calls append out, row_max, log_sum, d_out, d_lse. All throw std::invalid_argument.
ForwardParams decode_forward(xla::ffi::RemainingArgs args, xla::ffi::RemainingRets results,
                             const Options& options);
BackwardParams decode_backward(xla::ffi::RemainingArgs args, xla::ffi::RemainingRets results,
                               const Options& options);
BiasBackwardParams decode_bias_backward(xla::ffi::RemainingArgs args, xla::ffi::RemainingRets results,
                                        const Options& options);

// "float32[1,2,64,8,32]": how a buffer is named in a message.
std::string describe(const xla::ffi::AnyBuffer& buffer);

}  // namespace dhp
