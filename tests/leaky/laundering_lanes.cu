// The same between the lanes of a warp: what one lane gets, another lane had.

#include "force.cuh"

constexpr unsigned kAllLanes = 0xffffffffu;

// Through a shuffle.
//
// sass: SHFL.BFLY
__global__ void L29c_shuffle(const int* tokens, const float* table, float* out) {
  const int token = __shfl_xor_sync(kAllLanes, tokens[threadIdx.x], 1);
  out[threadIdx.x] = table[token];  // expect: CT02
}

// Through a shuffle between lanes that came different ways, one with a secret, one with a constant. A flag
// tells which way a lane came, and only lanes without a secret of their own use what they got.
//
// sass: PLOP3.LUT P0, PT, PT, PT, PT, 0x80, 0x0
// sass: SHFL.BFLY
// sass: @P0 LDG
__global__ void L29c_shuffle_between_paths(const int* tokens, const float* table, int rows, int steps,
                                           float* out) {
  int token = 0;
  bool has_none = true;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    if (static_cast<int>(threadIdx.x) < rows + step) {
      long_work(out);
      token = tokens[threadIdx.x];
      has_none = false;
      break;
    }
    long_work(out + 777);
  }
  const int received = __shfl_xor_sync(kAllLanes, token, 1);
  float sum = 1.0f;
  if (has_none) sum += table[received];  // expect: CT02
  out[threadIdx.x] = sum;
}

// The same through a vote.
//
// sass: PLOP3.LUT P0, PT, PT, PT, PT, 0x80, 0x0
// sass: VOTE.ANY
// sass: LDG
__global__ void L29c_vote_between_paths(const int* lengths, const float* table, int rows, int steps,
                                        float* out) {
  bool is_long = false;
  bool has_none = true;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    if (static_cast<int>(threadIdx.x) < rows + step) {
      long_work(out);
      is_long = lengths[threadIdx.x] > 7;
      has_none = false;
      break;
    }
    long_work(out + 777);
  }
  const unsigned lanes = __ballot_sync(kAllLanes, is_long);
  float sum = 1.0f;
  if (has_none) sum += table[lanes];  // expect: CT02
  out[threadIdx.x] = sum;
}

// Through a sum over the warp, into a uniform register.
//
// sass: REDUX.SUM.S32 UR\d+
__global__ void L29c_warp_reduction(const int* lengths, float* out) {
  const int sum = __reduce_add_sync(kAllLanes, lengths[threadIdx.x]);  // expect: CT04
  if (sum > 7) long_work(out);                                         // expect: CT01
  out[threadIdx.x] = 1.0f;
}

// Through a match of the lanes that hold the same segment.
//
// sass: MATCH.ANY
__global__ void L29c_match(const int* segments, const float* table, float* out) {
  const unsigned same = __match_any_sync(kAllLanes, segments[threadIdx.x]);  // expect: CT04
  out[threadIdx.x] = table[same];                                            // expect: CT02
}
