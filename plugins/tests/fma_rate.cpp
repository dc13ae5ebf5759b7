// The highest rate of float32 multiply-adds of one core, with which the kernels' speed is compared.
#include "../cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "fma_rate.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <cstdint>

HWY_BEFORE_NAMESPACE();
namespace na_deploy::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Twelve independent chains hide the latency on every processor with up to two units.
double multiply_add(int64_t rounds, float* sink) {
  const hn::CappedTag<float, 16> d;
  constexpr int kChains = 12;
  const auto factor = hn::Set(d, 0.999F);
  const auto term = hn::Set(d, 0.001F);
  hn::Vec<decltype(d)> chain[kChains];
  for (int i = 0; i < kChains; ++i) chain[i] = hn::Set(d, static_cast<float>(i));
  for (int64_t round = 0; round < rounds; ++round) {
    for (int i = 0; i < kChains; ++i) chain[i] = hn::MulAdd(chain[i], factor, term);
  }
  auto total = chain[0];
  for (int i = 1; i < kChains; ++i) total = hn::Add(total, chain[i]);
  *sink = hn::ReduceSum(d, total);
  return static_cast<double>(rounds) * kChains * static_cast<double>(hn::Lanes(d));
}

}  // namespace HWY_NAMESPACE
}  // namespace na_deploy::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace na_deploy::cpu {
HWY_EXPORT(multiply_add);
}  // namespace na_deploy::cpu

// Runs `rounds` rounds and returns how many multiply-adds they were.
extern "C" __attribute__((visibility("default"))) double na_test_multiply_add(int64_t rounds, float* sink) {
  using namespace na_deploy::cpu;
  return HWY_DYNAMIC_DISPATCH(multiply_add)(rounds, sink);
}
#endif
