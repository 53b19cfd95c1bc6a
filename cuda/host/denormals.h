// Flush-to-zero for the life of this object, on the calling thread.
//
// Arithmetic on subnormal floats takes up to a hundred times longer on many x86 processors, so its time would
// show where they occur. With FTZ and DAZ a subnormal result or operand is zero and costs what any number
// costs.

#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace dhp {

class FlushDenormals {
 public:
  FlushDenormals() : saved_(read()) { write(saved_ | kFlush); }
  ~FlushDenormals() { write(saved_); }
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
#if defined(__x86_64__)
  static constexpr uint64_t kFlush = (1u << 15) | (1u << 6);  // MXCSR: FTZ, DAZ
  static uint64_t read() { return _mm_getcsr(); }
  static void write(uint64_t value) { _mm_setcsr(static_cast<unsigned>(value)); }
#elif defined(__aarch64__)
  static constexpr uint64_t kFlush = 1u << 24;  // FPCR: FZ
  static uint64_t read() {
    uint64_t value;
    __asm__ __volatile__("mrs %0, fpcr" : "=r"(value));
    return value;
  }
  static void write(uint64_t value) { __asm__ __volatile__("msr fpcr, %0" : : "r"(value)); }
#else
#error "flush-to-zero is not implemented for this processor; without it the CPU path is not constant-time"
#endif
  uint64_t saved_;
};

}  // namespace dhp
