// Key and value rows as attention_fwd_sm90 wants them where true lengths are given: past the length a key row
// is the sequence's first, and a value row is 0. It comes first on the stream.
//
// Constant time: every row is read and written, whatever the length. A select chooses.

#pragma once

#include <cstdint>

#include "device/ct.cuh"
#include "device/divisor.cuh"
#include "device/rows.cuh"
#include "device/score.cuh"
#include "params.h"

namespace dhp {

struct RealRowsParams {
  Shape shape;  // V of the copies
  InRows key, value;
  Lengths lengths;
  uint4 *real_key, *real_value;  // [V, B, S, K, D], dense
  Divisor blocks, batch;         // blocks of one sequence; B
  Divisor row_chunks;            // of 16 bytes, in the K heads of one position
};

struct RealRowsTiles {
  static constexpr int kThreads = 256;
  static constexpr int kRows = 8;           // that a thread copies one chunk of
  static constexpr int kChunkElements = 8;  // of 16 bits
};

__device__ inline uint4 ct_keep(CtMask mask, uint4 chunk) {
  return {chunk.x & mask.bits, chunk.y & mask.bits, chunk.z & mask.bits, chunk.w & mask.bits};
}
__device__ inline uint4 operator|(uint4 a, uint4 b) { return {a.x | b.x, a.y | b.y, a.z | b.z, a.w | b.w}; }

// Grid: `blocks` blocks for each sequence, counted along batch and V.
//
// DType is that of key and value, whose bits alone count here.
template <DType dtype>
__global__ void __launch_bounds__(RealRowsTiles::kThreads)
    attention_fwd_real_rows(const __grid_constant__ RealRowsParams params) {
  using Tiles = RealRowsTiles;
  const Shape& shape = params.shape;
  uint32_t rest = ptx::block_index();
  uint32_t chunk = params.blocks.take_index(rest) * Tiles::kThreads + threadIdx.x, rows = chunk;
  const int32_t b = static_cast<int32_t>(params.batch.take_index(rest)), v = static_cast<int32_t>(rest);
  chunk = params.row_chunks.take_index(rows);
  const int32_t first = static_cast<int32_t>(rows) * Tiles::kRows, S = static_cast<int32_t>(shape.S);
  if (first >= S) return;

  const uint32_t channels = static_cast<uint32_t>(shape.D) / Tiles::kChunkElements;
  const int32_t head = static_cast<int32_t>(chunk / channels);
  const int32_t channel = static_cast<int32_t>(chunk % channels) * Tiles::kChunkElements;
  const auto chunk_at = [&](const InRows& all, int32_t row) {
    return *reinterpret_cast<const uint4*>(row_at<dtype>(all, {v, b, row, head}) + channel);
  };
  const int32_t length = load_length(params.lengths, v, b);
  const uint4 first_key = ct_keep(ct_less(0, length), chunk_at(params.key, 0));
  uint4 key[Tiles::kRows], value[Tiles::kRows];
#pragma unroll
  for (int i = 0; i < Tiles::kRows; ++i) {
    key[i] = chunk_at(params.key, min(first + i, S - 1));
    value[i] = chunk_at(params.value, min(first + i, S - 1));
  }
#pragma unroll
  for (int i = 0; i < Tiles::kRows; ++i) {
    const CtMask is_real = ct_less(first + i, length);
    const int64_t to = ((v * shape.B + b) * shape.S + first + i) * params.row_chunks.divisor + chunk;
    if (first + i < S) {
      params.real_key[to] = ct_keep(is_real, key[i]) | ct_keep(~is_real, first_key);
      params.real_value[to] = ct_keep(is_real, value[i]);
    }
  }
}

}  // namespace dhp
