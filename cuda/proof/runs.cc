#include "proof/runs.h"

#include <chrono>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <string>
#include <thread>

#include "proof/client_request.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace dhp::proof {
namespace {

constexpr uint64_t kSeed = 20260711;

std::string call_name(const Case& c, DType dtype) { return std::string(c.name) + "_" + dtype_name(dtype); }

std::string line_start(const Selection& selection, Kernel kernel, const Case& c, DType dtype) {
  return std::string(selection.kernels->isa) + "\t" + kernel_name(kernel) + "\t" + call_name(c, dtype);
}

// Controls have a forward kernel only.
bool is_there(const HostKernels& kernels, Kernel kernel) {
  switch (kernel) {
    case Kernel::kForward: return kernels.attention_fwd;
    case Kernel::kBackward: return kernels.attention_bwd;
    case Kernel::kBiasBackward: return kernels.attention_bwd_bias;
  }
  return false;
}

// body(kernel, case, dtype) for all that was selected.
template <typename Body>
void for_each_call(const Selection& selection, Body body) {
  for (const Case& c : cases())
    for (DType dtype : kDTypes)
      for (Kernel kernel : kKernels)
        if (has_kernel(c, kernel) && is_there(*selection.kernels, kernel) && selection.kernel(kernel) &&
            selection.call(c, dtype))
          body(kernel, c, dtype);
}

// Threads of our own, as XLA would lend them.
class Threads {
 public:
  ~Threads() { join(); }

  ThreadLender lender(int count) {
    return {count, [this](std::function<void()> task) { threads_.emplace_back(std::move(task)); }};
  }

  void join() {
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }

 private:
  std::vector<std::thread> threads_;
};

constexpr unsigned char kUnwritten = 0xA5;

// Bytes that are undefined and not kUnwritten: what a kernel computed from secrets. Makes the array defined.
size_t undefined_results(const Array& array) {
  std::vector<unsigned char> undefined_bits(array.size());
  client_request(Request::kGetDefinedBits, array.data(), reinterpret_cast<uintptr_t>(undefined_bits.data()),
                 array.size());
  make_defined(array.data(), array.size());
  const auto* bytes = static_cast<const unsigned char*>(array.data());
  size_t count = 0;
  for (size_t i = 0; i < array.size(); ++i) count += undefined_bits[i] != 0 && bytes[i] != kUnwritten;
  return count;
}

size_t nonzero_bytes(const Array& array) {
  const auto* bytes = static_cast<const unsigned char*>(array.data());
  size_t count = 0;
  for (size_t i = 0; i < array.size(); ++i) count += bytes[i] != 0;
  return count;
}

// The state in which a kernel finds its memory: the backward kernels read what the forward pass wrote.
void prepare(Call& call, const Selection& selection, Kernel kernel, const Secrets& secrets) {
  call.fill(secrets, kSeed);
  if (kernel == Kernel::kForward) return;
  use_kernels(*selection.kernels);
  call.run_forward();
}

// The control of flush-to-zero (host/denormals.h): takes it back for one task.
void without_flush(int64_t, const std::function<void()>& body) {
#if defined(__x86_64__)
  constexpr unsigned kFlush = 1u << 15 | 1u << 6;  // MXCSR: FTZ, DAZ
  const unsigned saved = _mm_getcsr();
  _mm_setcsr(saved & ~kFlush);
  body();
  _mm_setcsr(saved);
#elif defined(__aarch64__)
  constexpr uint64_t kFlush = 1u << 24;  // FPCR: FZ
  uint64_t saved;
  __asm__ __volatile__("mrs %0, fpcr" : "=r"(saved));
  __asm__ __volatile__("msr fpcr, %0" : : "r"(saved & ~kFlush));
  body();
  __asm__ __volatile__("msr fpcr, %0" : : "r"(saved));
#endif
}

// Nanoseconds that this thread has had the processor for.
int64_t processor_time() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return time.tv_sec * int64_t{1000000000} + time.tv_nsec;
}

// The control of the timer: each task takes an eighth longer.
void delayed(int64_t, const std::function<void()>& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  const auto end = std::chrono::steady_clock::now();
  while (std::chrono::steady_clock::now() < end + (end - start) / 8) {}
}

void plainly(int64_t, const std::function<void()>& body) { body(); }

void collected(int64_t, const std::function<void()>& body) {
  client_request(Request::kToggleCollect);
  body();
  client_request(Request::kToggleCollect);
}

}  // namespace

