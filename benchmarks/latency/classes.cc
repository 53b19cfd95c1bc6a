#include "classes.h"

#include <array>
#include <stdexcept>

namespace latency {
namespace {

enum class Value {
  kZero,
  kOne,
  kNormal,  // random, near 1 in size; for integers random bits
  kRandomBits,
  kSubnormal,       // for integers a small number
  kSmallestNormal,  // times 1 to 2; for integers the lowest
  kInfinity,        // for integers the highest
  kNegativeInfinity,
  kQuietNan,
  kSignallingNan,
  kLargest,
  kPowerOfTwo,     // the same for all operands of a lane
  kNegativePower,  // its negative
  kSquareOfPower,  // its square
  kAlternating,    // 0101... or 1010... by lane
  kAllOnes,
  kMixed,  // another of the above in each lane
};

struct Recipe {
  const char* name;
  std::array<Value, kOperands> values;
};

constexpr std::array<Value, kOperands> all(Value value) { return {value, value, value}; }

const Recipe kRecipes[] = {
    {"normal", all(Value::kNormal)},
    {"normal again", all(Value::kNormal)},
    {"zero", all(Value::kZero)},
    {"one", all(Value::kOne)},
    {"random bits", all(Value::kRandomBits)},
    {"subnormal", all(Value::kSubnormal)},
    {"smallest normal", all(Value::kSmallestNormal)},
    {"infinity", all(Value::kInfinity)},
    {"quiet NaN", all(Value::kQuietNan)},
    {"signalling NaN", all(Value::kSignallingNan)},
    {"largest", all(Value::kLargest)},
    {"alternating bits", all(Value::kAlternating)},
    {"all ones", all(Value::kAllOnes)},
    {"mixed by lane", all(Value::kMixed)},
    {"subnormal x large", {Value::kSubnormal, Value::kLargest, Value::kNormal}},
    {"large x subnormal", {Value::kLargest, Value::kSubnormal, Value::kNormal}},
    {"result subnormal", {Value::kSmallestNormal, Value::kNormal, Value::kSubnormal}},
    {"infinity x zero", {Value::kInfinity, Value::kZero, Value::kNormal}},
    {"opposite infinities", {Value::kInfinity, Value::kNegativeInfinity, Value::kInfinity}},
    {"cancellation", {Value::kPowerOfTwo, Value::kNegativePower, Value::kSquareOfPower}},
    {"normal x zero", {Value::kNormal, Value::kZero, Value::kZero}},
    {"zero x normal", {Value::kZero, Value::kNormal, Value::kNormal}},
    {"all ones x one", {Value::kAllOnes, Value::kOne, Value::kZero}},
};
constexpr Value kMixture[] = {Value::kZero,        Value::kOne,           Value::kNormal,
                              Value::kRandomBits,  Value::kSubnormal,     Value::kInfinity,
                              Value::kQuietNan,    Value::kSignallingNan, Value::kLargest,
                              Value::kAlternating, Value::kAllOnes,       Value::kSmallestNormal};

// splitmix64: the same words on every machine.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t bits() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  uint64_t below(uint64_t bound) { return bits() % bound; }

 private:
  uint64_t state_;
};

struct Format {
  int bits, exponent, mantissa;  // exponent 0: an integer

