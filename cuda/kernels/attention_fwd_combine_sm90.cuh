// The second half of attention_fwd_decode_sm90: the parts of each query row, from the workspace, become one.

#pragma once

#include "device/divisor.cuh"
#include "device/ptx_sm90.cuh"
#include "device/row_part.cuh"
#include "params.h"

namespace dhp {

inline constexpr int kCombineThreads = 128;

struct CombineParams {
  OutRows out;
  float *row_max, *log_sum;
  PartialRows partials;
  int32_t splits;
  uint32_t num_rows;
  Divisor chunks, heads, tokens, batch;  // threads are counted along these, then V
};

// Grid: one thread for each kPartChannels channels of a row.
template <DType dtype>
__global__ void __launch_bounds__(kCombineThreads)
    attention_fwd_combine_sm90(const __grid_constant__ CombineParams params) {
  constexpr int kAtOnce = 16;
  uint32_t rest = ptx::block_index() * kCombineThreads + threadIdx.x;
  const int channel = params.chunks.take_index(rest) * kPartChannels;
  const uint32_t row = rest;
  const bool exists = row < params.num_rows;
  Place at;
  at.head = params.heads.take_index(rest);
  at.row = params.tokens.take_index(rest);
  at.b = params.batch.take_index(rest);
  at.v = rest;

  ptx::wait_for_launch_before();
  ptx::let_next_launch_start();
  if (!exists) return;
  RowPart all;
  for (int32_t split = 0; split < params.splits; split += kAtOnce) {
    RowPart parts[1 + kAtOnce];
    parts[0] = all;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int64_t from = min(split + i, params.splits - 1);  // loaded in any case: no branch between loads
      const RowPart part = load_part(params.partials, from * params.num_rows + row, channel);
      parts[1 + i] = split + i < params.splits ? part : RowPart{};
    }
    all = join(parts);
  }
  store_row<dtype>(params.out, params.row_max, params.log_sum, at, row, channel, all);
}

}  // namespace dhp
