// Lists the cases, or runs them on the first GPU and writes the cycles of every trial. run.py judges; nothing
// here does.

#include <cuda.h>

#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <regex>

#include "classes.h"
#include "cuda_check.h"
#include "plan.h"
#include "probe.h"

namespace latency {

std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

namespace {

constexpr const char* kUsage =
    "latency --list | latency --run FILE [--rounds N] [--seed N] [--only REGEX]\n"
    "  --list   one JSON object a line for each case; needs no GPU\n"
    "  --run    times them and writes one JSON object a line, with the cycles of each class in the order of "
    "the rounds\n"
    "  --rounds trials of each class, after those thrown away (default 256)\n"
    "  --only   cases whose kernel's name matches whole\n";
constexpr int kWarmUpRounds = 8;  // thrown away: cold caches, cold instruction memory

struct Options {
  bool list = false;
  std::string output;
  int rounds = 256;
  uint64_t seed = 1;
  std::string only = ".*";
};

struct Unmap {
  void operator()(void* pointer) const { cudaFree(pointer); }
};
template <typename T>
using DeviceArray = std::unique_ptr<T[], Unmap>;

template <typename T>
DeviceArray<T> device_array(size_t count, const std::vector<T>& values = {}) {
  void* pointer = nullptr;
  check(cudaMalloc(&pointer, count * sizeof(T)), "allocation");
  check(cudaMemset(pointer, 0, count * sizeof(T)), "clearing");
  if (!values.empty()) {
    check(cudaMemcpy(pointer, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice),
          "copy to the GPU");
  }
  return DeviceArray<T>(static_cast<T*>(pointer));
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char letter : text) {
    if (letter == '"' || letter == '\\') out += '\\';
    out += letter;
  }
  return out + "\"";
}

const char* truth(bool value) { return value ? "true" : "false"; }

std::string described(const Case& each) {
  return "\"probe\": " + quoted(each.probe) + ", \"form\": " + quoted(each.form) +
         ", \"opcode\": " + quoted(each.opcode) + ", \"kernel\": " + quoted(each.kernel_name) +
         ", \"kinds\": " + quoted(each.kinds) + ", \"threads\": " + std::to_string(each.threads) +
         ", \"in_code\": " + std::to_string(each.in_code) + ", \"trips\": " + std::to_string(each.trips) +
         ", \"guarded\": " + truth(each.guarded) + ", \"guard_in_code\": " + truth(each.guard_in_code) +
         ", \"control\": " + truth(each.control) +
         ", \"beyond_sm\": " + truth(each.noise == Noise::kBeyondSm);
}

TensorMap tile_map(uint32_t* store) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  check(
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found),
      "look-up of cuTensorMapEncodeTiled");
  if (found != cudaDriverEntryPointSuccess)
    throw std::runtime_error("the driver has no cuTensorMapEncodeTiled");
  const cuuint64_t sizes[] = {kTileSide, kTileSide}, strides[] = {kTileSide * sizeof(uint32_t)};
  const cuuint32_t box[] = {kTileSide, kTileSide}, steps[] = {1, 1};
  CUtensorMap map;
  const CUresult status = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function)(
      &map, CU_TENSOR_MAP_DATA_TYPE_UINT32, 2, store, sizes, strides, box, steps,
      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_L2_PROMOTION_NONE,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS)
    throw std::runtime_error("cuTensorMapEncodeTiled failed: " + std::to_string(status));
  TensorMap bytes;
  static_assert(sizeof(bytes) == sizeof(map));
  std::memcpy(&bytes, &map, sizeof(map));
  return bytes;
}

class Machine {
 public:
  Machine() : store_(device_array<uint32_t>(kStoreWords)), zeros_(device_array<uint32_t>(kZeros * kLanes)) {
    tile_ = tile_map(store_.get());
  }

