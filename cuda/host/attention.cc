#include "host/attention.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <new>

#include "host/denormals.h"
#include "host/kernels.h"

namespace dhp {
namespace {

// One phase under way. Lent threads share it with the caller, and may look at it after the caller has gone.
class TaskLoop {
 public:
  TaskLoop(const Phase& phase, const void* params, const TaskMemory& memory, int64_t scratch_floats)
      : phase_(phase), params_(params), memory_(memory), scratch_floats_(scratch_floats) {}

  // The caller takes tasks like everybody else, then waits for those already begun. It never waits for a
  // thread that has not started: when many calls run at once, the threads they were promised are in these
  // very calls.
  void run_as_caller() {
    take_tasks(0);
    std::unique_lock<std::mutex> lock(mutex_);
    closed_ = true;
    idle_.wait(lock, [this] { return active_ == 0; });
  }

  void run_as_helper(int64_t index) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (closed_) return;
      ++active_;
    }
    take_tasks(index);
    std::lock_guard<std::mutex> lock(mutex_);
    if (--active_ == 0) idle_.notify_all();
  }

 private:
  void take_tasks(int64_t thread_index) {
    const FlushDenormals flush;
    const TaskMemory memory{memory_.scratch + thread_index * scratch_floats_, memory_.workspace,
                            memory_.turns};
    for (int64_t task; (task = next_.fetch_add(1, std::memory_order_relaxed)) < phase_.num_tasks;)
      phase_.run(params_, task, memory);
  }

  const Phase phase_;
  const void* const params_;
  const TaskMemory memory_;  // scratch of the first thread
  const int64_t scratch_floats_;
  std::atomic<int64_t> next_{0};
  std::mutex mutex_;
  std::condition_variable idle_;
  int64_t active_ = 0;
  bool closed_ = false;
};

// Aligned to a cache line, so that no vector crosses two.
constexpr std::align_val_t kAlignment{64};

struct FreeFloats {
  void operator()(float* floats) const { operator delete[](floats, kAlignment); }
};
using Floats = std::unique_ptr<float, FreeFloats>;

Floats allocate_floats(int64_t count) {
  return Floats(static_cast<float*>(operator new[](static_cast<size_t>(count) * sizeof(float), kAlignment,
                                                   std::nothrow)));
}

bool run_plan(const Plan& plan, const void* params, const ThreadLender& lender) {
  int64_t most_tasks = 0;
  for (const Phase& phase : plan.phases) most_tasks = std::max(most_tasks, phase.num_tasks);
  if (most_tasks == 0) return true;
  const int64_t num_threads = std::clamp<int64_t>(lender.num_threads, 1, most_tasks);
  const Floats scratch = allocate_floats(num_threads * plan.scratch_floats);
  const Floats workspace = allocate_floats(plan.workspace_floats);
  const std::unique_ptr<int32_t[]> turns(new (std::nothrow)
                                             int32_t[static_cast<size_t>(plan.num_turns)]());  // zeros
  if (!scratch || !workspace || !turns) return false;
  for (const Phase& phase : plan.phases) {
    if (phase.num_tasks == 0) continue;
    auto loop = std::make_shared<TaskLoop>(
        phase, params, TaskMemory{scratch.get(), workspace.get(), turns.get()}, plan.scratch_floats);
    try {
      for (int64_t i = 1; i < std::min(num_threads, phase.num_tasks); ++i)
        lender.schedule([loop, i] { loop->run_as_helper(i); });
    } catch (const std::bad_alloc&) {
      // No memory to ask for more helpers: those that came, and the caller, do the work. Leaving now would
      // take the scratch away from under them.
    }
    loop->run_as_caller();
  }
  return true;
}

}  // namespace

bool host_attention_fwd(const ForwardParams& params, const ThreadLender& threads) {
  return run_plan(host_kernels().attention_fwd(params), &params, threads);
}

bool host_attention_bwd(const BackwardParams& params, const ThreadLender& threads) {
  return run_plan(host_kernels().attention_bwd(params), &params, threads);
}

bool host_attention_bwd_bias(const BiasBackwardParams& params, const ThreadLender& threads) {
  return run_plan(host_kernels().attention_bwd_bias(params), &params, threads);
}

const char* host_isa() { return host_kernels().isa; }

}  // namespace dhp