  uint64_t mask() const { return bits == 64 ? ~uint64_t{0} : (uint64_t{1} << bits) - 1; }
  uint64_t top_exponent() const { return (uint64_t{1} << exponent) - 1; }
  uint64_t bias() const { return top_exponent() >> 1; }
  uint64_t compose(uint64_t sign, uint64_t power, uint64_t fraction) const {
    return (sign << (bits - 1)) | (power << mantissa) | (fraction & ((uint64_t{1} << mantissa) - 1));
  }
};

Format format_of(Kind kind) {
  switch (kind) {
    case Kind::kFloat: return {32, 8, 23};
    case Kind::kDouble: return {64, 11, 52};
    case Kind::kHalf: return {16, 5, 10};
    case Kind::kBfloat: return {16, 8, 7};
    case Kind::kE4m3: return {8, 4, 3};
    case Kind::kInteger: return {32, 0, 0};
    case Kind::kBytes: return {8, 0, 0};
    case Kind::kNone: return {32, 0, 0};
  }
  throw std::invalid_argument("an operand kind is not one of probe.h's");
}

// What all operands of one element in one lane share.
struct Place {
  int lane;
  int small_power;  // exponent of kPowerOfTwo
};

uint64_t integer(Value value, const Format& format, const Place& place, Random& random) {
  const uint64_t lowest = uint64_t{1} << (format.bits - 1);
  switch (value) {
    case Value::kZero: return 0;
    case Value::kOne: return 1;
    case Value::kSubnormal: return random.below(32);
    case Value::kSmallestNormal: return lowest;
    case Value::kInfinity:
    case Value::kLargest: return lowest - 1;
    case Value::kNegativeInfinity: return lowest;
    case Value::kPowerOfTwo: return uint64_t{1} << (place.lane % format.bits);
    case Value::kNegativePower: return ~(uint64_t{1} << (place.lane % format.bits)) + 1;
    case Value::kSquareOfPower: return uint64_t{1} << (2 * place.lane % format.bits);
    default: return random.bits();
  }
}

uint64_t floating(Value value, const Format& format, const Place& place, Random& random) {
  const uint64_t sign = random.below(2), fraction = random.bits(), top = format.top_exponent(),
                 bias = format.bias();
  const uint64_t quiet = uint64_t{1} << (format.mantissa - 1);
  switch (value) {
    case Value::kZero: return format.compose(sign, 0, 0);
    case Value::kOne: return format.compose(0, bias, 0);
    case Value::kNormal: return format.compose(sign, bias - 2 + random.below(4), fraction);
    case Value::kSubnormal: return format.compose(sign, 0, fraction | 1);
    case Value::kSmallestNormal: return format.compose(sign, 1, fraction);
    case Value::kInfinity: return format.compose(0, top, 0);
    case Value::kNegativeInfinity: return format.compose(1, top, 0);
    case Value::kQuietNan: return format.compose(sign, top, fraction | quiet);
    case Value::kSignallingNan: return format.compose(sign, top, (fraction & ~quiet) | 1);
    case Value::kLargest: return format.compose(sign, top - 1, ~uint64_t{0});
    case Value::kPowerOfTwo: return format.compose(0, bias + place.small_power, 0);
    case Value::kNegativePower: return format.compose(1, bias + place.small_power, 0);
    case Value::kSquareOfPower: return format.compose(0, bias + 2 * place.small_power, 0);
    default: return random.bits();
  }
}

uint64_t element(Value value, const Format& format, const Place& place, Random& random) {
  if (value == Value::kMixed) value = kMixture[random.below(std::size(kMixture))];
  if (value == Value::kAllOnes) return format.mask();
  if (value == Value::kAlternating)
    return (place.lane % 2 ? 0xaaaaaaaaaaaaaaaa : 0x5555555555555555) & format.mask();
  const uint64_t bits =
      format.exponent ? floating(value, format, place, random) : integer(value, format, place, random);
  return bits & format.mask();
}

void fill(Value value, Kind kind, int operand, uint64_t seed, std::vector<uint32_t>& words) {
  const Format format = format_of(kind);
  for (int lane = 0; lane < kLanes; ++lane) {
    const Place place{lane, lane % 4};
    Random random(seed + 1000003 * (operand * kLanes + lane + 1));
    const auto word = [&](int index) -> uint32_t& {
      return words[(operand * kWords + index) * kLanes + lane];
    };
    for (int index = 0; index < kWords; ++index) {
      if (format.bits == 64) {
        const uint64_t bits = element(value, format, place, random);
        word(index) = static_cast<uint32_t>(bits);
        word(++index) = static_cast<uint32_t>(bits >> 32);
        continue;
      }
      for (int shift = 0; shift < 32; shift += format.bits) {
        word(index) |= static_cast<uint32_t>(element(value, format, place, random) << shift);
      }
    }
  }
}

Class make(const Recipe& recipe, const std::string& kinds, uint64_t seed) {
  Class made{recipe.name, std::vector<uint32_t>(kClassWords)};
  for (int operand = 0; operand < kOperands; ++operand) {
    fill(recipe.values[operand], static_cast<Kind>(kinds[operand]), operand, seed, made.words);
  }
  for (int lane = 0; lane < kLanes; ++lane) made.words[kGuardRow * kLanes + lane] = 1;
  return made;
}

const Recipe& recipe_named(std::string_view name) {
  for (const Recipe& recipe : kRecipes) {
    if (recipe.name == name) return recipe;
  }
  throw std::invalid_argument("no class of operands is called " + std::string(name));
}

}  // namespace

std::vector<Class> operand_classes(const std::string& kinds, uint64_t seed) {
  std::vector<Class> made;
  for (const Recipe& recipe : kRecipes) made.push_back(make(recipe, kinds, seed));
  return made;
}

std::vector<Class> guard_classes(const std::string& kinds, bool uniform, uint64_t seed) {
  const auto with = [&](const char* name, std::string_view recipe, auto guard) {
    Class made = make(recipe_named(recipe), kinds, seed);
    made.name = name;
    for (int lane = 0; lane < kLanes; ++lane) made.words[kGuardRow * kLanes + lane] = guard(lane);
    return made;
  };
  const auto on = [](int) { return 1u; };
  const auto off = [](int) { return 0u; };
  std::vector<Class> made = {with("on", kReference, on),
                             with("on again", kReference, on),
                             with("off", kReference, off),
                             with("on with subnormal", "subnormal", on),
                             with("off with subnormal", "subnormal", off),
                             with("on with signalling NaN", "signalling NaN", on),
                             with("off with signalling NaN", "signalling NaN", off)};
  if (!uniform) {
    made.push_back(with("mixed by lane", kReference, [](int lane) { return (0x6b8b4567u >> lane) & 1; }));
    made.push_back(with("one lane on", kReference, [](int lane) { return lane == 13 ? 1u : 0u; }));
    made.push_back(with("one lane off", kReference, [](int lane) { return lane == 13 ? 0u : 1u; }));
  }
  return made;
}

}  // namespace latency
