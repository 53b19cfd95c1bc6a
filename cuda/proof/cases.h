// The calls that the proof makes, and the secrets it makes them with.

#pragma once

#include <cstdint>
#include <vector>

#include "params.h"

namespace dhp::proof {

// Full axes of a bias or mask; the others have size 1 and stride 0.
enum Axes : unsigned { kNone = 0, kV = 1, kB = 2, kN = 4, kT = 8, kS = 16, kAll = kB | kN | kT | kS };

// One attention call but for its dtype: all that is public.
struct Case {
  const char* name;
  Shape shape;
  int64_t left = -1, right = -1;  // band; -1: no limit
  bool has_bias = false;
  unsigned bias_axes = kNone;
  DType bias_dtype = DType::kFloat32;
  bool has_mask = false;
  unsigned mask_axes = kNone;
  bool query_lengths = false, key_value_lengths = false;
  bool keys_unmapped = false;  // key and value have no V axis; query and the rest have
};

const std::vector<Case>& cases();
inline constexpr DType kDTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};
const char* dtype_name(DType dtype);

// Numbers that look random and are the same in every run.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2 + 1) {}
  uint32_t bits();
  float uniform() { return static_cast<float>(bits() >> 8) * 0x1p-24f; }  // in [0, 1)
  float normal();

 private:
  uint64_t state_;
};

// How one sort of secret fills the arrays of a call.
struct Secrets {
  enum class Mask { kRandom, kNothing, kEverything };
  static constexpr int32_t kRandomLength = INT32_MIN;

  const char* name;
  // A value of query, d_out, d_lse and bias, and one of key and value; position runs from 0 to 1 along a row
  // axis.
  float (*query)(Random&, float position);
  float (*key)(Random&, float position);
  Mask mask = Mask::kRandom;
  int32_t query_length = kRandomLength, key_value_length = kRandomLength;  // the same for the whole batch
};

// Every sort of value, then every length from -1 to one past the end.
std::vector<Secrets> sorts_of_secret();
std::vector<Secrets> every_length(const Shape& shape);
Secrets ordinary_secrets();
Secrets subnormal_secrets();
Secrets subnormal_keys();

}  // namespace dhp::proof
