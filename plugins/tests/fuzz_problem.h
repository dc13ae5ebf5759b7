// A problem made of arbitrary bytes: sizes, attributes and tensors of exactly their size, so that sanitizers see every
// access outside. Many problems are out of range, for na_check to refuse.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "na_cpu.h"

namespace na_deploy::fuzz {

class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : data_(data), size_(size) {}

  // Returns a number in [low, high]; low when the bytes have run out.
  int64_t number(int64_t low, int64_t high) {
    if (at_ == size_) return low;
    return low + data_[at_++] % (high - low + 1);
  }

 private:
  const uint8_t* data_;
  size_t size_;
  size_t at_ = 0;
};

struct FuzzProblem {
  na_params params{};
  std::vector<std::vector<uint8_t>> tensors;
};

FuzzProblem make_problem(Bytes& bytes);

// Computes attention in double precision by definition; float32 problems only.
void reference(const na_params& params, std::vector<double>& output, std::vector<double>& lse);

}  // namespace na_deploy::fuzz
