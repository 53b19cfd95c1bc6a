// Turns: how tasks that add to the same place do so in one fixed order, without a thread too many.
//
// A turn counts the tasks that have added to its place. A task waits until all that come before it have. They
// have lower numbers, so a running thread has them: the wait ends. Whose turn it is depends on shapes alone.

#pragma once

#include <sched.h>
#include <stdint.h>

#include "host/simd.h"

namespace dhp::DHP_ISA {

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield");
#endif
}

inline void await_turn(const int32_t* turn, int32_t expected) {
  constexpr int kPatience = 1000;  // then the processor goes to another thread, perhaps the awaited one
  for (int tries = 0; __atomic_load_n(turn, __ATOMIC_ACQUIRE) != expected; ++tries)
    tries < kPatience ? relax() : static_cast<void>(sched_yield());
}

inline void end_turn(int32_t* turn, int32_t mine) { __atomic_store_n(turn, mine + 1, __ATOMIC_RELEASE); }

}  // namespace dhp::DHP_ISA
