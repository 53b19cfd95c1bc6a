// Branches that a secret steers: the observer sees which instructions run, and for how long.

#include "force.cuh"

// Works on rows of positive score: the time tells the sign.
//
// sass: @!?P\d BRA
__global__ void L01_branch_on_score(const float* scores, float* out) {
  const float score = scores[blockIdx.x];
  if (score > 0.0f) long_work(out);  // expect: CT01
  out[blockIdx.x] = score;
}

// Works on rows before the true length: the time tells the length inside the padding.
//
// sass: @!?P\d BRA
__global__ void L01_branch_on_length(const int* lengths, float* out) {
  const int length = lengths[blockIdx.y];
  if (static_cast<int>(blockIdx.x) < length) long_work(out);  // expect: CT01
  out[blockIdx.x] = static_cast<float>(blockIdx.x);
}

// Works if a score of the warp is positive: what the warp agrees on is as secret as what it agrees about.
//
// sass: VOTE.ANY P\d
// sass: @!P\d BRA
__global__ void L06_branch_on_vote_over_scores(const float* scores, float* out) {
  if (__any_sync(0xffffffffu, scores[threadIdx.x] > 0.0f)) long_work(out);  // expect: CT01
  out[threadIdx.x] = 1.0f;
}

// Works if the mask keeps a key of the tile: the time tells which tiles are empty.
//
// sass: VOTE.ANY P\d
// sass: @!P\d BRA
__global__ void L06_branch_on_vote_over_mask(const unsigned char* mask, float* out) {
  if (__any_sync(0xffffffffu, mask[threadIdx.x] != 0)) long_work(out);  // expect: CT01
  out[threadIdx.x] = 1.0f;
}

// Takes a turn for each positive score of the warp, and visits that lane's row: the time tells how many there
// are, the addresses which.
//
// sass: VOTE.ANY R\d+
// sass: FLO
// sass: @P\d BRA
__global__ void L07_loop_over_ballot_of_scores(const float* scores, float* out) {
  unsigned lanes = __ballot_sync(0xffffffffu, scores[threadIdx.x] > 0.0f);
  while (lanes != 0) {                  // expect: CT01
    const int lane = __ffs(lanes) - 1;  // expect: CT04
    out[lane] += 1.0f;                  // expect: CT02
    lanes &= lanes - 1;
  }
}

// Takes a turn for each key that the mask keeps: the time tells how many.
//
// sass: VOTE.ANY R\d+
// sass: @P\d BRA
__global__ void L07_loop_over_ballot_of_mask(const unsigned char* mask, float* out) {
  unsigned lanes = __ballot_sync(0xffffffffu, mask[threadIdx.x] != 0);
  while (lanes != 0) {  // expect: CT01
    long_work(out);
    lanes &= lanes - 1;
  }
}

// One body for each segment: the instructions tell the segment. Many bodies become jumps through a table of
// constants.
//
// sass: LDC R\d+, c\[0x2\]\[R\d+
// sass: BRX R\d+
__global__ void L08_switch_over_segment(const int* segments, float* out) {
  switch (segments[blockIdx.x]) {  // expect: CT01, CT02
    case 0: long_work(out); break;
    case 1: out[threadIdx.x] = 7.0f; break;
    case 2: long_work(out + 64); break;
    case 3: out[64 - threadIdx.x] = 3.0f; break;
    case 4: long_work(out + 256); break;
    case 5: out[3 * threadIdx.x] += out[7]; break;
    case 6: long_work(out + 1024); break;
    case 7: out[5 * threadIdx.x] *= out[9]; break;
  }
  out[blockIdx.x] = 1.0f;
}

// Few bodies become a tree of branches.
//
// sass: @!P\d BRA
__global__ void L08_switch_over_score(const float* scores, float* out) {
  switch (__float_as_int(scores[blockIdx.x]) >> 30) {  // expect: CT01
    case -1: long_work(out); break;
    case 0: out[threadIdx.x] += 7.0f; break;
    case 1: long_work(out + 64); break;
  }
  out[blockIdx.x] = 1.0f;
}

// Works where a public and a secret claim do not both hold, in one branch whose guard is the public one: the
// secret one is an operand.
//
// policy: public buffer 1
// sass: @!P\d BRA P\d
__global__ void L10_branch_with_secret_operand_predicate(const float* scores, const int* pages, float* out) {
  const float score = scores[threadIdx.x];
  const int page = pages[pages[threadIdx.x]];
  if (!(score > 0.0f && page < 7)) long_work(out);  // expect: CT01
  out[threadIdx.x] = score;
}

// The same with a length.
//
// policy: public buffer 1
// sass: @!P\d BRA P\d
__global__ void L10_branch_with_length_as_operand_predicate(const int* lengths, const int* pages,
                                                            float* out) {
  const int length = lengths[blockIdx.x];
  const int page = pages[pages[threadIdx.x]];
  if (!(static_cast<int>(threadIdx.x) < length && page < 7)) long_work(out);  // expect: CT01
  out[threadIdx.x] = static_cast<float>(page);
}
