// The order of trials, and all else about them that must owe nothing to the class.

#pragma once

#include <cstdint>
#include <vector>

#include "classes.h"

namespace latency {

constexpr int kPlaces = 8;  // of each class in memory

struct Plan {
  std::vector<uint32_t> words;  // [place][kClassWords]
  std::vector<int32_t> owners;  // [trial] the class
  std::vector<int32_t> places;  // [trial] one of the places where that class lies
  std::vector<uint32_t> naps;   // [trial] random bits
};

// Each round times every class once, in a new random order, so that no class has a turn of its own; each
// class lies in several random places, of which each trial takes a random one, so that no class has an
// address of its own.
Plan plan_trials(const std::vector<Class>& classes, int rounds, uint64_t seed);

}  // namespace latency
