// Keys past a secret true length, hidden without looking at every score.
//
// They come as copies of key 0, with value rows of 0 (kernels/attention_fwd_real_rows.cuh). So what they
// score is the score of a key that every row sees: it changes no maximum; and what they weigh changes no
// weighted sum. Only the sum of weights is left to mend, tile by tile: in a tile that the length cuts all
// hidden keys weigh what its last one does, and that times their number is taken off. Tiles wholly past the
// length come before it. Where weights are rounded, as they are where a product sums them, equal ones add up
// without error and leave nothing; else nothing in such a tile weighs anything. A tile in which the band
// hides something looks at every score anyway.

#pragma once

#include <cstdint>

#include "device/ct.cuh"
#include "device/warp.cuh"

namespace dhp {

inline constexpr int64_t kMostHiddenKeys = 1 << 24;  // more cannot be counted in float32

// For the tile at hand of kKeyRows keys, weights not rounded.
template <bool kHasLengths, int kKeyRows, bool kAreWeightsRounded>
class HiddenKeys {
 public:
  //   length  secret; any value is legal
  __device__ void set_length(int32_t length) { length_ = max(length, 0); }
  __device__ int32_t length() const { return length_; }

  // The tile at position `key`; a tile that ends before position 0 has none of them.
  __device__ void enter(int32_t key) { number_ = min(max(key + kKeyRows - length_, 0), kKeyRows); }

  // What the scores of the tile are compared with, where it is `reference` for keys that count.
  __device__ float reference(float reference) const {
    if constexpr (!kHasLengths) return reference;
    return ct_select(ct_less(number_, kKeyRows), reference, 0x1p127f);
  }
  // A sum of weights without those of the hidden keys. The last lane of four has the tile's last key, and
  // takes all of them off.
  __device__ float without(float sum, float last_weight) const {
    if constexpr (!kHasLengths) return sum;
    const int32_t own = static_cast<int32_t>(threadIdx.x) % 4 == 3 ? number_ : 0;
    return fmaf(-static_cast<float>(own), last_weight, sum);
  }

 private:
  int32_t length_, number_;
};

// Weights rounded. What of a tile is hidden is counted in tiles, down from the last one: that takes two
// instructions a tile, none of which converts.
template <bool kHasLengths, int kKeyRows>
class HiddenKeys<kHasLengths, kKeyRows, true> {
 public:
  __device__ void set_length(int32_t length) { length_ = max(length, 0); }
  __device__ int32_t length() const { return length_; }

  // Before the tile at `key`; then each one is entered, up to the first.
  __device__ void begin(int32_t key) {
    next_ = static_cast<float>(key + kKeyRows - length_) * (1.0f / kKeyRows);
  }
  __device__ void enter(int32_t key) {
    part_ = key < 0 ? 0.0f : __saturatef(next_);
    next_ -= 1.0f;
  }

  __device__ float reference(float reference) const { return reference; }
  // The sum of the last lane of four, which has the tile's last key.
  __device__ float without(float sum, float last_weight) const {
    if constexpr (!kHasLengths) return sum;
    return fmaf(part_ * -kKeyRows, last_weight, sum);
  }

 private:
  int32_t length_;
  float part_, next_;
};

}  // namespace dhp
