// libdhp_controls: a stopwatch around the shipped kernels.
//
// One run is a captured graph: stage the secrets, read the cycle counters, work, read them again. The secrets
// of every class come to the same addresses, so the work finds caches and TLBs alike. In a graph the host has
// no part in when a kernel starts.
//
// The counters are read by kernels before and after, and not inside: a twin with a clock in it would be
// compiled anew, with other registers and another schedule, and its times would say nothing of the code that
// ships. The price is the time between two kernels, which is the same for all classes.

#include <algorithm>
#include <chrono>
#include <thread>
#include <vector>

#include "controls/controls.h"
#include "controls/device_memory.h"
#include "controls/leak.h"
#include "controls/stopwatch.cuh"
#include "launch/launch.h"
#include "launch/workspace.h"

namespace dhp {
namespace {

constexpr int kStageBlocks = 64, kStageThreads = 256;
constexpr int kWarmUps = 20;  // the first is the run before the capture
constexpr int64_t kLeakColumns = 1024;
constexpr int kLeakRows = 132;
constexpr size_t kFlushBytes = size_t{128} << 20;  // more than twice the L2 cache of an H200

enum Operand { kQuery, kKey, kValue, kBias, kMask, kQueryLengths, kKeyValueLengths, kDOut };

template <typename Pointer>
HeadRows<Pointer> rows(Pointer data, int64_t length, int64_t heads, int64_t channels) {
  return {data, 0, length * heads * channels, heads * channels, channels};
}

// The operands of a call in its block of memory, and results beside it.
class Attention {
 public:
  Attention(const DhpControlCall& call, unsigned char* block)
      : call_(call),
        block_(block),
        out_(query_elements()),
        d_query_(query_elements()),
        d_key_(key_elements()),
        d_value_(key_elements()),
        row_max_(statistics()),
        log_sum_(statistics()),
        d_lse_(statistics()),
        delta_(statistics()),
        workspace_(forward_workspace(workspace_facts(problem()))) {}

  void forward(cudaStream_t stream) const {
    ForwardParams params{};
    params.problem = problem();
    params.out = rows<void*>(out_.data(), call_.T, call_.N, call_.D);
    params.row_max = row_max_.data();
    params.log_sum = log_sum_.data();
    params.workspace = workspace_.data();
    raise(launch_attention_fwd(params, stream));
  }

  void backward(cudaStream_t stream) const {
    BackwardParams params{};
    params.problem = problem();
    params.out = rows<const void*>(out_.data(), call_.T, call_.N, call_.D);
    params.d_out = rows<const void*>(at(kDOut), call_.T, call_.N, call_.D);
    params.row_max = row_max_.data();
    params.log_sum = log_sum_.data();
    params.d_lse = d_lse_.data();
    params.d_query = rows<void*>(d_query_.data(), call_.T, call_.N, call_.D);
    params.d_key = rows<void*>(d_key_.data(), call_.S, call_.K, call_.D);
    params.d_value = rows<void*>(d_value_.data(), call_.S, call_.K, call_.D);
    params.delta = delta_.data();
    raise(launch_attention_bwd(params, stream));
  }

 private:
  int64_t query_elements() const { return call_.B * call_.T * call_.N * call_.D; }
  int64_t key_elements() const { return call_.B * call_.S * call_.K * call_.D; }
  int64_t statistics() const { return call_.B * call_.T * call_.N; }
  Shape shape() const { return {1, call_.B, call_.T, call_.S, call_.N, call_.K, call_.D}; }

  const void* at(Operand operand) const {
    const int64_t offset = call_.offsets[operand];
    return offset < 0 ? nullptr : block_ + offset;
  }

  Problem problem() const {
    Problem problem{};
    problem.shape = shape();
    problem.dtype = static_cast<DType>(call_.dtype);
    problem.scale = call_.scale;
    problem.band = {call_.T, call_.is_causal ? 0 : call_.S};
    problem.query = rows(at(kQuery), call_.T, call_.N, call_.D);
    problem.key = rows(at(kKey), call_.S, call_.K, call_.D);
    problem.value = rows(at(kValue), call_.S, call_.K, call_.D);
    problem.bias = {at(kBias), 0, 0, call_.T * call_.S, call_.S, 1};
    problem.mask = {static_cast<const uint8_t*>(at(kMask)), 0, call_.T * call_.S, 0, call_.S, 1};
    problem.query_lengths = {static_cast<const int32_t*>(at(kQueryLengths)), 0, 1};
    problem.key_value_lengths = {static_cast<const int32_t*>(at(kKeyValueLengths)), 0, 1};
    return problem;
  }

  static void raise(const LaunchStatus& status) {
    if (!status.ok()) throw std::runtime_error(status.message);
  }

  DhpControlCall call_;
  unsigned char* block_;
  DeviceArray<float> out_, d_query_, d_key_, d_value_;  // float32 also where elements are smaller
  DeviceArray<float> row_max_, log_sum_, d_lse_, delta_, workspace_;
};

// A graph of one run, and the stream that it runs on.
class Run {
 public:
  Run() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "no stream"); }
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;
  ~Run() {
    if (executable_) cudaGraphExecDestroy(executable_);
    cudaStreamDestroy(stream_);
  }

