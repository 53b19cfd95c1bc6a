// Arithmetic that hides branches, and instructions whose time nobody has shown to be fixed.
//
// The slow path of a function is machine code after the kernel's last EXIT and has the line of the closing
// brace.

// Divides as C++ does: a test for extreme operands, and a slow path for them.
//
// sass: FCHK P\d
// sass: CALL.REL.NOINC .*div_rn
__global__ void L11_division_of_scores(const float* scores, float* out) {
  out[threadIdx.x] = scores[threadIdx.x] / scores[threadIdx.x + 32];  // expect: CT01, CT04
}  // expect: CT01, CT03

// The mean over a true length.
//
// sass: FCHK P\d
// sass: CALL.REL.NOINC .*div_rn
__global__ void L11_division_by_length(const int* lengths, const float* sums, float* out) {
  out[threadIdx.x] = sums[threadIdx.x] / static_cast<float>(lengths[0]);  // expect: CT01, CT04
}  // expect: CT01, CT03

// Square root, correctly rounded.
//
// sass: MUFU.RSQ
// sass: CALL.REL.NOINC .*sqrt_rn
__global__ void L12_square_root(const float* scores, float* out) {
  out[threadIdx.x] = sqrtf(scores[threadIdx.x]);  // expect: CT01
}  // expect: CT01, CT03

// Reciprocal, correctly rounded.
//
// sass: CALL.REL.NOINC .*rcp_rn
__global__ void L12_reciprocal(const float* scores, float* out) {
  out[threadIdx.x] = __frcp_rn(scores[threadIdx.x]);  // expect: CT01
}  // expect: CT01, CT03

// Division in float64.
//
// sass: MUFU.RCP64H
// sass: @P\d BRA P\d
__global__ void L12_division_in_float64(const double* scores, double* out) {
  out[threadIdx.x] = scores[threadIdx.x] / scores[threadIdx.x + 32];  // expect: CT01, CT04
}  // expect: CT01, CT03, CT04

// Addition in float64: no branch, but its latency is not on the list.
//
// sass: DADD
__global__ void L12_addition_in_float64(const double* scores, double* out) {
  out[threadIdx.x] = scores[threadIdx.x] + scores[threadIdx.x + 32];  // expect: CT04
}

// Division of 64-bit integers: a fast path where both fit 32 bits.
//
// sass: @!?P\d BRA
// sass: CALL.REL.NOINC .*div_s64
__global__ void L12_division_of_int64(const long long* tokens, long long* out) {
  out[threadIdx.x] = tokens[threadIdx.x] / tokens[threadIdx.x + 32];  // expect: CT01, CT03, CT04
}  // expect: CT04

// The same by a length.
//
// sass: @!?P\d BRA
// sass: CALL.REL.NOINC .*rem_u64
__global__ void L12_remainder_by_int64_length(const long long* lengths, unsigned long long tile,
                                              long long* out) {
  out[threadIdx.x] = tile % lengths[threadIdx.x];  // expect: CT01, CT03, CT04
}  // expect: CT04

// Sine: large arguments are reduced by a loop over a table.
//
// sass: @!P\d BRA
// sass: F2I
__global__ void L12_sine(const float* scores, float* out) {
  out[threadIdx.x] = sinf(scores[threadIdx.x]);  // expect: CT01, CT03, CT04
}

// Power.
//
// sass: @P\d BRA
// sass: FRND
__global__ void L12_power(const float* scores, float* out) {
  out[threadIdx.x] = powf(scores[threadIdx.x], scores[threadIdx.x + 32]);  // expect: CT01, CT03, CT04
}

// log(1 + x).
//
// sass: @!P\d BRA
__global__ void L12_log1p(const float* scores, float* out) {
  out[threadIdx.x] = log1pf(scores[threadIdx.x]);  // expect: CT01, CT03, CT04 on sm_80
}

// Base-2 logarithm of the standard library: takes the exponent out and turns it into a float, on sm_80 by a
// conversion whose latency is not on the list, on sm_90a by one of fixed latency.
//
// policy: guarded arithmetic
// sass on sm_80: I2F
// sass on sm_90a: I2FP
__global__ void L12_logarithm(const float* scores, float* out) {
  out[threadIdx.x] = log2f(scores[threadIdx.x]);  // expect: CT04 on sm_80
}

// Remainder of 32-bit integers: no branch, but conversions between integer and float see the secret. (A case
// of B15 that is not accepted: their latency has not been measured.)
//
// sass: I2F.U32.RP R\d+, R\d+
// sass: F2I
__global__ void L12_remainder_by_int32_length(const unsigned* lengths, unsigned total, unsigned* out) {
  out[threadIdx.x] = total % lengths[threadIdx.x];  // expect: CT03, CT04
}
