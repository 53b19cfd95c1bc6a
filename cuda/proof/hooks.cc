#include "proof/hooks.h"

#include <dlfcn.h>

#include <utility>

namespace dhp {
namespace proof {
namespace {

const HostKernels* chosen = nullptr;
Around around_task;
Plan plan_in_use;

// Takes the place of phase kPhase of the plan in use, whatever Phase::run passes along.
template <int kPhase, typename... Rest>
void hook(const void* params, int64_t task, Rest... rest) {
  around_task(task, [&] { plan_in_use.phases[kPhase].run(params, task, rest...); });
}

template <int... kPhases>
Plan with_hooks(Plan plan, std::integer_sequence<int, kPhases...>) {
  plan_in_use = plan;
  ((plan.phases[kPhases].run = hook<kPhases>), ...);
  return plan;
}

Plan with_hooks(const Plan& plan) {
  return around_task ? with_hooks(plan, std::make_integer_sequence<int, Plan::kMaxPhases>()) : plan;
}

HostKernels hooked = {
    "none",
    [](const ForwardParams& p) { return with_hooks(chosen->attention_fwd(p)); },
    [](const BackwardParams& p) { return with_hooks(chosen->attention_bwd(p)); },
    [](const BiasBackwardParams& p) { return with_hooks(chosen->attention_bwd_bias(p)); },
};

// The library's own host_kernels(), of which ours takes the place.
void* own_choice() { return dlsym(RTLD_NEXT, "_ZN3dhp12host_kernelsEv"); }

}  // namespace

void use_kernels(const HostKernels& kernels, Around around) {
  chosen = &kernels;
  around_task = std::move(around);
  hooked.isa = kernels.isa;
}

const HostKernels& native_kernels() {
  using Choice = const HostKernels& (*)();
  return reinterpret_cast<Choice>(own_choice())();
}

const char* library_path() {
  Dl_info library{};
  dladdr(own_choice(), &library);
  return library.dli_fname ? library.dli_fname : "";
}

}  // namespace proof

// The dynamic linker looks for a function in the program first, so the library calls this one.
const HostKernels& host_kernels() { return proof::hooked; }

}  // namespace dhp
