// Fuzz target over shapes and attributes: every problem that na_check accepts, including small maps with padding, runs
// inside its memory and, in float32, agrees with double precision. With clang's -fsanitize=fuzzer this is a libFuzzer
// target; otherwise it has its own main:
//
//     fuzz_cpu [inputs] [seed]
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <new>
#include <optional>
#include <random>

#include "../core/padding.h"
#include "../cpu/call.h"
#include "fuzz_problem.h"
#include "na_cpu.h"

namespace {

struct Release {
  void operator()(void* memory) const { std::free(memory); }
};

template <typename T>
std::unique_ptr<T, Release> aligned(size_t elements) {
  const size_t bytes = (elements * sizeof(T) + 63) / 64 * 64;
  return std::unique_ptr<T, Release>(static_cast<T*>(std::aligned_alloc(64, std::max<size_t>(bytes, 64))));
}

double largest(const std::vector<double>& numbers) {
  double most = 0.0;
  for (const double number : numbers) most = std::max(most, std::abs(number));
  return most;
}

// Ends the program where results differ.
void compare(const char* what, const na_params& params, const float* found, const std::vector<double>& expected) {
  const double allowed = 1e-5 * std::max(largest(expected), 1e-3);
  for (size_t i = 0; i < expected.size(); ++i) {
    if (std::abs(found[i] - expected[i]) <= allowed) continue;
    std::fprintf(stderr, "%s[%zu] is %g, expected %g; rank %d, packed %d, heads %lld, head_dim %lld\n", what, i,
                 static_cast<double>(found[i]), expected[i], params.rank, params.packed,
                 static_cast<long long>(params.heads), static_cast<long long>(params.head_dim));
    std::abort();
  }
}

// The C interface with memory of exactly the sizes that it asks for, in two ranges of tasks.
void run_in_own_memory(na_params params, na_deploy::fuzz::Bytes& bytes) {
  std::optional<na_deploy::cpu::PaddedCopy> copy;
  if (na_deploy::reaches_behind(params)) params = copy.emplace(params).params();
  params.padding = nullptr;

  na_cpu_plan plan;
  na_cpu_make_plan(&params, &plan);
  const auto prepared = aligned<float>(plan.prepared_bias_elements);
  if (plan.prepared_bias_elements > 0 && bytes.number(0, 1) == 0) {
    na_cpu_prepare_bias(&params, &plan, prepared.get());
    params.prepared_bias = prepared.get();
  }
  const auto scratch = aligned<uint8_t>(plan.scratch_bytes);
  const int64_t middle = plan.tasks * bytes.number(0, 8) / 8;
  na_cpu_run(&params, &plan, middle, plan.tasks, scratch.get());
  na_cpu_run(&params, &plan, 0, middle, scratch.get());
  if (copy) copy->crop();
}

// Two calls of a node, the second with the plan of the first, their pieces last to first.
void run_as_a_node_does(const na_params& params, na_deploy::fuzz::Bytes& bytes) {
  na_deploy::cpu::PlanCache plans;
  const bool constant_bias = bytes.number(0, 1) == 0;
  for (int i = 0; i < 2; ++i) {
    na_deploy::cpu::Call call(params, plans, constant_bias, bytes.number(1, 4));
    for (int64_t piece = call.pieces() - 1; piece >= 0; --piece) call.run(piece);
    call.finish();
  }
}

bool run(const uint8_t* data, size_t size) {
  na_deploy::fuzz::Bytes bytes(data, size);
  na_deploy::fuzz::FuzzProblem problem = na_deploy::fuzz::make_problem(bytes);
  na_params& params = problem.params;
  char message[256];
  if (na_check(&params, message, sizeof message) != 0) return false;

  auto tokens = static_cast<size_t>(params.batch);
  for (int a = 0; a < params.rank; ++a) tokens *= static_cast<size_t>(params.length[a]);
  const size_t rows = tokens * static_cast<size_t>(params.heads);
  const size_t elements = rows * static_cast<size_t>(params.value_dim);
  std::vector<uint8_t> output(elements * (params.dtype == NA_FLOAT32 ? 4 : 2));
  std::vector<float> lse(rows);
  params.output = output.data();
  params.lse = lse.data();

  const na_params given = params;
  if (bytes.number(0, 3) == 0) {
    run_as_a_node_does(params, bytes);
  } else {
    run_in_own_memory(params, bytes);
  }

  if (params.dtype == NA_FLOAT32) {
    std::vector<double> expected;
    std::vector<double> expected_lse;
    na_deploy::fuzz::reference(given, expected, expected_lse);
    compare("output", given, static_cast<const float*>(given.output), expected);
    compare("lse", given, lse.data(), expected_lse);
  }
  return true;
}

}  // namespace

#ifdef NA_DEPLOY_LIBFUZZER
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  run(data, size);
  return 0;
}
#else
int main(int count, char** arguments) {
  const int inputs = count > 1 ? std::atoi(arguments[1]) : 1000;
  std::mt19937 random(count > 2 ? static_cast<uint32_t>(std::atoi(arguments[2])) : 0U);
  int accepted = 0;
  for (int i = 0; i < inputs; ++i) {
    uint8_t data[48];
    for (uint8_t& byte : data) byte = static_cast<uint8_t>(random());
    accepted += run(data, sizeof data) ? 1 : 0;
  }
  std::printf("%d inputs, %d accepted and right\n", inputs, accepted);
  return 0;
}
#endif