void run_undefined(const Selection& selection) {
  for_each_call(selection, [&](Kernel kernel, const Case& c, DType dtype) {
    Call call(c, dtype);
    prepare(call, selection, kernel, ordinary_secrets());
    for (const Array* array : call.outputs(kernel)) std::memset(array->data(), kUnwritten, array->size());
    for (const Array* array : call.arrays()) make_undefined(array->data(), array->size());
    use_kernels(*selection.kernels);
    write_note("%s", line_start(selection, kernel, c, dtype).c_str());
    const uintptr_t errors_before = count_errors();
    Threads threads;
    call.run(kernel, threads.lender(selection.num_threads));
    threads.join();
    const uintptr_t errors = count_errors() - errors_before;
    size_t undefined = 0;
    for (const Array* array : call.outputs(kernel)) undefined += undefined_results(*array);
    std::printf("%s\t%zu\t%zu\n", line_start(selection, kernel, c, dtype).c_str(),
                static_cast<size_t>(errors), undefined);
  });
}

void run_counted(const Selection& selection, bool lengths) {
  for_each_call(selection, [&](Kernel kernel, const Case& c, DType dtype) {
    Call call(c, dtype);
    for (const Secrets& secrets : lengths ? every_length(c.shape) : sorts_of_secret()) {
      prepare(call, selection, kernel, secrets);
      use_kernels(*selection.kernels, collected);
      client_request(Request::kZeroStatistics);
      call.run(kernel, {});
      std::string label = line_start(selection, kernel, c, dtype) + "\t" + secrets.name;
      if (lengths) label += "_" + std::to_string(secrets.key_value_length);
      client_request(Request::kDumpStatisticsAt, label.c_str());
      std::puts(label.c_str());
    }
  });
}

void run_covered(const Selection& selection) {
  client_request(Request::kZeroStatistics);
  for_each_call(selection, [&](Kernel kernel, const Case& c, DType dtype) {
    Call call(c, dtype);
    prepare(call, selection, kernel, ordinary_secrets());
    use_kernels(*selection.kernels, collected);
    call.run(kernel, {});
  });
  client_request(Request::kDumpStatisticsAt, "covered");
}

void run_timed(const Selection& selection, int rounds) {
  struct Way {
    Secrets secrets;
    const char* how;
    Around around;
  };
  // All are called through a hook: without one the stack lies elsewhere, which alone can make a tenth.
  std::vector<Way> ways;
  for (const Secrets& secrets : {ordinary_secrets(), subnormal_secrets(), subnormal_keys()}) {
    ways.push_back({secrets, "flushed", plainly});
    ways.push_back({secrets, "unflushed", without_flush});
    ways.push_back({secrets, "delayed", delayed});
  }
  for_each_call(selection, [&](Kernel kernel, const Case& c, DType dtype) {
    Call call(c, dtype);
    const int num_ways = static_cast<int>(ways.size());
    for (int i = 0; i < rounds * num_ways; ++i) {
      // Every round begins with another way: what a run costs also depends on the one before it.
      const Way& way = ways[static_cast<size_t>((i + i / num_ways) % num_ways)];
      prepare(call, selection, kernel, way.secrets);
      use_kernels(*selection.kernels, way.around);
      call.run(kernel, {});  // so that memory and caches are as they will be
      const int64_t start = processor_time();
      call.run(kernel, {});
      const int64_t time = processor_time() - start;
      std::printf("%s\t%s\t%s\t%lld\n", line_start(selection, kernel, c, dtype).c_str(), way.secrets.name,
                  way.how, static_cast<long long>(time));
    }
  });
}

void run_flushed(const Selection& selection) {
  for_each_call(selection, [&](Kernel kernel, const Case& c, DType dtype) {
    for (bool flushed : {true, false}) {
      Call call(c, dtype);
      prepare(call, selection, kernel, subnormal_secrets());
      use_kernels(*selection.kernels, flushed ? Around() : without_flush);
      call.run(kernel, {});
      size_t nonzero = 0;
      for (const Array* array : call.products(kernel)) nonzero += nonzero_bytes(*array);
      std::printf("%s\t%s\t%zu\n", line_start(selection, kernel, c, dtype).c_str(),
                  flushed ? "flushed" : "unflushed", nonzero);
    }
  });
}

}  // namespace dhp::proof
