// Division of non-negative 32-bit numbers by a number that the host knows: a multiplication and a shift on the device.
#pragma once

#include <cstdint>

#include "window.h"

namespace na_deploy::cuda {

// A divisor for the round-up method of Granlund and Montgomery ("Division by invariant integers using multiplication",
// 1994).
struct Divisor {
  uint32_t divisor = 1;
  uint32_t factor = 1;
  uint32_t shift = 0;
};

inline Divisor make_divisor(int32_t divisor) {
  Divisor r;
  r.divisor = static_cast<uint32_t>(divisor);
  while ((uint64_t{1} << r.shift) < r.divisor) ++r.shift;
  r.factor = static_cast<uint32_t>((((uint64_t{1} << r.shift) - r.divisor) << 32) / r.divisor) + 1;
  return r;
}

// Replaces `number`, at least 0, by its quotient and returns the remainder.
NA_HOST_DEVICE int32_t divide(int32_t& number, const Divisor& by) {
  const auto n = static_cast<uint32_t>(number);
  const auto high = static_cast<uint32_t>(uint64_t{n} * by.factor >> 32);
  const uint32_t quotient = (high + n) >> by.shift;
  number = static_cast<int32_t>(quotient);
  return static_cast<int32_t>(n - quotient * by.divisor);
}

NA_HOST_DEVICE int32_t quotient(int32_t number, const Divisor& by) {
  divide(number, by);
  return number;
}

}  // namespace na_deploy::cuda
