// Compiled once for each instruction set, with DHP_ISA as the name of its namespace.

#include "host/kernels.h"

#include "host/attention_bwd.h"
#include "host/attention_bwd_bias.h"
#include "host/attention_fwd.h"

#define DHP_STRING_(x) #x
#define DHP_STRING(x) DHP_STRING_(x)

namespace dhp::DHP_ISA {

template <typename Params>
Cotangents cotangents(const Params& p) {
  return {p.out, p.d_out, p.row_max, p.log_sum, p.d_lse, p.delta};
}

template <typename Params>
void run_delta(const void* params, int64_t task, float* scratch) {
  const Params& p = *static_cast<const Params*>(params);
  delta_task(p.problem, cotangents(p), task, scratch);
}

void run_forward(const void* params, int64_t task, float* scratch) {
  attention_fwd_task(*static_cast<const ForwardParams*>(params), task, scratch);
}

void run_query_gradient(const void* params, int64_t task, float* scratch) {
  const BackwardParams& p = *static_cast<const BackwardParams*>(params);
  query_gradient_task(p, cotangents(p), task, scratch);
}

void run_key_value_gradient(const void* params, int64_t task, float* scratch) {
  const BackwardParams& p = *static_cast<const BackwardParams*>(params);
  key_value_gradient_task(p, cotangents(p), task, scratch);
}

void run_bias_gradient(const void* params, int64_t task, float* scratch) {
  const BiasBackwardParams& p = *static_cast<const BiasBackwardParams*>(params);
  bias_gradient_task(p, cotangents(p), task, scratch);
}

int64_t num_heads(const Shape& shape) { return shape.V * shape.B * shape.K; }

Plan plan_forward(const ForwardParams& p) {
  const Shape& shape = p.problem.shape;
  return {{{num_heads(shape) * num_row_blocks(shape), run_forward}}, forward_scratch_floats()};
}

Plan plan_backward(const BackwardParams& p) {
  const Shape& shape = p.problem.shape;
  const int64_t row_tasks = num_heads(shape) * num_row_blocks(shape);
  const int64_t key_tasks = num_heads(shape) * num_key_blocks(shape);
  return {{{row_tasks, run_delta<BackwardParams>},
           {row_tasks, run_query_gradient},
           {key_tasks, run_key_value_gradient}},
          backward_scratch_floats()};
}

Plan plan_bias_backward(const BiasBackwardParams& p) {
  const Shape& shape = p.problem.shape;
  return {{{num_heads(shape) * num_row_blocks(shape), run_delta<BiasBackwardParams>},
           {num_bias_tasks(p), run_bias_gradient}},
          backward_scratch_floats()};
}

extern const HostKernels kernels;
const HostKernels kernels = {DHP_STRING(DHP_ISA), plan_forward, plan_backward, plan_bias_backward};

}  // namespace dhp::DHP_ISA
