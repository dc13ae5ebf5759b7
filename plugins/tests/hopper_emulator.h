// Hopper's part of the emulated GPU: barriers that count bytes, copies of boxes by the tensor memory accelerator, and
// products of warp groups, which are computed only when they are waited for. Descriptors and layouts are those of the
// PTX manual and of CUTLASS's canonical layouts (include/cute/atom/mma_traits_sm90_gmma.hpp).
#pragma once

#include "cuda_emulator.h"
#include "hopper/tensors.h"

namespace na_deploy::cuda::hopper {

using TensorMap = TensorBox;

inline void make_barrier(dev::Shared barrier, uint32_t arrivals) {
  emulated::block().shared(barrier, 8);
  emulated::Barrier& own = emulated::block().barrier_at(barrier);
  own.arrivals = own.missing = arrivals;
}
inline void publish_barriers() {}
inline void arrive(dev::Shared barrier) {
  emulated::Barrier& own = emulated::block().barrier_at(barrier);
  --own.missing;
  own.check();
}
inline void expect_bytes(dev::Shared barrier, uint32_t bytes) {
  emulated::block().barrier_at(barrier).bytes += bytes;
  arrive(barrier);
}
inline void await(dev::Shared barrier, uint32_t parity) {
  emulated::block().wait_until([&] { return emulated::block().barrier_at(barrier).phase != parity; });
}

// Rows of 128 bytes are swizzled by their place in shared memory.
inline uint32_t swizzled(uint32_t at) { return at ^ (at >> 3 & 0x70); }

inline void copy_box(dev::Shared to, const TensorMap& from, dev::Shared barrier, const int32_t (&at)[5]) {
  emulated::Block& block = emulated::block();
  if (to % 1024 != 0) emulated::fail("a box is not aligned to its swizzle");
  if (reinterpret_cast<uintptr_t>(from.base) % 16 != 0) emulated::fail("a tensor is not aligned to 16 bytes");
  uint32_t rows = 1;
  for (int a = 1; a < kTensorAxes; ++a) {
    rows *= from.box[a];
    if (from.distance[a] % 8 != 0) emulated::fail("a tensor's axis does not advance by whole 16 bytes");
    if (from.box[a] > 256) emulated::fail("a box has more than 256 places on an axis");
  }
  for (uint32_t n = 0; n < rows * 8; ++n) std::memset(block.shared(to + n * 16, 16), 0xFF, 16);
  block.later(to, size_t{rows} * 128, [=, &block] {
    const TensorMap map = from;
    for (uint32_t row = 0; row < rows; ++row) {
      uint32_t rest = row;
      int64_t offset = 0;
      bool inside = true;
      for (int a = 1; a < kTensorAxes; ++a) {
        const int64_t place = at[a] + static_cast<int64_t>(rest % map.box[a]);
        rest /= map.box[a];
        inside = inside && place >= 0 && place < static_cast<int64_t>(map.size[a]);
        offset += place * static_cast<int64_t>(map.distance[a]);
      }
      for (uint32_t piece = 0; piece < 8; ++piece) {
        const int64_t channel = at[0] + static_cast<int64_t>(piece) * 8;
        unsigned char* target = block.shared(swizzled(to + row * 128 + piece * 16), 16);
        if (inside && channel >= 0 && channel + 8 <= static_cast<int64_t>(map.size[0])) {
          const auto* source = static_cast<const uint16_t*>(map.base) + offset + channel;
          block.check_global(source, 16);
          std::memcpy(target, source, 16);
        } else {
          std::memset(target, 0, 16);
        }
      }
    }
    emulated::Barrier& own = block.barrier_at(barrier);
    own.bytes -= static_cast<int64_t>(rows) * 128;
    own.check();
  });
}

inline void sync_group(int number) { emulated::block().barrier_of(number, 128); }
template <int kRegisters>
inline void give_registers() {}
template <int kRegisters>
inline void take_registers() {}

inline void begin_products() {}
inline void commit_products() {
  emulated::Fiber& own = emulated::block().own();
  own.products.push_back(std::move(own.open_products));
  own.open_products.clear();
}
template <int kTiles>
inline void arrived(float (&)[kTiles][4]) {}

template <typename T>
inline float element_of(uint16_t bits) {
  return dev::to_float(T{bits});
}

// A matrix of 16-bit numbers in shared memory, as its descriptor states.
struct Described {
  explicit Described(uint64_t text)
      : start(static_cast<uint32_t>(text & 0x3FFF) << 4),
        leading(static_cast<uint32_t>(text >> 16 & 0x3FFF) << 4),
        stride(static_cast<uint32_t>(text >> 32 & 0x3FFF) << 4) {
    if (text >> 62 != 1) emulated::fail("a matrix is not described as swizzled in rows of 128 bytes");
    if ((text >> 49 & 7) != 0) emulated::fail("a matrix has a base offset");
  }
  // Reads a matrix whose rows are not summed over: a row, and the channel that is.
  uint16_t by_row(uint32_t row, uint32_t channel) const {
    return read(start + row / 8 * stride + row % 8 * 128 + channel * 2);
  }
  // Reads a matrix whose rows are summed over.
  uint16_t by_sum(uint32_t row, uint32_t channel) const {
    return read(start + channel / 64 * leading + row / 8 * stride + row % 8 * 128 + channel % 64 * 2);
  }
  // Checks that all blocks of 64 channels, as copies bring them, have arrived.
  void check_arrived(int channels) const {
    for (uint32_t c = 0; c < static_cast<uint32_t>(channels); c += 64) {
      emulated::block().check_arrived(start + c / 64 * leading);
    }
  }

