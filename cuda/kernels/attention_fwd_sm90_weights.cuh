// What a warpgroup of attention_fwd_sm90 makes of the scores of a tile: P, rounded, and the sums of rows.

#pragma once

#include "kernels/attention_fwd_sm90_group.cuh"

namespace dhp {

// Two tiles of scores, which P has one fragment for.
template <typename Config>
template <bool kAddsToSum>
__device__ void GroupAttention<Config>::exponentiate(int k, float (&tile_sum)[kStripRows],
                                                     const float (&reference)[kStripRows]) {
#pragma unroll
  for (int tile = 2 * k; tile < 2 * k + 2; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float& score = scores_[0][tile][i];
      score = Softmax::weight(score, factors_[i / 2], reference[i / 2]);
      if constexpr (kAddsToSum) tile_sum[i / 2] += score;
    }
  }
}

template <typename Config>
__device__ void GroupAttention<Config>::add_to_sum(const float (&tile_sum)[kStripRows]) {
  if constexpr (!Tiles::kHasOnes) {
#pragma unroll
    for (int row = 0; row < kStripRows; ++row) {
      softmax_.sum[row] = fmaf(softmax_.sum[row], rescale_[row],
                               hidden_.without(tile_sum[row], scores_[0][Tiles::kKeyTiles - 1][2 * row + 1]));
    }
  }
}

template <typename Config>
__device__ void GroupAttention<Config>::exponentiate() {
  const float reference[kStripRows] = {hidden_.reference(softmax_.reference_of(0)),
                                       hidden_.reference(softmax_.reference_of(1))};
  float tile_sum[kStripRows] = {};
#pragma unroll
  for (int k = 0; k < Tiles::kDepth; ++k) exponentiate(k, tile_sum, reference);
  add_to_sum(tile_sum);
}

// The k-th part of kDepth.
template <typename Config>
__device__ void GroupAttention<Config>::rescale(int k) {
#pragma unroll
  for (int tile = k * Tiles::kOutTiles / Tiles::kDepth; tile < (k + 1) * Tiles::kOutTiles / Tiles::kDepth;
       ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) out_[tile][i] *= rescale_[i / 2];
  }
}

template <typename Config>
__device__ void GroupAttention<Config>::rescale_and_round() {
#pragma unroll
  for (int k = 0; k < Tiles::kDepth; ++k) {
    as_left_fragment<kDType>(p_[k], scores_[0], k);
    rescale(k);
  }
}

// All of it. With 64 channels the exponentials, whose unit is slow, take as long as the products. There every
// part waits for the one before, so that ptxas puts the multiplications of the output between exponentials
// instead of all multiply-adds before them.
template <typename Config>
__device__ void GroupAttention<Config>::weigh(bool is_first) {
  float reference[kStripRows] = {hidden_.reference(softmax_.reference_of(0)),
                                 hidden_.reference(softmax_.reference_of(1))};
  float tile_sum[kStripRows] = {};
#pragma unroll
  for (int k = 0; k < Tiles::kDepth; ++k) {
    exponentiate(k, tile_sum, reference);
    as_left_fragment<kDType>(p_[k], scores_[0], k);
    if (!is_first) rescale(k);
    if constexpr (Tiles::kHasOnes) {
#pragma unroll
      for (int row = 0; row < kStripRows; ++row) {
        reference[row] =
            __uint_as_float(__float_as_uint(reference[row]) ^ (p_[k][kStripRows + row] & params_.zero));
      }
    }
  }
  if constexpr (Tiles::kHasOnes) {
#pragma unroll
    for (int row = 0; row < kStripRows; ++row) {
      float& sum = out_[Tiles::kChannelTiles][2 * row];
      sum = hidden_.without(sum, last_weight(row));
    }
  }
  add_to_sum(tile_sum);
}

// The same of an item's only tile, whose weights are added before they are rounded: with few keys what the
// rounding takes and gives does not even out.
template <typename Config>
__device__ void GroupAttention<Config>::weigh_only_tile() {
  const float reference[kStripRows] = {softmax_.reference_of(0), softmax_.reference_of(1)};
  float tile_sum[kStripRows] = {};
#pragma unroll
  for (int k = 0; k < Tiles::kDepth; ++k) {
    exponentiate<true>(k, tile_sum, reference);
    as_left_fragment<kDType>(p_[k], scores_[0], k);
  }
#pragma unroll
  for (int row = 0; row < kStripRows; ++row) out_[Tiles::kChannelTiles][2 * row] = quad_sum(tile_sum[row]);
}

// What a row's last key of the tile weighs, as it is multiplied. In the last lane of four.
template <typename Config>
__device__ float GroupAttention<Config>::last_weight(int row) const {
  const uint32_t pair = p_[Tiles::kDepth - 1][kStripRows + row];
  return to_float2(reinterpret_cast<const ElementPair<kDType>&>(pair)).y;
}

}  // namespace dhp
