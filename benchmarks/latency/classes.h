// The classes of operands that every probe is timed with.

#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "probe.h"

namespace latency {

// Operands of one class for all lanes: [operand][word][lane], then the guard of each lane.
struct Class {
  std::string name;
  std::vector<uint32_t> words;  // [kClassWords]
};

// The class that others are compared with; it comes twice, with equal words, under two names.
inline constexpr std::string_view kReference = "normal";
inline constexpr std::string_view kReferenceAgain = "normal again";

// The classes for a probe whose operands are read as `kinds`, with every guard on.
std::vector<Class> operand_classes(const std::string& kinds, uint64_t seed);

// Guards on, off and mixed, on operands of the reference class and some hard ones.
std::vector<Class> guard_classes(const std::string& kinds, bool uniform, uint64_t seed);

}  // namespace latency
