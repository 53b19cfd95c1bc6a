// What the handlers of both platforms share: the attributes, and the wall that no exception passes.

#pragma once

#include <exception>
#include <new>
#include <stdexcept>

#include "ffi/decode.h"

namespace dhp {

// Adds the attributes of Options to a binding, in the order of its fields.
template <typename Binding>
auto bind_call(Binding binding) {
  return std::move(binding)
      .RemainingArgs()
      .RemainingRets()
      .template Attr<float>("scale")
      .template Attr<int64_t>("band_left")
      .template Attr<int64_t>("band_right")
      .template Attr<bool>("has_bias")
      .template Attr<bool>("has_mask")
      .template Attr<bool>("has_query_lengths")
      .template Attr<bool>("has_key_value_lengths");
}

// Runs `body`, which returns an xla::ffi::Error; XLA is compiled without exceptions and would abort on one.
template <typename Body>
xla::ffi::Error guarded(Body body) {
  try {
    return body();
  } catch (const std::invalid_argument& error) {
    return xla::ffi::Error::InvalidArgument(error.what());
  } catch (const std::bad_alloc&) {
    return xla::ffi::Error(xla::ffi::ErrorCode::kResourceExhausted, "dhp_jax: out of memory");
  } catch (const std::exception& error) {
    return xla::ffi::Error::Internal(error.what());
  }
}

}  // namespace dhp
