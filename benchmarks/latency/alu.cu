// Fixed-latency arithmetic: what the compiler schedules by counting cycles.

#include "harness.cuh"

// Integers and bits.
PROBE(iadd3, "IADD3", 1, "iii", 1, "{ .reg .b32 t; add.u32 t, %4, %8; add.u32 %0, t, %12; }")
PROBE(iadd3_carry, "(IADD3|IADD3\\.X|IMAD\\.X)", 2, "iii", 2,
      "{ .reg .b64 w, a, b; mov.b64 a, {%4, %5}; mov.b64 b, {%8, %9}; mov.b64 w, {%0, %1};"
      " add.u64 w, a, b; mov.b64 {%0, %1}, w; }")
PROBE(viadd, "VIADD .*0x3039", 1, "iii", 1, "add.u32 %0, %4, 12345;")
PROBE(imad, "IMAD", 1, "iii", 1, "mad.lo.u32 %0, %4, %8, %12;")
PROBE(imad_wide, "IMAD\\.WIDE\\.U32", 1, "iii", 2,
      "{ .reg .b64 w, a; mov.b64 w, {%0, %1}; mov.b64 a, {%12, %13};"
      " mad.wide.u32 w, %4, %5, a; mov.b64 {%0, %1}, w; }")
PROBE(imad_hi, "IMAD\\.HI\\.U32", 1, "iii", 1, "mad.hi.u32 %0, %4, %8, %12;")
PROBE(lea, "LEA(\\.HI\\.X)?", 2, "iii", 2,
      "{ .reg .b64 w, a, b; mov.b64 a, {%4, %5}; mov.b64 b, {%8, %9}; shl.b64 a, a, 5;"
      " add.u64 w, a, b; mov.b64 {%0, %1}, w; }")
PROBE(lea_hi, "LEA\\.HI", 1, "iii", 1, "{ .reg .b32 t; shr.u32 t, %4, 5; add.u32 %0, t, %8; }")
LATENCY_OP(lop3, kRegister, 0, 1, BRANCH("lop3.b32 %0, %4, %8, %12, 0x96;"))  // its tie is a LOP3 too
LATENCY_PLAIN(lop3, "LOP3\\.LUT", 2, "iii", latency::kTrips, false, kInsideSm)
LATENCY_GUARDED(lop3, "LOP3\\.LUT", 1, "iii", latency::kTrips, false, kInsideSm)
PROBE(shf_funnel, "SHF\\.L\\.W\\.U32(\\.HI)?", 1, "iii", 1, "shf.l.wrap.b32 %0, %4, %8, %12;")
PROBE(shf_left, "SHF\\.L\\.U32", 1, "iii", 1, "shl.b32 %0, %4, %8;")
PROBE(shf_right, "SHF\\.R\\.S32\\.HI", 1, "iii", 1, "shr.s32 %0, %4, %8;")
PROBE(prmt, "PRMT", 1, "iii", 1, "prmt.b32 %0, %4, %8, %12;")
PROBE(sel, "SEL", 1, "iii", 1, "{ .reg .pred p; setp.ne.u32 p, %12, 0; selp.b32 %0, %4, %8, p; }")
PROBE(sgxt, "SGXT\\.W", 1, "iii", 1, "szext.wrap.s32 %0, %4, %8;")
PROBE(bmsk, "BMSK", 1, "iii", 1, "bmsk.clamp.b32 %0, %4, %8;")
PROBE(iabs, "IABS", 1, "iii", 1, "abs.s32 %0, %4;")
PROBE_UNGUARDED(idp_4a, "IDP\\.4A\\.S8\\.S8", 1, "sii", 1, "dp4a.s32.s32 %0, %4, %8, %12;")
PROBE_UNGUARDED(idp_2a, "IDP\\.2A\\.LO\\.S16\\.S8", 1, "iii", 1, "dp2a.lo.s32.s32 %0, %4, %8, %12;")
PROBE(vabsdiff4, "VABSDIFF4\\.U8", 1, "sss", 1, "vabsdiff4.u32.u32.u32 %0, %4, %8, %12;")
PROBE(vimnmx, "VIMNMX", 1, "iii", 1, "min.s32 %0, %4, %8;")
PROBE(vimnmx_u32, "VIMNMX\\.U32", 1, "iii", 1, "max.u32 %0, %4, %8;")
PROBE(vimnmx_s16x2, "VIMNMX\\.S16x2", 1, "iii", 1, "min.s16x2 %0, %4, %8;")
PROBE(vimnmx3, "VIMNMX3", 1, "iii", 1, "{ .reg .b32 t; max.s32 t, %4, %8; max.s32 %0, t, %12; }")
PROBE(viaddmnmx, "VIADDMNMX", 1, "iii", 1, "{ .reg .b32 t; add.s32 t, %4, %8; max.s32 %0, t, %12; }")
PROBE(isetp, "ISETP\\.GE\\.AND", 1, "iii", 1,
      "{ .reg .pred p; setp.lt.s32 p, %4, %8; selp.b32 %0, %12, %8, p; }")
