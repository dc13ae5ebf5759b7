// Products on tensor cores, in pieces of 16 keys by 16 channels of a warp's 16 queries.
//
// Numbers of 16 bits are multiplied directly. Those of float32 are split into two of TF32, high and low, and multiplied
// three times, high by high, high by low and low by high; the part left out is 2^-21 of a product.
#pragma once

#include <cstdint>

#include "device.h"
#include "shape.h"

namespace na_deploy::cuda {

// A step is 32 bytes of a row: 16 channels of 16 bits, 8 of float32. kBytes: bytes of a row in shared memory.
template <typename T, int kBytes>
struct Fragments {
  static constexpr int kSteps = kBytes / 32;

  struct Queries {
    uint32_t part[4];
  };
  struct Weights {
    uint32_t part[4];
  };

  NA_DEVICE static void read_queries(Queries& to, dev::Shared row) { dev::load_matrices(to.part, row); }

  // Adds the products of a step to the scores of eight keys and of the next eight. `row`: this lane's address, as
  // load_matrices takes it.
  NA_DEVICE static void score(float (&first)[4], float (&second)[4], const Queries& queries, dev::Shared row) {
    uint32_t keys[4];
    dev::load_matrices(keys, row);
    dev::multiply<T>(first, queries.part, keys[0], keys[1]);
    dev::multiply<T>(second, queries.part, keys[2], keys[3]);
  }

  NA_DEVICE static Weights weights(const float (&first)[4], const float (&second)[4]) {
    return {{dev::pack<T>(first[0], first[1]), dev::pack<T>(first[2], first[3]), dev::pack<T>(second[0], second[1]),
             dev::pack<T>(second[2], second[3])}};
  }

  // Adds 16 weighted values, rows [key, key + 16) of `values`, to channels [16 c, 16 c + 16).
  NA_DEVICE static void sum(float (&low)[4], float (&high)[4], const Weights& weights, dev::Shared values, int key,
                            int c, int lane) {
    uint32_t value[4];
    dev::load_matrices_transposed(value, Rows<kBytes>::at(values, key + lane % 16, 2 * c + lane / 16));
    dev::multiply<T>(low, weights.part, value[0], value[1]);
    dev::multiply<T>(high, weights.part, value[2], value[3]);
  }
};

// A float32 as two TF32. The high one is rounded to nearest: half a unit is added and lower bits are cut off. The low
// one is unrounded, its last bits ignored: adding half a unit there would turn the device's NaN, 0x7FFFFFFF, into 0.
struct Tf32Pair {
  uint32_t high;
  uint32_t low;
};
NA_DEVICE Tf32Pair split_tf32(float x) {
  const uint32_t high = (dev::float_bits(x) + 0x1000) & 0xFFFFE000U;
  return {high, dev::float_bits(x - dev::bits_float(high))};
}
NA_DEVICE void multiply_split(float (&c)[4], const Tf32Pair (&a)[4], Tf32Pair b0, Tf32Pair b1) {
  const uint32_t high[4] = {a[0].high, a[1].high, a[2].high, a[3].high};
  const uint32_t low[4] = {a[0].low, a[1].low, a[2].low, a[3].low};
  dev::multiply_tf32(c, low, b0.high, b1.high);
  dev::multiply_tf32(c, high, b0.low, b1.low);
  dev::multiply_tf32(c, high, b0.high, b1.high);
}

template <int kBytes>
struct Fragments<float, kBytes> {
  static constexpr int kSteps = kBytes / 32;

  struct Queries {
    float part[4];  // split when needed: registers do not suffice for twice as many
  };
  struct Weights {
    Tf32Pair part[2][4];
  };

  NA_DEVICE static void read_queries(Queries& to, dev::Shared row) {
    uint32_t bits[4];
    dev::load_matrices(bits, row);
    NA_UNROLL
    for (int i = 0; i < 4; ++i) to.part[i] = dev::bits_float(bits[i]);
  }

  NA_DEVICE static void score(float (&first)[4], float (&second)[4], const Queries& queries, dev::Shared row) {
    uint32_t bits[4];
    dev::load_matrices(bits, row);
    Tf32Pair query[4];
    Tf32Pair keys[4];
    NA_UNROLL
    for (int i = 0; i < 4; ++i) {
      float own = queries.part[i];
      dev::forget(own);
      query[i] = split_tf32(own);
      keys[i] = split_tf32(dev::bits_float(bits[i]));
    }
    multiply_split(first, query, keys[0], keys[1]);
    multiply_split(second, query, keys[2], keys[3]);
  }

  // A lane holds the scores of keys 2t and 2t + 1 of each eight and multiplies them as keys t and t + 4. The order of a
  // sum is free, as long as values come in the same one.
  NA_DEVICE static Weights weights(const float (&first)[4], const float (&second)[4]) {
    Weights r;
    NA_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int from = i / 2 + i % 2 * 2;
      r.part[0][i] = split_tf32(first[from]);
      r.part[1][i] = split_tf32(second[from]);
    }
    return r;
  }

  NA_DEVICE static void sum(float (&low)[4], float (&high)[4], const Weights& weights, dev::Shared values, int key,
                            int c, int lane) {
    NA_UNROLL
    for (int eight = 0; eight < 2; ++eight) {
      const int row = key + eight * 8 + lane % 4 * 2;
      NA_UNROLL
      for (int part = 0; part < 2; ++part) {
        const int channel = c * 16 + part * 8 + lane / 4;
        const auto at = static_cast<dev::Shared>(channel % 4 * 4);
        const Tf32Pair even = split_tf32(dev::load_shared4(Rows<kBytes>::at(values, row, channel / 4) + at));
        const Tf32Pair odd = split_tf32(dev::load_shared4(Rows<kBytes>::at(values, row + 1, channel / 4) + at));
        multiply_split(part == 0 ? low : high, weights.part[eight], even, odd);
      }
    }
  }
};

}  // namespace na_deploy::cuda
