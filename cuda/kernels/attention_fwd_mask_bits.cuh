// A mask as attention_fwd_sm90 reads it: by bits. It comes first on the stream.
//
// For each row and each tile of keys there are four words, one for each lane of the four that share the row
// in the tile's scores; a word has a bit for each score of its lane (device/band_bits.cuh). So what eight
// rows need of a tile lies side by side. The mask is read once, however many heads share it; its bits take an
// eighth of its place.
//
// Constant time: every element of the mask is read and every word written, whatever they say.

#pragma once

#include <cstdint>

#include "device/band_bits.cuh"
#include "device/divisor.cuh"
#include "device/score.cuh"
#include "device/warp.cuh"
#include "params.h"

namespace dhp {

struct MaskBitsParams {
  Shape shape;  // V, B, N and T of the mask: 1 where all share its elements
  ScorePlane<const uint8_t*> mask;
  uint32_t* bits;     // [V, B, N, tile, T, 4]
  int32_t tile_keys;  // at most 128, a multiple of 16
  bool is_in_chunks;  // whether 16 elements of the mask can be loaded at once
  Divisor tiles, row_blocks, heads, batch;
};

struct MaskBitsTiles {
  static constexpr int kThreads = 256;
  static constexpr int kChunk = 16;  // keys that a lane looks at, of one row
  static constexpr int kLanes = 8;   // that have the keys of one row
  static constexpr int kSteps = 8;   // rows that a lane looks at
  static constexpr int kStepRows = kThreads / kLanes;
  static constexpr int kRows = kSteps * kStepRows;
};

// Of four elements, which are not 0: of the first two in the lowest bits, of the others from bit 16 on.
__device__ inline uint32_t nonzero_pairs(uint32_t four) {
  const uint32_t high = (((four & 0x7f7f7f7fu) + 0x7f7f7f7fu) | four) & 0x80808080u;
  return (high >> 7 | high >> 14) & 0x00030003u;
}

// Sixteen neighbouring elements of a row of the mask, from `column` on.
__device__ inline uint4 mask_chunk(const MaskBitsParams& params, const ScorePlace& row, int32_t column) {
  constexpr int kChunk = MaskBitsTiles::kChunk;
  const int32_t last = static_cast<int32_t>(params.shape.S) - 1;
  const uint8_t* const elements = params.mask.data + offset_in(params.mask, row);
  if (params.is_in_chunks) {
    return *reinterpret_cast<const uint4*>(elements + min(column, last + 1 - kChunk));
  }
  uint32_t words[4] = {};
#pragma unroll
  for (int i = 0; i < kChunk; ++i) {
    const uint32_t element = elements[along(min(column + i, last), params.mask.stride_s)];
    words[i / 4] |= element << i % 4 * 8;
  }
  return {words[0], words[1], words[2], words[3]};
}

// The words of a row from what its eight lanes have looked at: each of two neighbouring lanes gets the one of
// number lane / 2.
//   part  of all, 0 to 7
__device__ inline uint32_t gather_word(const uint4& chunk, int part) {
  const uint32_t first = nonzero_pairs(chunk.x) | nonzero_pairs(chunk.z) << 2;
  const uint32_t second = nonzero_pairs(chunk.y) | nonzero_pairs(chunk.w) << 2;
  const uint32_t own[4] = {(first & 0xfu) << 4 * part, (first >> 16) << 4 * part, (second & 0xfu) << 4 * part,
                           (second >> 16) << 4 * part};
  const bool keeps_last = part & 4, keeps_odd = part & 2;
  uint32_t two[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t given = keeps_last ? own[i] : own[2 + i];
    two[i] = (keeps_last ? own[2 + i] : own[i]) | __shfl_xor_sync(kAllLanes, given, 4);
  }
  const uint32_t given = keeps_odd ? two[0] : two[1];
  const uint32_t word = (keeps_odd ? two[1] : two[0]) | __shfl_xor_sync(kAllLanes, given, 2);
  return word | __shfl_xor_sync(kAllLanes, word, 1);
}

// Grid: blocks are counted along the tiles, then kRows rows at a time, heads, batch and V.
//
// DType is that of query, of which nothing here depends: a kernel's name says whose it is.
template <DType dtype>
__global__ void __launch_bounds__(MaskBitsTiles::kThreads)
    attention_fwd_mask_bits(const __grid_constant__ MaskBitsParams params) {
  using Tiles = MaskBitsTiles;
  const Shape& shape = params.shape;
  uint32_t rest = ptx::block_index();
  const int32_t tile = static_cast<int32_t>(params.tiles.take_index(rest));
  const int32_t first_row = static_cast<int32_t>(params.row_blocks.take_index(rest)) * Tiles::kRows;
  const int32_t n = static_cast<int32_t>(params.heads.take_index(rest));
  const int32_t b = static_cast<int32_t>(params.batch.take_index(rest)), v = static_cast<int32_t>(rest);
  const int part = static_cast<int>(threadIdx.x) % Tiles::kLanes;
  const int32_t key = tile * params.tile_keys, T = static_cast<int32_t>(shape.T);
  const auto row_of = [&](int step) {
    return first_row + step * Tiles::kStepRows + static_cast<int32_t>(threadIdx.x) / Tiles::kLanes;
  };

  uint4 chunks[Tiles::kSteps];
#pragma unroll
  for (int step = 0; step < Tiles::kSteps; ++step) {
    chunks[step] = mask_chunk(params, {v, b, n, min(row_of(step), T - 1), 0}, key + part * Tiles::kChunk);
  }
  uint32_t* const plane =
      params.bits + (((v * shape.B + b) * shape.N + n) * params.tiles.divisor + tile) * shape.T * 4;
  const int32_t word = part / 2, end = min(static_cast<int32_t>(shape.S) - key, params.tile_keys);
  const uint32_t inside = bits_before(end, 2 * word);
#pragma unroll
  for (int step = 0; step < Tiles::kSteps; ++step) {
    const int32_t row = row_of(step);
    const uint32_t bits = gather_word(chunks[step], part) & inside;
    if (part % 2 == 0 && row < T) plane[along(row, 4) + word] = bits;
  }
}

}  // namespace dhp