PROBE(isetp_ex, "ISETP\\.GE(\\.U32)?\\.AND(\\.EX)?", 2, "iii", 2,
      "{ .reg .pred p; .reg .b64 a, b; mov.b64 a, {%4, %5}; mov.b64 b, {%8, %9};"
      " setp.lt.s64 p, a, b; selp.b32 %0, %12, %8, p; mov.b32 %1, %0; }")

// Single precision.
PROBE(fadd, "FADD", 1, "fff", 1, "add.rn.f32 %0, %4, %8;")
PROBE(fadd_ftz, "FADD\\.FTZ", 1, "fff", 1, "add.rn.ftz.f32 %0, %4, %8;")
PROBE(fmul, "FMUL", 1, "fff", 1, "mul.rn.f32 %0, %4, %8;")
PROBE(fmul_ftz, "FMUL\\.FTZ", 1, "fff", 1, "mul.rn.ftz.f32 %0, %4, %8;")
PROBE(ffma, "FFMA", 1, "fff", 1, "fma.rn.f32 %0, %4, %8, %12;")
PROBE(ffma_ftz, "FFMA\\.FTZ", 1, "fff", 1, "fma.rn.ftz.f32 %0, %4, %8, %12;")
PROBE(ffma_rz, "FFMA\\.RZ", 1, "fff", 1, "fma.rz.f32 %0, %4, %8, %12;")
PROBE(ffma_sat, "FFMA\\.SAT", 1, "fff", 1, "fma.rn.sat.f32 %0, %4, %8, %12;")
PROBE(fmnmx, "FMNMX", 1, "fff", 1, "max.f32 %0, %4, %8;")
PROBE(fmnmx_nan, "FMNMX\\.NAN", 1, "fff", 1, "min.NaN.f32 %0, %4, %8;")
PROBE(fsel, "FSEL", 1, "fff", 1, "{ .reg .pred p; setp.ne.u32 p, %12, 0; selp.f32 %0, %4, %8, p; }")
PROBE(fset, "FSET\\.BF\\.\\w+\\.AND", 1, "fff", 1, "set.lt.f32.f32 %0, %4, %8;")
PROBE(fsetp, "FSETP\\.\\w+\\.AND", 1, "fff", 1,
      "{ .reg .pred p; setp.lt.f32 p, %4, %8; selp.b32 %0, %12, %8, p; }")
PROBE(fsetp_ftz, "FSETP\\.\\w+\\.FTZ\\.AND", 1, "fff", 1,
      "{ .reg .pred p; setp.ltu.ftz.f32 p, %4, %8; selp.b32 %0, %12, %8, p; }")

// Half precision, two to a register.
PROBE(hadd2, "(HADD2|HFMA2\\.MMA)", 1, "hhh", 1, "add.rn.f16x2 %0, %4, %8;")
PROBE(hadd2_bf16, "(HADD2\\.BF16_V2|HFMA2\\.MMA\\.BF16_V2)", 1, "bbb", 1, "add.rn.bf16x2 %0, %4, %8;")
PROBE(hmul2, "(HMUL2|HFMA2\\.MMA)", 1, "hhh", 1, "mul.rn.f16x2 %0, %4, %8;")
PROBE(hmul2_bf16, "(HMUL2\\.BF16_V2|HFMA2\\.MMA\\.BF16_V2)", 1, "bbb", 1, "mul.rn.bf16x2 %0, %4, %8;")
PROBE(hfma2, "(HFMA2|HFMA2\\.MMA)", 1, "hhh", 1, "fma.rn.f16x2 %0, %4, %8, %12;")
PROBE(hfma2_bf16, "(HFMA2\\.BF16_V2|HFMA2\\.MMA\\.BF16_V2)", 1, "bbb", 1, "fma.rn.bf16x2 %0, %4, %8, %12;")
PROBE(hfma2_relu, "(HFMA2\\.RELU|HFMA2\\.MMA\\.RELU)", 1, "hhh", 1, "fma.rn.relu.f16x2 %0, %4, %8, %12;")
PROBE(hmnmx2, "HMNMX2", 1, "hhh", 1, "max.f16x2 %0, %4, %8;")
PROBE(hmnmx2_bf16, "HMNMX2\\.BF16_V2", 1, "bbb", 1, "max.bf16x2 %0, %4, %8;")
PROBE(hset2, "HSET2\\.BF\\.\\w+\\.AND", 1, "hhh", 1, "set.lt.f16x2.f16x2 %0, %4, %8;")
PROBE(hsetp2, "HSETP2\\.\\w+\\.AND", 1, "hhh", 1,
      "{ .reg .pred p, q; setp.lt.f16x2 p|q, %4, %8; selp.b32 %0, %12, %8, p; }")
