// A padded copy for the CPU kernels, which take no padding, of a map that is smaller than its windows.
#pragma once

#include <cstddef>
#include <cstdint>

#include "na_params.h"
#include "memory.h"

namespace na_deploy::cpu {

// A copy of packed qkv filled up with padding as far as windows reach, and room for the results over all of it.
class PaddedCopy {
 public:
  // `given`: checked parameters with padding.
  explicit PaddedCopy(const na_params& given);

  // The problem over the whole copy, without padding.
  const na_params& params() const { return whole_; }

  // Copies the results for the map itself to where they were asked for.
  void crop() const;

 private:
  na_params given_;
  na_params whole_;
  AlignedArray<std::byte> qkv_;
  AlignedArray<std::byte> output_;
  AlignedArray<float> lse_;
};

}  // namespace na_deploy::cpu