 private:
  static uint16_t read(uint32_t at) {
    uint16_t bits = 0;
    std::memcpy(&bits, emulated::block().shared(swizzled(at), 2), 2);
    return bits;
  }
  uint32_t start;
  uint32_t leading;
  uint32_t stride;
};

// Begins a product. Its operands must have arrived, although it is computed later.
inline void begin_product(const emulated::Product& product) {
  if (product.left == nullptr) Described(product.left_rows).check_arrived(64);
  Described(product.right).check_arrived(product.right_is_rows ? product.columns : 64);
  emulated::block().own().open_products.push_back(product);
}
template <typename T>
inline void multiply_rows(float (&d)[16][4], uint64_t a, uint64_t b, bool accumulate) {
  begin_product({&d[0][0], 128, nullptr, a, b, false, accumulate, &element_of<T>});
}
template <typename T, int kTiles>
inline void multiply_values(float (&d)[kTiles][4], const uint32_t (&a)[4], uint64_t b) {
  begin_product({&d[0][0], kTiles * 8, a, 0, b, true, true, &element_of<T>});
}

struct WaitArguments {
  const std::vector<emulated::Product>* products;
  int thread;
};

inline void multiply_of_warp(const emulated::Product* const (&lane)[32], int thread) {
  const emulated::Product& any = *lane[0];
  const auto columns = static_cast<uint32_t>(any.columns);
  float left[16][16];
  if (any.left == nullptr) {
    const Described rows(any.left_rows);
    const auto first = static_cast<uint32_t>(thread / 32 % 4 * 16);
    for (uint32_t r = 0; r < 16; ++r) {
      for (uint32_t k = 0; k < 16; ++k) left[r][k] = any.element(rows.by_row(first + r, k));
    }
  } else {
    for (int i = 0; i < 32; ++i) {
      for (int part = 0; part < 4; ++part) {
        const uint32_t word = lane[i]->left[part];
        float* to = &left[i / 4 + part % 2 * 8][i % 4 * 2 + part / 2 * 8];
        to[0] = any.element(static_cast<uint16_t>(word & 0xFFFF));
        to[1] = any.element(static_cast<uint16_t>(word >> 16));
      }
    }
  }
  const Described matrix(any.right);
  std::vector<float> right(columns * 16);
  for (uint32_t n = 0; n < columns; ++n) {
    for (uint32_t k = 0; k < 16; ++k) {
      right[n * 16 + k] = any.element(any.right_is_rows ? matrix.by_sum(k, n) : matrix.by_row(n, k));
    }
  }
  for (int i = 0; i < 32; ++i) {
    for (uint32_t n = 0; n < columns / 8; ++n) {
      for (int j = 0; j < 4; ++j) {
        const float* a = left[i / 4 + j / 2 * 8];
        const float* b = &right[(n * 8 + static_cast<uint32_t>(i % 4 * 2 + j % 2)) * 16];
        float& to = lane[i]->to[n * 4 + static_cast<uint32_t>(j)];
        float sum = any.accumulate ? to : 0.0F;
        for (int k = 0; k < 16; ++k) sum += a[k] * b[k];
        to = sum;
      }
    }
  }
}

template <int kPending, int kPlace = 0>
inline void wait_products() {
  emulated::Fiber& own = emulated::block().own();
  std::vector<emulated::Product> due;
  while (own.products.size() > kPending) {
    due.insert(due.end(), own.products.front().begin(), own.products.front().end());
    own.products.erase(own.products.begin());
  }
  WaitArguments arguments{&due, emulated::block().thread()};
  emulated::block().together(
      [](void* const(&lane)[32]) {
        const auto& first = *static_cast<const WaitArguments*>(lane[0]);
        for (size_t q = 0; q < first.products->size(); ++q) {
          const emulated::Product* of_lane[32];
          for (int i = 0; i < 32; ++i) {
            const auto& all = *static_cast<const WaitArguments*>(lane[i])->products;
            if (all.size() != first.products->size()) emulated::fail("lanes of a warp wait for other products");
            of_lane[i] = &all[q];
          }
          multiply_of_warp(of_lane, first.thread);
        }
      },
      &arguments);
}

}  // namespace na_deploy::cuda::hopper
