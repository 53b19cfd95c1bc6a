// Compiled once for each instruction set with the flags of the kernels, DHP_ISA as the name of its namespace.
//
// Each control breaks one rule in the way a kernel would: the secret is a score, a value or a true length,
// and what it does with it is what compilers make of ordinary code. dhp_jax/verify/host/controls.py says
// which check must see which.

#include "proof/controls.h"

#include <stdint.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#define DHP_STRING_(x) #x
#define DHP_STRING(x) DHP_STRING_(x)
#define DHP_JOIN_(x, y) x##y
#define DHP_JOIN(x, y) DHP_JOIN_(x, y)
#define DHP_CONTROL_TABLE DHP_JOIN(dhp_host_controls_, DHP_ISA)

namespace dhp::DHP_ISA {
namespace {

constexpr int kCount = 64;  // values that a control reads and writes

struct Arrays {
  const float *query, *key;
  const int32_t* lengths;
  float* out;
};

Arrays arrays(const void* params) {
  const ForwardParams& p = *static_cast<const ForwardParams*>(params);
  return {static_cast<const float*>(p.problem.query.data), static_cast<const float*>(p.problem.key.data),
          p.problem.key_value_lengths.data, static_cast<float*>(p.out.data)};
}

void branch_on_score(const Arrays& a) {
  if (a.query[0] * a.key[0] > 0.0f)
    for (int i = 0; i < kCount; ++i) a.out[i] += a.query[i] * a.out[i / 2];
}

void skip_keys_past_length(const Arrays& a) {
  float sum = 0.0f;
  for (int s = 0; s < a.lengths[0]; ++s) sum += a.query[s % 8] * a.key[s];
  a.out[0] = sum;
}

void address_from_length(const Arrays& a) { a.out[0] = a.key[a.lengths[0] & 7]; }

void gather_by_value(const Arrays& a) {
  for (int i = 0; i < kCount; ++i) a.out[i] = a.key[static_cast<int>(a.query[i] * 4.0f) & 7];
}

void store_where_positive(const Arrays& a) {
  for (int i = 0; i < kCount; ++i)
    if (a.query[i] > 0.0f) a.out[i] = a.key[i];
}

void libm_exponential(const Arrays& a) { a.out[0] = __builtin_expf(a.query[0]); }

void divide(const Arrays& a) {
  for (int i = 0; i < kCount; ++i) a.out[i] = a.query[i] / a.key[i];
}

void square_root(const Arrays& a) {
  for (int i = 0; i < kCount; ++i) a.out[i] = __builtin_sqrtf(a.query[i] * a.query[i]);
}

void divide_length(const Arrays& a) { a.out[0] = static_cast<float>(1000 / (a.lengths[0] | 1)); }

void copy_up_to_length(const Arrays& a) {
  __builtin_memcpy(a.out, a.query, static_cast<uint64_t>(a.lengths[0] & 63) * sizeof(float));
}

// The secret takes a way round before it steers: through the stack, or through memory of the kernel.
void branch_through_stack(const Arrays& a) {
  volatile int32_t hidden[4] = {0, a.lengths[0], 0, 0};
  if (hidden[1] > 3) branch_on_score(a);
}

void branch_through_memory(const Arrays& a) {
  float* const scratch = a.out + kCount / 2;
  for (int i = 0; i < 8; ++i) scratch[i] = a.query[i] * a.key[i];
  __asm__ __volatile__("" : : : "memory");
  if (scratch[5] > 0.0f) skip_keys_past_length({a.query, a.key, &a.lengths[0], a.out});
}

void call_by_value(const Arrays& a) {
  static void (*const bodies[])(const Arrays&) = {divide, square_root};
  void (*const* volatile table)(const Arrays&) = bodies;
  table[a.lengths[0] & 1](a);
}

// Steers by whether any of many values is positive: a mask in a register becomes a flag.
void branch_on_any(const Arrays& a) {
  int any = 0;
  for (int i = 0; i < kCount; ++i) any |= a.query[i] > 0.5f;
  if (any) skip_keys_past_length(a);
}

#if defined(__AVX512F__)
#define DHP_AVX512_CONTROLS(X) X(load_where_positive) X(compress_positive)

void load_where_positive(const Arrays& a) {
  const __mmask16 positive = _mm512_cmp_ps_mask(_mm512_loadu_ps(a.query), _mm512_setzero_ps(), _CMP_GT_OQ);
  _mm512_storeu_ps(a.out, _mm512_maskz_loadu_ps(positive, a.key));
}

void compress_positive(const Arrays& a) {
  const __m512 query = _mm512_loadu_ps(a.query);
  const __mmask16 positive = _mm512_cmp_ps_mask(query, _mm512_setzero_ps(), _CMP_GT_OQ);
  _mm512_mask_compressstoreu_ps(a.out, positive, query);
}
#else
#define DHP_AVX512_CONTROLS(X)
#endif

#define DHP_CONTROLS(X)    \
  X(branch_on_score)       \
  X(skip_keys_past_length) \
  X(address_from_length)   \
  X(gather_by_value)       \
  X(store_where_positive)  \
  X(libm_exponential)      \
  X(divide)                \
  X(square_root)           \
  X(divide_length)         \
  X(copy_up_to_length)     \
  X(branch_through_stack)  \
  X(branch_through_memory) \
  X(call_by_value)         \
  X(branch_on_any)         \
  DHP_AVX512_CONTROLS(X)

template <void (*kBody)(const Arrays&), typename... Rest>
void run(const void* params, Rest...) {
  kBody(arrays(params));
}

template <void (*kBody)(const Arrays&)>
Plan plan(const ForwardParams&) {
  Plan plan;
  plan.phases[0].num_tasks = 1;
  plan.phases[0].run = run<kBody>;
  return plan;
}

// A plan that schedules no work for keys past the true length.
Plan plan_by_length(const ForwardParams& p) {
  Plan plan = DHP_ISA::plan<divide>(p);
  plan.phases[0].num_tasks = p.problem.key_value_lengths.data[0];
  return plan;
}

#define DHP_KERNELS(name, plan) \
  const HostKernels name##_kernels = {DHP_STRING(DHP_ISA) ":" #name, plan, nullptr, nullptr};
#define DHP_CONTROL(name) DHP_KERNELS(name, plan<name>)
DHP_CONTROLS(DHP_CONTROL)
DHP_KERNELS(plan_by_length, plan_by_length)

}  // namespace
}  // namespace dhp::DHP_ISA

#define DHP_ADDRESS(name) &dhp::DHP_ISA::name##_kernels,
const dhp::HostKernels* const DHP_CONTROL_TABLE[] = {DHP_CONTROLS(DHP_ADDRESS)
                                                         DHP_ADDRESS(plan_by_length) nullptr};
