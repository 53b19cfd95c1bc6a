// Tables of constants and shuffles: a secret decides which entry, or which lane.

constexpr unsigned kAllLanes = 0xffffffffu;

__constant__ float constant_table[1024];

// Looks up a table of constants: lanes that differ are served one after the other.
//
// sass: LDC R\d+, c\[0x3\]\[R\d+\]
__global__ void L20_constant_table_at_token(const int* tokens, float* out) {
  const int token = tokens[threadIdx.x];
  out[threadIdx.x] = constant_table[token];  // expect: CT02
}

// Looks up by the true length: the same in all lanes, and still an address.
//
// sass: LDC R\d+, c\[0x3\]\[R\d+\]
__global__ void L20_constant_table_at_length(const int* lengths, float* out) {
  const int length = lengths[0];
  out[threadIdx.x] = constant_table[length];  // expect: CT02
}

// Fetches from the lane that a secret names.
//
// sass: SHFL.IDX PT, R\d+, R\d+, R\d+
__global__ void L24_shuffle_from_secret_lane(const int* tokens, float* out) {
  const int token = tokens[threadIdx.x];
  out[threadIdx.x] = __shfl_sync(kAllLanes, static_cast<float>(threadIdx.x), token);  // expect: CT02
}

// Fetches from the last true lane.
//
// sass: SHFL.IDX PT, R\d+, R\d+, R\d+
__global__ void L24_shuffle_from_last_true_lane(const int* lengths, const float* rows, float* out) {
  const int length = lengths[0];
  const float row = rows[threadIdx.x];
  out[threadIdx.x] = __shfl_sync(kAllLanes, row, length - 1);  // expect: CT02
}

// Shuffles among the lanes that a secret names, where the warp has split: it waits for these lanes. On sm_80
// through a subroutine of ptxas.
//
// sass: WARPSYNC R\d+
// sass on sm_80: BRA.CONV UR\d+
__global__ void L24_shuffle_among_secret_lanes(const unsigned* members, const float* rows, int active,
                                               float* out) {
  const unsigned lanes = members[blockIdx.x];
  float row = rows[threadIdx.x];
  if (threadIdx.x < active) row += __shfl_xor_sync(lanes, row, 1);  // expect: CT01
  out[threadIdx.x] = row;
}  // expect: CT01 on sm_80
