// The memory of one attention call, filled with secrets.

#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "host/attention.h"
#include "proof/cases.h"

namespace dhp::proof {

// Memory of exactly this size, so that memcheck sees one byte too many; aligned as XLA aligns it.
class Array {
 public:
  explicit Array(size_t size = 0);
  void* data() const { return data_.get(); }
  size_t size() const { return size_; }

 private:
  struct Free {
    void operator()(void* data) const;
  };
  std::unique_ptr<void, Free> data_;
  size_t size_;
};

enum class Kernel { kForward, kBackward, kBiasBackward };
inline constexpr Kernel kKernels[] = {Kernel::kForward, Kernel::kBackward, Kernel::kBiasBackward};
const char* kernel_name(Kernel kernel);
bool has_kernel(const Case& c, Kernel kernel);

class Call {
 public:
  Call(const Case& c, DType dtype);

  // Fills every input with secrets of this sort.
  void fill(const Secrets& secrets, uint64_t seed);
  // What the backward kernels read of the forward pass: out, row_max and log_sum.
  void run_forward();
  bool run(Kernel kernel, const ThreadLender& threads);

  // Every array of the call: all contents are secret.
  std::vector<const Array*> arrays() const;
  // Those that a kernel writes, and of these the sums of products: 0 where every factor is.
  std::vector<const Array*> outputs(Kernel kernel) const;
  std::vector<const Array*> products(Kernel kernel) const;

 private:
  Problem problem() const;
  template <typename Params>
  Params backward_params() const;
  ForwardParams forward_params() const;
  BiasBackwardParams bias_backward_params() const;

  Case case_;
  DType dtype_;
  Array query_, key_, value_, bias_, mask_, query_lengths_, key_value_lengths_;
  Array out_, row_max_, log_sum_;
  Array d_out_, d_lse_, d_query_, d_key_, d_value_, d_bias_, delta_;
};

}  // namespace dhp::proof
