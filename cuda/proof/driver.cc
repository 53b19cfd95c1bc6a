// Runs the host kernels alone, without Python and JAX, for the checks in dhp_jax/verify/host.
//
//   dhp_host_proof list
//   dhp_host_proof MODE [--kernels=avx2] [--kernel=fwd] [--call=NAME]... [--threads=3] [--rounds=20]
//
// The modes are in kModes below; runs.h says what they print. --kernels names an instruction set, a control,
// or with a colon at its end (avx2:) all controls of one; --call a call, such as causal_float32. They default
// to all instruction sets and all calls. Exit status 2, with a message, where it cannot do what was asked.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "proof/client_request.h"
#include "proof/controls.h"
#include "proof/kernel_tables.h"
#include "proof/runs.h"

namespace dhp::proof {
namespace {

struct Arguments {
  std::string mode;
  std::string kernels, kernel;     // empty: all
  std::vector<std::string> calls;  // empty: all
  int threads = 0, rounds = 1;
};

int parse_number(const std::string& argument, const std::string& value) {
  char* end = nullptr;
  const long number = std::strtol(value.c_str(), &end, 10);
  if (value.empty() || *end || number < 0 || number > 1000)
    throw std::invalid_argument(argument + " was passed; its value must be a number from 0 to 1000");
  return static_cast<int>(number);
}

Arguments parse(int argc, char** argv) {
  Arguments arguments;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const size_t equals = argument.find('=');
    const std::string name = argument.substr(0, equals);
    const std::string value = equals == std::string::npos ? "" : argument.substr(equals + 1);
    if (name == "--kernels")
      arguments.kernels = value;
    else if (name == "--kernel")
      arguments.kernel = value;
    else if (name == "--call")
      arguments.calls.push_back(value);
    else if (name == "--threads")
      arguments.threads = parse_number(argument, value);
    else if (name == "--rounds")
      arguments.rounds = parse_number(argument, value);
    else if (i == 1)
      arguments.mode = argument;
    else
      throw std::invalid_argument("unknown argument " + argument + "; driver.cc lists those there are");
  }
  return arguments;
}

// Every table of kernels that this processor can run: those up to the library's own choice.
std::vector<const HostKernels*> runnable_kernels() {
  std::vector<const HostKernels*> all;
  const HostKernels* const widest = &native_kernels();
  for (const HostKernels* const* table = dhp_host_kernel_tables; *table; ++table) {
    all.push_back(*table);
    if (*table == widest) break;
  }
  return all;
}

std::vector<const HostKernels*> runnable_controls() {
  std::vector<const HostKernels*> all;
  const HostKernels* const* const tables[] = {
      dhp_host_controls_baseline,
#ifdef DHP_HAS_X86_ISAS
      dhp_host_controls_avx2,
      dhp_host_controls_avx512,
#endif
  };
  const size_t count = runnable_kernels().size();
  for (size_t i = 0; i < count; ++i)
    for (const HostKernels* const* table = tables[i]; *table; ++table) all.push_back(*table);
  return all;
}

void list() {
  std::printf("library\t%s\n", library_path());
  const std::vector<const HostKernels*> runnable = runnable_kernels();
  for (size_t i = 0; dhp_host_kernel_tables[i]; ++i)
    std::printf("kernels\t%s\t%s\n", dhp_host_kernel_tables[i]->isa, i < runnable.size() ? "runs" : "-");
  for (const HostKernels* kernels : runnable_controls()) std::printf("control\t%s\n", kernels->isa);
  for (const Case& c : cases())
    for (DType dtype : kDTypes) {
      const bool sees_keys = c.left == -1 || c.right == -1 || c.left + c.right >= 0;
      std::printf("call\t%s_%s\t%s\t%s\n", c.name, dtype_name(dtype), c.has_bias ? "bias" : "-",
                  sees_keys ? "sees" : "blind");
    }
}

std::vector<const HostKernels*> chosen_kernels(const std::string& name) {
  std::vector<const HostKernels*> chosen;
  if (name.empty()) return runnable_kernels();
  for (const auto& all : {runnable_kernels(), runnable_controls()})
    for (const HostKernels* kernels : all)
      if (name == kernels->isa || (name.back() == ':' && std::string(kernels->isa).rfind(name, 0) == 0))
        chosen.push_back(kernels);
  if (chosen.empty())
    throw std::invalid_argument("--kernels=" + name +
                                " was passed; this processor, or the one that valgrind shows, has no such "
                                "kernels. `dhp_host_proof list` names those there are");
  return chosen;
}

bool one_of(const std::string& name, const std::vector<std::string>& names) {
  for (const std::string& other : names)
    if (name == other) return true;
  return names.empty();
}

Selection select(const HostKernels* kernels, const Arguments& arguments) {
  Selection selection;
  selection.kernels = kernels;
  selection.num_threads = arguments.threads;
  selection.kernel = [&arguments](Kernel kernel) {
    return arguments.kernel.empty() || arguments.kernel == kernel_name(kernel);
  };
  selection.call = [&arguments](const Case& c, DType dtype) {
    return one_of(std::string(c.name) + "_" + dtype_name(dtype), arguments.calls);
  };
  return selection;
}

struct Mode {
  const char* name;
  bool under_valgrind;
  void (*run)(const Selection&, const Arguments&);
};

constexpr Mode kModes[] = {
    {"undefined", true, [](const Selection& s, const Arguments&) { run_undefined(s); }},
    {"count", true, [](const Selection& s, const Arguments&) { run_counted(s, false); }},
    {"count_lengths", true, [](const Selection& s, const Arguments&) { run_counted(s, true); }},
    {"cover", true, [](const Selection& s, const Arguments&) { run_covered(s); }},
    {"time", false, [](const Selection& s, const Arguments& arguments) { run_timed(s, arguments.rounds); }},
    {"flush", false, [](const Selection& s, const Arguments&) { run_flushed(s); }},
};

const Mode& find_mode(const std::string& name) {
  std::string names = "list";
  for (const Mode& mode : kModes) {
    if (name == mode.name) return mode;
    names += std::string(", ") + mode.name;
  }
  throw std::invalid_argument("mode " + name + " was passed; it must be one of " + names);
}

void expect_valgrind(const Mode& mode) {
  if (under_valgrind() != mode.under_valgrind)
    throw std::runtime_error(std::string(mode.name) + " must run " +
                             (mode.under_valgrind ? "under" : "outside of") +
                             " valgrind; `python -m dhp_jax.verify --host` does that");
}

// The library must run what was chosen here, and not what it would choose itself.
void expect_control_of_library(const HostKernels& kernels) {
  use_kernels(kernels);
  if (std::strcmp(host_isa(), kernels.isa) != 0)
    throw std::runtime_error(std::string("the library runs ") + host_isa() + " and not " + kernels.isa +
                             ": it was linked so that a program cannot choose. Build it without -Bsymbolic");
}

void run(const Arguments& arguments) {
  const Mode& mode = find_mode(arguments.mode);
  expect_valgrind(mode);
  for (const HostKernels* kernels : chosen_kernels(arguments.kernels)) {
    expect_control_of_library(*kernels);
    mode.run(select(kernels, arguments), arguments);
  }
  std::puts("done");  // so that a run that was cut short does not look like a short run
}

}  // namespace
}  // namespace dhp::proof

int main(int argc, char** argv) {
  using namespace dhp::proof;
  try {
    const Arguments arguments = parse(argc, argv);
    if (arguments.mode == "list")
      list();
    else
      run(arguments);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "dhp_host_proof: %s.\n", error.what());
    return 2;
  }
}