  // The cycles of every trial, by class and in the order of the rounds.
  std::vector<std::pair<std::string, std::vector<int64_t>>> time(const Case& each, const Options& options) {
    const std::vector<Class> classes = each.guarded
                                           ? guard_classes(each.kinds, each.uniform_guard, options.seed)
                                           : operand_classes(each.kinds, options.seed);
    const Plan plan = plan_trials(classes, options.rounds + kWarmUpRounds, options.seed + timed_++);
    const size_t trials = plan.places.size();
    const auto words = device_array<uint32_t>(plan.words.size(), plan.words);
    const auto places = device_array<int32_t>(trials, plan.places);
    const auto naps = device_array<uint32_t>(trials, plan.naps);
    const auto device_cycles = device_array<int64_t>(trials);
    if (each.uniform_operands) set_uniform_trials(plan.words, plan.places);
    const Run run{.tile = tile_,
                  .classes = words.get(),
                  .places = places.get(),
                  .naps = naps.get(),
                  .cycles = device_cycles.get(),
                  .store = store_.get(),
                  .zeros = zeros_.get(),
                  .trials = static_cast<int32_t>(trials),
                  .uniform_zero = 0};
    each.kernel<<<1, each.threads>>>(run);
    check(cudaGetLastError(), each.kernel_name);
    check(cudaDeviceSynchronize(), each.kernel_name);
    std::vector<int64_t> cycles(trials);
    check(cudaMemcpy(cycles.data(), run.cycles, cycles.size() * sizeof(int64_t), cudaMemcpyDeviceToHost),
          "copy of the cycles");

    std::vector<std::pair<std::string, std::vector<int64_t>>> sorted;
    for (const Class& one : classes) sorted.emplace_back(one.name, std::vector<int64_t>());
    for (size_t trial = kWarmUpRounds * classes.size(); trial < trials; ++trial) {
      sorted[plan.owners[trial]].second.push_back(cycles[trial]);
    }
    return sorted;
  }

 private:
  DeviceArray<uint32_t> store_, zeros_;
  TensorMap tile_;
  uint64_t timed_ = 0;
};

void list() {
  for (const Case& each : cases()) std::printf("{%s}\n", described(each).c_str());
}

void run(const Options& options) {
  std::FILE* file = std::fopen(options.output.c_str(), "w");
  if (!file) throw std::runtime_error("cannot write " + options.output);
  const std::regex only(options.only);
  Machine machine;
  for (const Case& each : cases()) {
    if (!std::regex_match(each.kernel_name, only)) continue;
    std::fprintf(file, "{%s, \"cycles\": {", described(each).c_str());
    const char* comma = "";
    for (const auto& [name, cycles] : machine.time(each, options)) {
      std::fprintf(file, "%s%s: [", comma, quoted(name).c_str());
      for (size_t i = 0; i < cycles.size(); ++i)
        std::fprintf(file, "%s%lld", i ? "," : "", (long long)cycles[i]);
      std::fprintf(file, "]");
      comma = ", ";
    }
    std::fprintf(file, "}}\n");
  }
  std::fclose(file);
}

Options parse(int count, char** arguments) {
  Options options;
  for (int i = 1; i < count; ++i) {
    const std::string name = arguments[i];
    const auto value = [&]() -> std::string {
      if (i + 1 == count) throw std::invalid_argument(name + " needs a value\n" + kUsage);
      return arguments[++i];
    };
    if (name == "--list") {
      options.list = true;
    } else if (name == "--run") {
      options.output = value();
    } else if (name == "--rounds") {
      options.rounds = std::stoi(value());
    } else if (name == "--seed") {
      options.seed = std::stoull(value());
    } else if (name == "--only") {
      options.only = value();
    } else {
      throw std::invalid_argument("unknown argument " + name + "\n" + kUsage);
    }
  }
  if (options.list == !options.output.empty()) throw std::invalid_argument(kUsage);
  return options;
}

}  // namespace
}  // namespace latency

int main(int count, char** arguments) {
  try {
    const latency::Options options = latency::parse(count, arguments);
    options.list ? latency::list() : latency::run(options);
    return 0;
  } catch (const std::exception& problem) {
    std::fprintf(stderr, "%s\n", problem.what());
    return 2;
  }
}
