#include "proof/kernel_tables.h"

#include <type_traits>

namespace dhp {
namespace baseline {
extern const HostKernels kernels;
}
#ifdef DHP_HAS_X86_ISAS
namespace avx2 {
extern const HostKernels kernels;
}
namespace avx512 {
extern const HostKernels kernels;
}
#endif
}  // namespace dhp

const dhp::HostKernels* const dhp_host_kernel_tables[] = {
    &dhp::baseline::kernels,
#ifdef DHP_HAS_X86_ISAS
    &dhp::avx2::kernels,
    &dhp::avx512::kernels,
#endif
    nullptr,
};

struct ExpectedTaskMemory {
  float *scratch, *workspace;
  int32_t* turns;
};
static_assert(
    std::is_same_v<decltype(dhp::Phase::run), void (*)(const void*, int64_t, const dhp::TaskMemory&)> &&
        sizeof(dhp::TaskMemory) == sizeof(ExpectedTaskMemory),
    "Phase::run or TaskMemory has changed: say in dhp_host_task_arguments what they are");
const char dhp_host_task_arguments[] = "pn{ssc}";
