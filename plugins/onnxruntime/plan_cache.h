// Results that a node keeps for given sizes: the cut of the problem and, if its bias is a constant, the prepared bias.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <new>

#include "na_cpu.h"

namespace na_deploy::ort {

struct ReleaseAligned {
  static constexpr std::align_val_t kAlignment{64};
  void operator()(void* memory) const { ::operator delete(memory, kAlignment); }
};

// Uninitialised memory aligned to 64 bytes.
template <typename T>
using AlignedArray = std::unique_ptr<T, ReleaseAligned>;

template <typename T>
AlignedArray<T> make_aligned(size_t count) {
  return AlignedArray<T>(static_cast<T*>(::operator new(count * sizeof(T), ReleaseAligned::kAlignment)));
}

struct Planned {
  na_params sizes;  // only sizes and attributes are compared
  na_cpu_plan plan;
  AlignedArray<float> prepared_bias;  // null unless the bias is a constant and preparing it pays
};

// The plan of the last sizes seen. Safe to use from several threads at once.
class PlanCache {
 public:
  // Returns the plan for checked parameters; a constant bias is kept in prepared form.
  std::shared_ptr<const Planned> get(const na_params& params, bool constant_bias);

 private:
  std::mutex mutex_;
  std::shared_ptr<const Planned> last_;
};

}  // namespace na_deploy::ort
