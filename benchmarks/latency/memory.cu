// Loads, stores and copies: the data are of the class, the addresses are public.

#include "harness.cuh"

// ptxas loads no more words than are used.
#define MIX " xor.b32 %0, %0, %1; xor.b32 %2, %2, %3; xor.b32 %0, %0, %2;"
#define AT_GLOBAL "{ .reg .b64 at; mov.b64 at, {%4, %5}; "

PROBE_SHARED(lds, "LDS", 4, "f--", false, "@g ld.shared.b32 %0, [%4];")
PROBE_SHARED(lds_64, "LDS\\.64", 8, "f--", false, "@g ld.shared.v2.b32 {%0, %1}, [%4]; xor.b32 %0, %0, %1;")
PROBE_SHARED(lds_128, "LDS\\.128", 16, "f--", false, "@g ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" MIX)
PROBE_SHARED(lds_u8, "LDS\\.U8", 1, "f--", false, "@g ld.shared.u8 %0, [%4];")
PROBE_SHARED(ldsm, "LDSM\\.16\\.M88", 16, "h--", true,
             "@g ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%4];")
PROBE_SHARED(ldsm_4, "LDSM\\.16\\.M88\\.4", 16, "h--", true,
             "@g ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];")
PROBE_SHARED(ldsm_transposed, "LDSM\\.16\\.MT88\\.4", 16, "h--", true,
             "@g ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];")

// A store answers nothing, so its chain reads the word back.
PROBE_SHARED(sts, "STS", 4, "ff-", false, "@g st.shared.b32 [%4], %8; ld.shared.b32 %0, [%4];")
PROBE_SHARED(sts_64, "STS\\.64", 8, "ff-", false,
             "@g st.shared.v2.b32 [%4], {%8, %9}; ld.shared.b32 %0, [%4];")
PROBE_SHARED(sts_128, "STS\\.128", 16, "ff-", false,
             "@g st.shared.v4.b32 [%4], {%8, %9, %10, %11}; ld.shared.b32 %0, [%4];")
PROBE_SHARED(stsm, "STSM\\.16\\.M88", 16, "hh-", true,
             "@g stmatrix.sync.aligned.m8n8.x1.shared.b16 [%4], {%8}; ld.shared.b32 %0, [%4];")
PROBE_SHARED(stsm_4, "STSM\\.16\\.M88\\.4", 16, "hh-", true,
             "@g stmatrix.sync.aligned.m8n8.x4.shared.b16 [%4], {%8, %9, %10, %11}; ld.shared.b32 %0, [%4];")
PROBE_SHARED(
    stsm_transposed, "STSM\\.16\\.MT88\\.4", 16, "hh-", true,
    "@g stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%4], {%8, %9, %10, %11}; ld.shared.b32 %0, [%4];")

PROBE_GLOBAL(ldg, "LDG\\.E", 4, "f--", latency::kTrips, kInsideSm, AT_GLOBAL "@g ld.global.b32 %0, [at]; }")
PROBE_GLOBAL(ldg_128, "LDG\\.E\\.128", 16, "f--", latency::kTrips, kInsideSm,
             AT_GLOBAL "@g ld.global.v4.b32 {%0, %1, %2, %3}, [at]; }" MIX)
PROBE_GLOBAL(ldg_constant, "LDG\\.E\\.CONSTANT", 4, "f--", latency::kTrips, kInsideSm,
             AT_GLOBAL "@g ld.global.nc.b32 %0, [at]; }")
PROBE_GLOBAL(ldg_l2, "LDG\\.E\\.STRONG\\.GPU", 4, "f--", latency::kTripsFar, kBeyondSm,
             AT_GLOBAL "@g ld.relaxed.gpu.global.b32 %0, [at]; }")
PROBE_GLOBAL(ldg_128_l2, "LDG\\.E\\.128\\.STRONG\\.GPU", 16, "f--", latency::kTripsFar, kBeyondSm,
             AT_GLOBAL "@g ld.relaxed.gpu.global.v4.b32 {%0, %1, %2, %3}, [at]; }" MIX)
PROBE_GLOBAL(ld_generic, "LD\\.E", 4, "f--", latency::kTrips, kInsideSm, AT_GLOBAL "@g ld.b32 %0, [at]; }")
PROBE_GLOBAL(stg, "STG\\.E", 4, "ff-", latency::kTripsFar, kBeyondSm,
             AT_GLOBAL "@g st.global.b32 [at], %8; ld.relaxed.gpu.global.b32 %0, [at]; }")
PROBE_GLOBAL(stg_128, "STG\\.E\\.128", 16, "ff-", latency::kTripsFar, kBeyondSm,
             AT_GLOBAL "@g st.global.v4.b32 [at], {%8, %9, %10, %11}; ld.relaxed.gpu.global.b32 %0, [at]; }")
PROBE_GLOBAL(st_generic, "ST\\.E", 4, "ff-", latency::kTripsFar, kBeyondSm,
             AT_GLOBAL "@g st.b32 [at], %8; ld.relaxed.gpu.b32 %0, [at]; }")

// From global to shared memory past the registers; x[2] is the address in shared memory.
PROBE_GLOBAL(ldgsts, "LDGSTS\\.E", 4, "f--", latency::kTrips, kInsideSm,
             AT_GLOBAL
             "@g cp.async.ca.shared.global [%6], [at], 4; cp.async.wait_all; ld.shared.b32 %0, [%6]; }")
PROBE_GLOBAL(ldgsts_128, "LDGSTS\\.E\\.BYPASS\\.128", 16, "f--", latency::kTripsFar, kBeyondSm,
             AT_GLOBAL
             "@g cp.async.cg.shared.global [%6], [at], 16; cp.async.wait_all; ld.shared.b32 %0, [%6]; }")