  // Runs the launches once, and records them.
  template <typename Launches>
  void record(Launches launches) {
    // The first launch of a kernel loads its code, which must not happen during a capture.
    launches(stream_);
    check(cudaStreamSynchronize(stream_), "the first run failed");
    check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "no capture");
    cudaGraph_t graph = nullptr;
    try {
      launches(stream_);
    } catch (...) {
      cudaStreamEndCapture(stream_, &graph);
      if (graph) cudaGraphDestroy(graph);
      throw;
    }
    check(cudaStreamEndCapture(stream_, &graph), "the capture did not end");
    const cudaError_t error = cudaGraphInstantiate(&executable_, graph, 0);
    cudaGraphDestroy(graph);
    check(error, "no graph");
  }

  // Without a rest the runs follow each other as fast as the GPU takes them.
  void replay(int64_t times, std::chrono::nanoseconds rest) const {
    for (int64_t i = 0; i < times; ++i) {
      check(cudaGraphLaunch(executable_, stream_), "a run did not start");
      if (rest.count() == 0) continue;
      check(cudaStreamSynchronize(stream_), "a run failed");
      std::this_thread::sleep_for(rest);
    }
    check(cudaStreamSynchronize(stream_), "a run failed");
  }

 private:
  cudaStream_t stream_ = nullptr;
  cudaGraphExec_t executable_ = nullptr;
};

void launch_work(int32_t work, const Attention* attention, const unsigned char* block, int64_t block_bytes,
                 float* leaked, cudaStream_t stream) {
  const auto* last = reinterpret_cast<const int64_t*>(block + block_bytes) - 1;
  switch (work) {
    case kDhpForward: return attention->forward(stream);
    case kDhpBackward: return attention->backward(stream);
    case kDhpDelayed: control_delay<<<1, 1, 0, stream>>>(last, leaked); return attention->forward(stream);
    case kDhpLeak:
      return launch_control_leak(reinterpret_cast<const float*>(block), kLeakRows, 0, last, leaked, stream);
  }
  throw std::runtime_error("dhp_controls: this work is none that can be timed; see controls.h.");
}

void time(const DhpControlCall& call, int32_t work, const unsigned char* blocks, int64_t block_bytes,
          int32_t num_classes, const int32_t* order, int64_t samples, int32_t num_sms, int32_t* cycles,
          int64_t* nanoseconds) {
  const int64_t least = work == kDhpLeak ? kLeakColumns * 4 + 16 : 16;
  if (block_bytes % 16 != 0 || block_bytes < least || samples < 1 || call.repeats < 1) {
    throw std::runtime_error("dhp_controls: a block must be a multiple of 16 bytes and hold its operands.");
  }
  for (int64_t i = 0; i < samples; ++i) {
    if (order[i] < 0 || order[i] >= num_classes) {
      throw std::runtime_error("dhp_controls: order names a class that is not there.");
    }
  }
  // Warm-up runs come first and are thrown away.
  std::vector<int32_t> all_orders(kWarmUps, order[0]);
  all_orders.insert(all_orders.end(), order, order + samples);
  const int64_t runs = kWarmUps + samples;

  const DeviceArray<unsigned char> all_blocks(blocks, num_classes * block_bytes), block(block_bytes);
  const DeviceArray<int32_t> orders(all_orders.data(), runs), device_cycles(runs * num_sms);
  const DeviceArray<int64_t> sample(1), begun(num_sms), begun_in(num_sms), begun_at(1),
      device_nanoseconds(runs);
  const DeviceArray<float> leaked(kLeakRows);
  const DeviceArray<unsigned char> flushed(kFlushBytes);
  const bool is_attention = work != kDhpLeak;
  DhpControlCall none{};
  const Attention attention(is_attention ? call : none, block.data());
  const Stopwatch watch{orders.data(),
                        sample.data(),
                        begun.data(),
                        begun_in.data(),
                        begun_at.data(),
                        device_cycles.data(),
                        device_nanoseconds.data(),
                        num_sms};
  Run run;
  run.record([&](cudaStream_t stream) {
    control_stage<<<kStageBlocks, kStageThreads, 0, stream>>>(
        watch, reinterpret_cast<const uint4*>(all_blocks.data()), block_bytes / 16,
        reinterpret_cast<uint4*>(block.data()));
    if (work == kDhpBackward) attention.forward(stream);
    // What the caches have then follows from the work alone, and not from where the secrets were staged from:
    // they are flushed, and the work runs once untimed.
    check(cudaMemsetAsync(flushed.data(), 0, kFlushBytes, stream), "the caches are not flushed");
    launch_work(work, &attention, block.data(), block_bytes, leaked.data(), stream);
    control_begin<<<2 * num_sms, kStampThreads, 0, stream>>>(watch);
    for (int32_t i = 0; i < call.repeats; ++i) {
      launch_work(work, &attention, block.data(), block_bytes, leaked.data(), stream);
    }
    control_end<<<2 * num_sms, kStampThreads, 0, stream>>>(watch);
    control_next<<<1, 1, 0, stream>>>(sample.data());
    check(cudaGetLastError(), "a kernel of the stopwatch did not launch");
  });
  run.replay(runs - 1, std::chrono::nanoseconds(call.rest));

  std::vector<int32_t> all_cycles(runs * num_sms);
  std::vector<int64_t> all_nanoseconds(runs);
  device_cycles.copy_to(all_cycles.data());
  device_nanoseconds.copy_to(all_nanoseconds.data());
  std::copy(all_cycles.begin() + kWarmUps * num_sms, all_cycles.end(), cycles);
  std::copy(all_nanoseconds.begin() + kWarmUps, all_nanoseconds.end(), nanoseconds);
}

}  // namespace
}  // namespace dhp

extern "C" const char* dhp_controls_time(const DhpControlCall* call, int32_t work, const void* blocks,
                                         int64_t block_bytes, int32_t num_classes, const int32_t* order,
                                         int64_t samples, int32_t num_sms, int32_t* cycles,
                                         int64_t* nanoseconds) {
  return dhp::told([&] {
    dhp::time(*call, work, static_cast<const unsigned char*>(blocks), block_bytes, num_classes, order,
              samples, num_sms, cycles, nanoseconds);
  });
}
