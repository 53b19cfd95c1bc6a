#include "host/kernels.h"

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

const HostKernels& host_kernels() {
#ifdef DHP_HAS_X86_ISAS
  // x86-64-v3 and -v4 are what the objects are compiled for; each bit below is one that the compiler may use.
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                  __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  if (v4) return avx512::kernels;
  if (v3) return avx2::kernels;
#endif
  return baseline::kernels;
}

}  // namespace dhp
