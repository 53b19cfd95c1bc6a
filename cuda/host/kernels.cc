// Compiled once for each instruction set, with DHP_ISA as the name of its namespace.

#include "host/kernels.h"

#include "host/attention_bwd.h"
#include "host/attention_bwd_bias.h"
#include "host/attention_fwd_split.h"

#define DHP_STRING_(x) #x
#define DHP_STRING(x) DHP_STRING_(x)

namespace dhp::DHP_ISA {

template <typename Params>
Cotangents cotangents(const Params& p) {
  return {p.out, p.d_out, p.row_max, p.log_sum, p.d_lse, p.delta};
}

template <typename Params>
void run_delta(const void* params, int64_t task, const TaskMemory& memory) {
  const Params& p = *static_cast<const Params*>(params);
  delta_task(p.problem, cotangents(p), task, memory.scratch);
}

void run_forward(const void* params, int64_t task, const TaskMemory& memory) {
  attention_fwd_task(*static_cast<const ForwardParams*>(params), task, memory.scratch);
}

void run_forward_split(const void* params, int64_t task, const TaskMemory& memory) {
  attention_fwd_split_task(*static_cast<const ForwardParams*>(params), task, memory);
}

void run_forward_merge(const void* params, int64_t task, const TaskMemory& memory) {
  attention_fwd_merge_task(*static_cast<const ForwardParams*>(params), task, memory);
}

void run_backward(const void* params, int64_t task, const TaskMemory& memory) {
  const BackwardParams& p = *static_cast<const BackwardParams*>(params);
  attention_bwd_task(p, cotangents(p), task, memory);
}

void run_store_key_gradients(const void* params, int64_t task, const TaskMemory& memory) {
  store_key_gradients_task(*static_cast<const BackwardParams*>(params), task, memory.workspace);
}

void run_bias_gradient(const void* params, int64_t task, const TaskMemory& memory) {
  const BiasBackwardParams& p = *static_cast<const BiasBackwardParams*>(params);
  bias_gradient_task(p, cotangents(p), task, memory.scratch);
}

Plan plan_forward(const ForwardParams& p) {
  const Shape& shape = p.problem.shape;
  if (has_few_rows(shape))
    return {
        {{num_heads(shape) * num_splits(shape), run_forward_split}, {num_heads(shape), run_forward_merge}},
        split_scratch_floats(),
        split_workspace_floats(shape),
        0};
  return {{{num_heads(shape) * num_row_blocks(shape), run_forward}}, forward_scratch_floats(), 0, 0};
}

Plan plan_backward(const BackwardParams& p) {
  const Shape& shape = p.problem.shape;
  const int64_t row_tasks = num_heads(shape) * num_row_blocks(shape);
  const int64_t key_tasks = num_heads(shape) * num_key_blocks(shape);
  return {{{row_tasks, run_delta<BackwardParams>},
           {row_tasks, run_backward},
           {key_tasks, run_store_key_gradients}},
          backward_scratch_floats(),
          key_sum_floats(shape),
          num_turns(shape)};
}

Plan plan_bias_backward(const BiasBackwardParams& p) {
  const Shape& shape = p.problem.shape;
  return {{{num_heads(shape) * num_row_blocks(shape), run_delta<BiasBackwardParams>},
           {num_bias_tasks(p), run_bias_gradient}},
          backward_scratch_floats(),
          0,
          0};
}

extern const HostKernels kernels;
const HostKernels kernels = {DHP_STRING(DHP_ISA), plan_forward, plan_backward, plan_bias_backward};

}  // namespace dhp::DHP_ISA
