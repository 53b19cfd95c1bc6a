// Transcendentals, conversions, bit counts, double precision and exchanges between lanes: instructions that
// wait in a queue and answer through a scoreboard.

#include "harness.cuh"

// Multi-function unit.
PROBE(mufu_ex2, "MUFU\\.EX2", 1, "f--", 1, "ex2.approx.ftz.f32 %0, %4;")
PROBE(mufu_lg2, "MUFU\\.LG2", 1, "f--", 1, "lg2.approx.ftz.f32 %0, %4;")
PROBE(mufu_rcp, "MUFU\\.RCP", 1, "f--", 1, "rcp.approx.ftz.f32 %0, %4;")
PROBE(mufu_rsq, "MUFU\\.RSQ", 1, "f--", 1, "rsqrt.approx.ftz.f32 %0, %4;")
PROBE(mufu_sqrt, "MUFU\\.SQRT", 1, "f--", 1, "sqrt.approx.ftz.f32 %0, %4;")
PROBE(mufu_sin, "MUFU\\.SIN", 1, "f--", 1, "sin.approx.ftz.f32 %0, %4;")
PROBE(mufu_cos, "MUFU\\.COS", 1, "f--", 1, "cos.approx.ftz.f32 %0, %4;")
PROBE(mufu_tanh, "MUFU\\.TANH", 1, "f--", 1, "tanh.approx.f32 %0, %4;")
PROBE(mufu_ex2_f16, "MUFU\\.EX2\\.F16", 1, "h--", 1,
      "{ .reg .b16 l, h; mov.b32 {l, h}, %4; ex2.approx.f16 l, l; mov.b32 %0, {l, l}; }")
PROBE(mufu_tanh_f16, "MUFU\\.TANH\\.F16", 1, "h--", 1,
      "{ .reg .b16 l, h; mov.b32 {l, h}, %4; tanh.approx.f16 l, l; mov.b32 %0, {l, l}; }")
PROBE(mufu_rcp64h, "MUFU\\.RCP64H", 1, "d--", 2,
      "{ .reg .b64 w; mov.b64 w, {%4, %5}; rcp.approx.ftz.f64 w, w; mov.b64 {%0, %1}, w; }")
PROBE(mufu_rsq64h, "MUFU\\.RSQ64H", 1, "d--", 2,
      "{ .reg .b64 w; mov.b64 w, {%4, %5}; rsqrt.approx.ftz.f64 w, w; mov.b64 {%0, %1}, w; }")

// Conversions.
PROBE(f2i_s32, "F2I\\.TRUNC\\.NTZ", 1, "f--", 1, "cvt.rzi.s32.f32 %0, %4;")
PROBE(f2i_u32, "F2I\\.U32\\.NTZ", 1, "f--", 1, "cvt.rni.u32.f32 %0, %4;")
PROBE(f2i_s64, "F2I\\.S64\\.TRUNC", 1, "f--", 1,
      "{ .reg .b64 w; cvt.rzi.s64.f32 w, %4; mov.b64 {%0, %1}, w; }")
PROBE(i2f_s64, "I2F\\.S64", 1, "i--", 1, "{ .reg .b64 w; mov.b64 w, {%4, %5}; cvt.rn.f32.s64 %0, w; }")
PROBE(i2f_f64, "I2F\\.F64", 1, "i--", 2, "{ .reg .b64 w; cvt.rn.f64.s32 w, %4; mov.b64 {%0, %1}, w; }")
PROBE(f2f_f64_f32, "F2F\\.F64\\.F32", 1, "f--", 2, "{ .reg .b64 w; cvt.f64.f32 w, %4; mov.b64 {%0, %1}, w; }")
PROBE(f2f_f32_f64, "F2F\\.F32\\.F64", 1, "d--", 1,
      "{ .reg .b64 w; mov.b64 w, {%4, %5}; cvt.rn.f32.f64 %0, w; }")
