// What one case is and what one run of its kernel needs: the words that probes and host share.
//
// A probe names one opcode. A case is that probe in one form: a dependent chain in one warp (latency) or
// independent chains in many warps (throughput under contention), each without a guard or with one. A trial
// times one case once with operands of one class.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace latency {

constexpr int kOperands = 3;  // a, b, c
constexpr int kWords = 4;     // registers of one operand in one lane
constexpr int kLanes = 32;
constexpr int kGuardRow = kOperands * kWords;          // the guard of each lane comes after the operands
constexpr int kClassWords = (kGuardRow + 1) * kLanes;  // one class: [operand][word][lane], then [lane]
constexpr int kZeros = 8;
constexpr int kStoreWords = 1 << 16;  // global memory that memory probes read and write
constexpr int kTileSide = 32;  // words a side of the tile that the copy engine moves; it starts the store

// A CUtensorMap, without the driver's header.
struct alignas(64) TensorMap {
  unsigned char bytes[128];
};

// Kernel argument: one launch runs all trials of a case, classes in random order.
struct Run {
  TensorMap tile;           // the first kTileSide * kTileSide words of `store`
  const uint32_t* classes;  // [place][kClassWords]
  const int32_t* places;    // [trials] where the class of each trial lies
  const uint32_t* naps;     // [trials] random bits that owe nothing to the class
  int64_t* cycles;          // [trials] first clock read to last, over all warps of the block
  uint32_t* store;          // [kStoreWords]
  const uint32_t* zeros;    // [kZeros][kLanes] zeros that the compiler cannot know
  int32_t trials;
  uint32_t uniform_zero;  // one of them in the constant bank
};

using Kernel = void (*)(Run);

// How the words of an operand are to be read, and so which values its classes hold.
enum class Kind : char {
  kNone = '-',
  kFloat = 'f',
  kDouble = 'd',  // two words, low first
  kHalf = 'h',    // two to a word
  kBfloat = 'b',  // two to a word
  kE4m3 = 'q',    // four to a word
  kInteger = 'i',
  kBytes = 's',  // four integers to a word
};

// What surrounds the instruction, which decides how exactly its time can be told.
enum class Noise { kInsideSm, kBeyondSm };

struct Case {
  std::string probe;
  std::string form;         // "chain", "stream", "chain guarded", "stream guarded"
  std::string opcode;       // regular expression for the whole mnemonic in SASS
  std::string kernel_name;  // symbol in the cubin
  std::string kinds;        // one Kind for each of a, b, c
  Kernel kernel;
  int threads;
  int in_code;            // times that the opcode stands between the two clock reads
  int trips;              // of the one loop between them
  bool guarded;           // the classes are guards, and the operands the reference class
  bool guard_in_code;     // the guard shows as @P on the opcode
  bool uniform_guard;     // all lanes need the same guard
  bool control;           // a probe that must be flagged
  bool uniform_operands;  // the operands come through the constant bank, into uniform registers
  Noise noise;
};

std::vector<Case>& cases();

// Puts the classes and the places of the trials where probes of the uniform datapath find them.
void set_uniform_trials(const std::vector<uint32_t>& classes, const std::vector<int32_t>& places);

struct Registration {
  explicit Registration(const Case& added) { cases().push_back(added); }
};

}  // namespace latency
