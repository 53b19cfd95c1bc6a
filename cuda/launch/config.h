// What a kernel is compiled for: its one template parameter, chosen from public facts alone.

#pragma once

#include "params.h"

namespace dhp {

constexpr int element_bytes(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

// A type whose members are constants. (nvcc 13.0 cannot build a kernel whose template argument is an object
// of class type: its host stub spells that type by its mangled name.)
//
// Only what pays is compiled in. Bias, mask, lengths and a scale that is not positive cost work at every
// score, so that they are an instance of their own; which of them are there is asked at run time, where the
// branch is the same for every thread of a launch.
template <DType dtype, int channels, bool has_score_operands>
struct Config {
  static constexpr DType kDType = dtype;      // of query, key, value, out and their gradients
  static constexpr int kChannels = channels;  // D rounded up to the next of 64, 128, 256
  static constexpr int kRowBytes = channels * element_bytes(dtype);
  static constexpr bool kIsWide = dtype == DType::kFloat32;
  static constexpr bool kHasScoreOperands = has_score_operands;
};

// What a score of attention_fwd_sm90 is: a positive multiple of the dot product; the same for the keys before
// a true length; for those that a mask names, by bits; or all that the operands say.
enum class Scores { kPlain, kLengths, kOperands, kMask };

// For the kernels of compute capability 9.0. Without a band every row sees every key.
template <DType dtype, int channels, Scores scores, bool has_band, bool has_few_keys = false>
struct HopperConfig : Config<dtype, channels, scores == Scores::kOperands> {  // channels: 96 and 192 too
  static constexpr bool kHasLengths = scores == Scores::kLengths;
  static constexpr bool kHasMaskBits = scores == Scores::kMask;
  static constexpr bool kHasBand = has_band;
  static constexpr bool kHasFewKeys = has_few_keys;  // its tiles are smaller; told apart where it pays
  static constexpr bool kIsSplit = false;  // whether the keys of an item are split between two blocks
};
template <DType dtype, int channels, bool has_band>
struct SplitHopperConfig : HopperConfig<dtype, channels, Scores::kPlain, has_band> {
  static constexpr bool kIsSplit = true;
};

// Whether a score is more than a positive multiple of the dot product.
inline bool has_score_operands(const Problem& problem) {
  return problem.bias.data != nullptr || problem.mask.data != nullptr ||
         problem.query_lengths.data != nullptr || problem.key_value_lengths.data != nullptr ||
         !(problem.scale > 0);
}

// Whether there is a key that some query does not see.
inline bool has_band(const Problem& problem) {
  return problem.band.left < problem.shape.T - 1 || problem.band.right < problem.shape.S - 1;
}

inline constexpr const char* kDTypesHeld = "float32, bfloat16 or float16";

// nullptr: no kernel is compiled for this dtype.
constexpr const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::kFloat32: return "float32";
    case DType::kBFloat16: return "bfloat16";
    case DType::kFloat16: return "float16";
  }
  return nullptr;
}

}  // namespace dhp
