#include "proof/cases.h"

#include <cmath>
#include <limits>

namespace dhp::proof {
namespace {

// Sizes lie around the tiles and blocks of the kernels (6, 16, 64 and 128) and around a split of the keys
// (512), so that the tails run too. D is a multiple of 8: the Python side pads it.
std::vector<Case> make_cases() {
  //                          V  B  T    S    N  K  D
  std::vector<Case> all;
  auto add = [&all](const char* name, Shape shape) -> Case& {
    all.push_back({name, shape});
    return all.back();
  };
  add("plain", {1, 1, 97, 65, 2, 2, 24});
  add("one_position", {1, 2, 1, 1, 1, 1, 8});
  add("shared_keys", {1, 2, 33, 70, 4, 2, 8});
  add("one_key_head", {1, 1, 33, 64, 3, 1, 72});
  add("head_64", {1, 1, 128, 64, 1, 1, 64});
  add("head_256", {1, 1, 5, 66, 1, 1, 256});
  add("one_left", {1, 1, 7, 67, 1, 1, 24});  // after tiles of six rows
  add("two_left", {1, 1, 8, 14, 1, 1, 24});
  add("three_left", {1, 1, 9, 15, 1, 1, 24});
  add("four_left", {1, 1, 10, 16, 1, 1, 24});
  add("five_left", {1, 1, 95, 17, 1, 1, 40});
  Case& decode = add("decode", {1, 2, 1, 577, 4, 1, 64});
  decode.key_value_lengths = true;
  Case& causal = add("causal", {1, 1, 70, 130, 2, 2, 8});
  causal.right = 0;
  Case& window = add("window", {1, 1, 131, 97, 2, 1, 8});
  window.left = 40, window.right = 3;
  Case& blind = add("window_sees_nothing", {1, 1, 9, 65, 1, 1, 8});
  blind.left = 3, blind.right = -5;
  auto add_bias = [&](const char* name, unsigned axes, DType dtype) -> Case& {
    Case& c = add(name, {1, 2, 35, 67, 4, 2, 8});
    c.has_bias = true, c.bias_axes = axes, c.bias_dtype = dtype;
    return c;
  };
  add_bias("bias_full", kAll, DType::kFloat32);
  add_bias("bias_heads", kN | kT | kS, DType::kBFloat16);
  add_bias("bias_keys", kB | kS, DType::kFloat16);
  add_bias("bias_queries", kN | kT, DType::kFloat32);
  add_bias("bias_one_value", kNone, DType::kBFloat16);
  auto add_mask = [&](const char* name, unsigned axes) {
    Case& c = add(name, {1, 2, 35, 67, 4, 2, 8});
    c.has_mask = true, c.mask_axes = axes;
  };
  add_mask("mask_full", kAll);
  add_mask("mask_keys", kB | kS);
  add_mask("mask_queries", kB | kN | kT);
  Case& queries = add("query_lengths", {1, 3, 35, 67, 2, 2, 8});
  queries.query_lengths = true;
  Case& keys = add("key_value_lengths", {1, 3, 35, 130, 2, 1, 8});
  keys.key_value_lengths = true;
  Case& lengths = add("both_lengths", {1, 1, 5, 131, 1, 1, 8});
  lengths.query_lengths = lengths.key_value_lengths = true;
  Case& mapped = add_bias("mapped", kV | kS, DType::kFloat32);
  mapped.shape.V = 2, mapped.keys_unmapped = true;
  Case& small = add_bias("small", kN | kT | kS, DType::kFloat32);
  small.shape = {1, 1, 9, 70, 2, 1, 8};
  small.left = 60, small.right = 5;
  small.has_mask = true, small.mask_axes = kB | kS;
  small.query_lengths = small.key_value_lengths = true;
  Case& everything = add_bias("everything", kN | kT | kS, DType::kBFloat16);
  everything.shape = {2, 2, 26, 131, 4, 2, 24};
  everything.left = 90, everything.right = 5;
  everything.has_mask = true, everything.mask_axes = kB | kS;
  everything.query_lengths = everything.key_value_lengths = true;
  return all;
}

float ordinary(Random& random, float) { return random.normal(); }
float zero(Random&, float) { return 0.0f; }
float one(Random&, float) { return 1.0f; }
float rising(Random&, float position) { return 8.0f * position; }
float falling(Random&, float position) { return 8.0f - 8.0f * position; }
float peaked(Random& random, float) { return random.uniform() < 0.02f ? 300.0f : random.normal(); }
float sparse(Random& random, float) { return random.uniform() < 0.9f ? 0.0f : random.normal(); }
float huge(Random& random, float) { return random.normal() * 1e30f; }
float tiny(Random& random, float) { return random.normal() * 1e-30f; }
float some_nan(Random& random, float) {
  return random.uniform() < 0.1f ? std::numeric_limits<float>::quiet_NaN() : random.normal();
}
float some_infinite(Random& random, float) {
  const float infinity = std::numeric_limits<float>::infinity();
  const float choice = random.uniform();
  return choice < 0.05f ? infinity : choice < 0.1f ? -infinity : random.normal();
}
float subnormal(Random& random, float) { return (random.uniform() - 0.5f) * 0x1p-126f; }

}  // namespace

const std::vector<Case>& cases() {
  static const std::vector<Case> all = make_cases();
  return all;
}

const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::kFloat32: return "float32";
    case DType::kBFloat16: return "bfloat16";
    case DType::kFloat16: return "float16";
  }
  return "unknown";
}

uint32_t Random::bits() {
  state_ = state_ * 6364136223846793005u + 1442695040888963407u;  // Knuth's MMIX generator
  return static_cast<uint32_t>(state_ >> 32);
}

float Random::normal() {  // the sum of twelve uniform numbers, less its mean: close enough, and without libm
  float sum = -6.0f;
  for (int i = 0; i < 12; ++i) sum += uniform();
  return sum;
}

Secrets ordinary_secrets() { return {"ordinary", ordinary, ordinary}; }
Secrets subnormal_secrets() { return {"subnormal", subnormal, subnormal}; }
Secrets subnormal_keys() { return {"subnormal_keys", ordinary, subnormal}; }

std::vector<Secrets> sorts_of_secret() {
  std::vector<Secrets> sorts = {
      ordinary_secrets(),
      {"zero", zero, zero},
      {"constant", one, one},
      {"rising", rising, rising},
      {"falling", rising, falling},
      {"peaked", peaked, peaked},
      {"sparse", sparse, sparse},
      {"huge", huge, huge},
      {"tiny", tiny, tiny},
      {"nan", some_nan, some_nan},
      {"infinite", some_infinite, some_infinite},
      subnormal_secrets(),
      subnormal_keys(),
  };
  Secrets masked = ordinary_secrets(), seen = ordinary_secrets();
  masked.name = "masked_out", masked.mask = Secrets::Mask::kNothing;
  seen.name = "all_seen", seen.mask = Secrets::Mask::kEverything;
  sorts.push_back(masked);
  sorts.push_back(seen);
  return sorts;
}

std::vector<Secrets> every_length(const Shape& shape) {
  std::vector<Secrets> sorts;
  const auto last = static_cast<int32_t>(shape.T > shape.S ? shape.T : shape.S) + 1;
  for (int32_t length = -1; length <= last; ++length) {
    Secrets secrets = ordinary_secrets();
    secrets.name = "length";
    secrets.query_length = secrets.key_value_length = length;
    sorts.push_back(secrets);
  }
  return sorts;
}

}  // namespace dhp::proof
