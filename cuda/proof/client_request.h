// Requests to valgrind, which are no-ops outside of it.
//
// A request is a sequence of instructions that changes nothing and that no compiler emits: four rotations of
// a register that add up to a full turn, then a register exchanged with itself. valgrind recognises it while
// it translates, reads six words at the address in rax (x4), and leaves its answer in rdx (x3). The sequence
// and the numbers below are valgrind's published interface (valgrind.h, memcheck.h, callgrind.h). We write
// them ourselves so that the installed driver works under a valgrind that was not there when it was built.

#pragma once

#include <cstdarg>
#include <cstddef>
#include <cstdint>

namespace dhp::proof {

enum class Request : uintptr_t {
  kRunningOnValgrind = 0x1001,
  kCountErrors = 0x1201,
  kPrint = 0x1403,                    // a format and the address of a va_list
  kMakeMemoryUndefined = 0x4D430001,  // "MC", memcheck
  kMakeMemoryDefined = 0x4D430002,
  kGetDefinedBits = 0x4D430008,
  kZeroStatistics = 0x43540001,  // "CT", callgrind
  kToggleCollect = 0x43540002,
  kDumpStatisticsAt = 0x43540003,
};

// The answer to a request; 0 outside of valgrind.
inline uintptr_t client_request(Request request, const void* address = nullptr, uintptr_t second = 0,
                                uintptr_t third = 0) {
  volatile uintptr_t words[6] = {
      static_cast<uintptr_t>(request), reinterpret_cast<uintptr_t>(address), second, third, 0, 0};
#if defined(__x86_64__)
  uintptr_t answer = 0;
  __asm__ __volatile__(
      "rolq $3, %%rdi\n\trolq $13, %%rdi\n\trolq $61, %%rdi\n\trolq $51, %%rdi\n\txchgq %%rbx, %%rbx"
      : "+d"(answer)
      : "a"(words)
      : "cc", "memory");
  return answer;
#elif defined(__aarch64__)
  register uintptr_t answer __asm__("x3") = 0;
  register volatile uintptr_t* arguments __asm__("x4") = words;
  __asm__ __volatile__(
      "ror x12, x12, #3\n\tror x12, x12, #13\n\tror x12, x12, #51\n\tror x12, x12, #61\n\torr x10, x10, x10"
      : "+r"(answer)
      : "r"(arguments)
      : "cc", "memory");
  return answer;
#else
#error "valgrind's request sequence is not known here for this processor"
#endif
}

inline bool under_valgrind() { return client_request(Request::kRunningOnValgrind) != 0; }

// How many errors valgrind has seen in this process.
inline uintptr_t count_errors() { return client_request(Request::kCountErrors); }

// Writes a line into valgrind's own report.
inline void write_note(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  client_request(Request::kPrint, format, reinterpret_cast<uintptr_t>(&arguments));
  va_end(arguments);
}

// From here on memcheck reports every branch and address that is computed from these bytes.
inline void make_undefined(const void* address, size_t size) {
  client_request(Request::kMakeMemoryUndefined, address, size);
}

inline void make_defined(const void* address, size_t size) {
  client_request(Request::kMakeMemoryDefined, address, size);
}

}  // namespace dhp::proof
