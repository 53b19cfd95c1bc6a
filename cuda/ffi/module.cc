// dhp_jax._native: the table of contents of the native code. It computes nothing.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>

#include "ffi/registrations.h"
#include "host/attention.h"
#include "launch/launch.h"
#include "launch/workspace.h"
#include "xla/ffi/api/c_api.h"

namespace py = pybind11;

namespace {

py::dict capsules(const std::vector<dhp::Registration>& registrations) {
  py::dict result;
  for (const dhp::Registration& r : registrations) result[r.target] = py::capsule(r.handler);
  return result;
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.doc() = "Custom-call targets of dhp_jax, and how they were built.";
  module.attr("FFI_API_VERSION") = py::make_tuple(XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR);
  module.attr("CUDA_ARCHITECTURES") = DHP_CUDA_ARCHITECTURES;
  module.def("host_isa", &dhp::host_isa, "Instruction set of the CPU kernels: baseline, avx2 or avx512.");
#ifdef DHP_WITH_CUDA
  module.def("gpu_objection", &dhp::gpu_objection, py::arg("major"), py::arg("minor"),
             "Why the kernels cannot run on a GPU of this compute capability; empty where they can.");
#endif
  module.def(
      "forward_workspace",
      [](int64_t v, int64_t b, int64_t t, int64_t s, int64_t n, int64_t k, int64_t d, bool has_16_bits,
         bool has_key_value_lengths, bool maps_keys, const std::array<int64_t, 4>& mask) {
        const auto [mask_v, mask_b, mask_n, mask_t] = mask;
        return dhp::forward_workspace({{v, b, t, s, n, k, d},
                                       has_16_bits,
                                       has_key_value_lengths,
                                       maps_keys,
                                       {mask_v, mask_b, mask_n, mask_t}});
      },
      py::kw_only(), py::arg("v"), py::arg("b"), py::arg("t"), py::arg("s"), py::arg("n"), py::arg("k"),
      py::arg("d"), py::arg("has_16_bits"), py::arg("has_key_value_lengths"), py::arg("maps_keys"),
      py::arg("mask"), "Elements of the workspace of a forward call, which is the same on every platform.");
  module.def(
      "registrations",
      [] {
        py::dict result;
        result["cpu"] = capsules(dhp::cpu_registrations());
#ifdef DHP_WITH_CUDA
        result["CUDA"] = capsules(dhp::cuda_registrations());
#endif
        return result;
      },
      "Platform -> custom-call target -> handler capsule.");
}