PROBE(hadd2_f32, "HADD2\\.F32", 1, "hhh", 1, "{ .reg .b16 l, h; mov.b32 {l, h}, %4; cvt.f32.f16 %0, l; }")

// Conversions of fixed latency.
PROBE(f2fp_bf16, "F2FP\\.BF16\\.F32\\.PACK_AB", 1, "fff", 1, "cvt.rn.bf16x2.f32 %0, %4, %8;")
PROBE(f2fp_f16, "F2FP\\.F16\\.F32\\.PACK_AB", 1, "fff", 1, "cvt.rn.f16x2.f32 %0, %4, %8;")
PROBE(f2fp_e4m3, "F2FP\\.SATFINITE\\.E4M3\\.F32\\.PACK_AB_MERGE_C", 1, "fff", 1,
      "{ .reg .b16 l, h; mov.b32 {l, h}, %0; cvt.rn.satfinite.e4m3x2.f32 l, %4, %8; mov.b32 %0, {l, h}; }")
PROBE(f2fp_e5m2, "F2FP\\.SATFINITE\\.E5M2\\.F32\\.PACK_AB_MERGE_C", 1, "fff", 1,
      "{ .reg .b16 l, h; mov.b32 {l, h}, %0; cvt.rn.satfinite.e5m2x2.f32 l, %4, %8; mov.b32 %0, {l, h}; }")
PROBE(i2fp_s32, "I2FP\\.F32\\.S32", 1, "iii", 1, "cvt.rn.f32.s32 %0, %4;")
PROBE(i2fp_u32, "I2FP\\.F32\\.U32", 1, "iii", 1, "cvt.rn.f32.u32 %0, %4;")

// Predicates.
PROBE_UNGUARDED(vote_ballot, "VOTE\\.ANY", 1, "iii", 1,
                "{ .reg .pred p; setp.lt.s32 p, %4, %8; vote.sync.ballot.b32 %0, p, 0xffffffff; }")
PROBE_UNGUARDED(vote_all, "VOTE\\.ALL", 1, "iii", 1,
                "{ .reg .pred p; setp.lt.s32 p, %4, %8; vote.sync.all.pred p, p, 0xffffffff;"
                " selp.b32 %0, %12, %8, p; }")
PROBE(plop3, "PLOP3\\.LUT (?!.*UP).*", 2, "iii", 1,
      "{ .reg .pred p, q, r, s, t; setp.lt.s32 p, %4, %8; setp.lt.s32 q, %4, %12; setp.gt.s32 r, %4, %13;"
      " and.pred s, p, q; or.pred t, p, q; and.pred t, t, r; or.pred s, s, t; selp.b32 %0, %12, %8, s; }")
PROBE_UNGUARDED(
    r2p, "R2P", 1, "iii", 1,
    "{ .reg .pred p0, p1, p2, p3, p4, p5; .reg .b32 t, z; and.b32 t, %4, 1; setp.ne.u32 p0, t, 0;"
    " and.b32 t, %4, 2; setp.ne.u32 p1, t, 0; and.b32 t, %4, 4; setp.ne.u32 p2, t, 0;"
    " and.b32 t, %4, 8; setp.ne.u32 p3, t, 0; and.b32 t, %4, 16; setp.ne.u32 p4, t, 0;"
    " and.b32 t, %4, 32; setp.ne.u32 p5, t, 0; selp.b32 z, %8, %9, p0; selp.b32 z, z, %10, p1;"
    " selp.b32 z, z, %11, p2; selp.b32 z, z, %12, p3; selp.b32 z, z, %13, p4; selp.b32 %0, z, %14, p5; }")
