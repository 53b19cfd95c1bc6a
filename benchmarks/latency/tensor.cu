// Tensor instructions of one warp: the A operand is tied, B and C are of the class as well.

#include "harness.cuh"

#define MMA_16816(TYPES)                        \
  "@g mma.sync.aligned.m16n8k16.row.col." TYPES \
  " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%12, %13, %14, %15};"
#define MMA_1688(SHAPE, TYPES) \
  "@g mma.sync.aligned." SHAPE ".row.col." TYPES " {%0, %1, %2, %3}, {%4, %5}, {%8}, {%12, %13, %14, %15};"

PROBE_WARP(hmma_bf16, "HMMA\\.16816\\.F32\\.BF16", 1, "bbf", 1, MMA_16816("f32.bf16.bf16.f32"))
PROBE_WARP(hmma_f16, "HMMA\\.16816\\.F32", 1, "hhf", 1, MMA_16816("f32.f16.f16.f32"))
PROBE_WARP(
    hmma_f16_sum, "HMMA\\.16816\\.F16", 1, "hhh", 1,
    "@g mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%0, %1}, {%4, %5, %6, %7}, {%8, %9}, {%12, %13};")
PROBE_WARP(hmma_bf16_k8, "HMMA\\.1688\\.F32\\.BF16", 1, "bbf", 1, MMA_1688("m16n8k8", "f32.bf16.bf16.f32"))
PROBE_WARP(hmma_f16_k8, "HMMA\\.1688\\.F32", 1, "hhf", 1, MMA_1688("m16n8k8", "f32.f16.f16.f32"))
PROBE_WARP(
    hmma_tf32, "HMMA\\.1688\\.F32\\.TF32", 1, "fff", 1,
    "@g mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9},"
    " {%12, %13, %14, %15};")
PROBE_WARP(imma_s8, "IMMA\\.16832\\.S8\\.S8", 1, "ssi", 1,
           "@g mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9},"
           " {%12, %13, %14, %15};")
PROBE_WARP(imma_u8_sat, "IMMA\\.16832\\.U8\\.U8\\.SAT", 1, "ssi", 1,
           "@g mma.sync.aligned.m16n8k32.row.col.satfinite.s32.u8.u8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7},"
           " {%8, %9}, {%12, %13, %14, %15};")
PROBE_WARP(
    dmma, "DMMA\\.8x8x4", 1, "ddd", 1,
    "{ .reg .b64 a, b, c, d; mov.b64 a, {%4, %5}; mov.b64 b, {%8, %9}; mov.b64 c, {%12, %13};"
    " mov.b64 d, {%14, %15}; @g mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {c, d}, {a}, {b}, {c, d};"
    " xor.b64 c, c, d; mov.b64 {%0, %1}, c; }")