PROBE(frnd_floor, "FRND\\.FLOOR", 1, "f--", 1, "cvt.rmi.f32.f32 %0, %4;")
PROBE(frnd_even, "FRND", 1, "f--", 1, "cvt.rni.f32.f32 %0, %4;")

// Bit counts.
PROBE(popc, "POPC", 1, "i--", 1, "popc.b32 %0, %4;")
PROBE_UNGUARDED(flo, "FLO\\.U32", 1, "i--", 1, "bfind.u32 %0, %4;")
PROBE_UNGUARDED(flo_shift, "FLO\\.U32\\.SH", 1, "i--", 1, "bfind.shiftamt.u32 %0, %4;")
PROBE(brev, "BREV", 1, "i--", 1, "brev.b32 %0, %4;")

// Double precision.
PROBE(
    dadd, "DADD", 1, "ddd", 2,
    "{ .reg .b64 a, b; mov.b64 a, {%4, %5}; mov.b64 b, {%8, %9}; add.rn.f64 a, a, b; mov.b64 {%0, %1}, a; }")
PROBE(
    dmul, "DMUL", 1, "ddd", 2,
    "{ .reg .b64 a, b; mov.b64 a, {%4, %5}; mov.b64 b, {%8, %9}; mul.rn.f64 a, a, b; mov.b64 {%0, %1}, a; }")
PROBE(dfma, "DFMA", 1, "ddd", 2,
      "{ .reg .b64 a, b, c; mov.b64 a, {%4, %5}; mov.b64 b, {%8, %9}; mov.b64 c, {%12, %13};"
      " fma.rn.f64 a, a, b, c; mov.b64 {%0, %1}, a; }")
PROBE(dsetp, "DSETP\\.\\w+\\.AND", 1, "ddd", 2,
      "{ .reg .pred p; .reg .b64 a, b; mov.b64 a, {%4, %5}; mov.b64 b, {%8, %9}; setp.lt.f64 p, a, b;"
      " selp.b32 %0, %12, %8, p; mov.b32 %1, %0; }")

// Exchanges between lanes: the data are of the class, lane numbers and member masks are public. ptxas puts a
// branch around such an instruction, and no guard on it.
PROBE_UNGUARDED(shfl_bfly, "SHFL\\.BFLY", 1, "f--", 1, "shfl.sync.bfly.b32 %0, %4, 16, 31, 0xffffffff;")
PROBE_UNGUARDED(shfl_idx, "SHFL\\.IDX", 1, "f--", 1, "shfl.sync.idx.b32 %0, %4, 5, 31, 0xffffffff;")
PROBE_UNGUARDED(shfl_up, "SHFL\\.UP", 1, "f--", 1, "shfl.sync.up.b32 %0, %4, 3, 0, 0xffffffff;")
PROBE_UNGUARDED(shfl_down, "SHFL\\.DOWN", 1, "f--", 1, "shfl.sync.down.b32 %0, %4, 3, 31, 0xffffffff;")
PROBE_UNGUARDED(redux_sum, "REDUX\\.SUM", 1, "i--", 1, "redux.sync.add.u32 %0, %4, 0xffffffff;")
PROBE_UNGUARDED(redux_min, "REDUX\\.MIN\\.S32", 1, "i--", 1, "redux.sync.min.s32 %0, %4, 0xffffffff;")
PROBE_UNGUARDED(redux_or, "REDUX\\.OR", 1, "i--", 1, "redux.sync.or.b32 %0, %4, 0xffffffff;")
PROBE_UNGUARDED(match_any, "MATCH\\.ANY", 1, "i--", 1, "match.any.sync.b32 %0, %4, 0xffffffff;")
PROBE_UNGUARDED(match_all, "MATCH\\.ALL", 1, "i--", 1,
                "{ .reg .pred p; match.all.sync.b32 %0|p, %4, 0xffffffff; }")
PROBE_UNGUARDED(movm, "MOVM\\.16\\.MT88", 1, "h--", 1, "movmatrix.sync.aligned.m8n8.trans.b16 %0, %4;")
