// Runs device code on the host: every thread of a block is a fiber, barriers and warp-wide instructions wait for all.
//
// The emulator replaces plugins/cuda/device.h and checks things that a GPU leaves to chance: copies in flight are
// poison until they are waited for, shared and copied memory is bounded and aligned, all lanes of a warp must arrive at
// the same instruction, and threads run in another order every time. Register layouts are those of the PTX manual.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#define NA_DEVICE inline
#define NA_UNROLL
#define NA_NO_UNROLL

namespace na_deploy::cuda::emulated {

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "emulated GPU: %s\n", what);
  std::abort();
}

struct Copy {
  uint32_t to;
  const void* from;
  bool inside;
};

// A product of a warp group that is under way (hopper_emulator.h).
struct Product {
  float* to;
  int columns;
  const uint32_t* left;  // in registers, or null
  uint64_t left_rows;
  uint64_t right;
  bool right_is_rows;  // rows of the axis that is summed over
  bool accumulate;
  float (*element)(uint16_t bits);
};

// A barrier in shared memory that counts arrivals and bytes.
struct Barrier {
  int64_t arrivals = 0;
  int64_t missing = 0;
  int64_t bytes = 0;
  uint32_t phase = 0;

  void check() {
    if (missing < 0) fail("more arrivals at a barrier than it was made for");
    if (missing > 0 || bytes != 0) return;
    missing = arrivals;
    phase ^= 1;
  }
};

// A thread. It begins in its context and goes on at its place: setjmp and longjmp ask nothing of the system, where
// swapcontext makes two calls.
struct Fiber {
  ucontext_t context;
  jmp_buf place;
  std::unique_ptr<unsigned char[]> stack;
  bool started = false;
  std::vector<std::vector<Copy>> groups;  // committed copies, oldest first
  std::vector<Copy> open;
  std::vector<std::vector<Product>> products;  // committed, oldest first
  std::vector<Product> open_products;
  bool done = false;
};

using Collective = void (*)(void* const (&lanes)[32]);

struct Warp {
  void* lane[32] = {};
  Collective instruction = nullptr;
  int arrived = 0;
  int64_t generation = 0;
};

struct Range {
  const unsigned char* first;
  size_t bytes;
};

constexpr size_t kStack = 128 * 1024;

class Block {
 public:
  Block(int64_t own_number, int64_t of_blocks, int threads, size_t shared_bytes, std::vector<Range> memory)
      : number(own_number),
        count(of_blocks),
        fibers_(static_cast<size_t>(threads)),
        warps_(static_cast<size_t>((threads + 31) / 32)),
        shared_(shared_bytes, 0xFF),
        memory_(std::move(memory)) {}

  void run(const std::function<void()>& body) {
    body_ = &body;
    for (Fiber& fiber : fibers_) {
      fiber.stack = std::make_unique<unsigned char[]>(kStack);
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = kStack;
      fiber.context.uc_link = nullptr;  // start() does not return
      makecontext(&fiber.context, &Block::start, 0);
    }
    Block* outer = std::exchange(current_block, this);
    auto order = static_cast<uint64_t>(number) * 2654435761U + 1;
    for (size_t left = fibers_.size(), idle = 0; left > 0;) {
      const size_t before = progress_;
      order = order * 6364136223846793005ULL + 1442695040888963407ULL;
      const size_t from = (order >> 33) % fibers_.size();
      const bool backwards = (order >> 62 & 1) != 0;
      for (size_t i = 0; i < fibers_.size(); ++i) {
        current_ = (from + (backwards ? fibers_.size() - i : i)) % fibers_.size();
        Fiber& fiber = fibers_[current_];
        if (fiber.done) continue;
        resume(fiber);
        if (fiber.done) --left;
      }
      deliver(order);
      idle = progress_ == before ? idle + 1 : 0;
      if (idle > 2) fail("threads wait for each other forever");
    }
    current_block = outer;
  }

  int thread() const { return static_cast<int>(current_); }
  int threads() const { return static_cast<int>(fibers_.size()); }

  // The barrier of all threads, which has number 0 as on a GPU.
  void barrier() { barrier_of(0, threads()); }

  // A barrier of some threads, under a number.
  void barrier_of(int which, int threads) {
    Meeting& meeting = meetings_[which];
    const int64_t generation = meeting.generation;
    if (++meeting.waiting == threads) {
      meeting.waiting = 0;
      ++meeting.generation;
      ++progress_;
      return;
    }
    while (meetings_[which].generation == generation) yield();
  }

  template <typename Condition>
  void wait_until(const Condition& condition) {
    while (!condition()) yield();
    ++progress_;
  }

  // Has `what` write so many bytes of shared memory at some later time, in any order.
  void later(uint32_t to, size_t bytes, std::function<void()> what) {
    in_flight_.push_back({to, bytes, std::move(what), -1});
  }
  // Checks that no copy to this shared memory is under way when it is read.
  void check_arrived(uint32_t at) const {
    for (const Flight& flight : in_flight_) {
      if (at >= flight.to && at < flight.to + flight.bytes) fail("shared memory is read before it was waited for");
    }
  }

  Fiber& own() { return fibers_[current_]; }
  Barrier& barrier_at(uint32_t at) {
    if (at % 8 != 0) fail("an unaligned barrier");
    return barriers_[at];
  }

  // Waits for all lanes of the warp; the last one to arrive computes for all.
  void together(Collective instruction, void* arguments) {
    Warp& warp = warps_[current_ / 32];
    if (warp.arrived > 0 && warp.instruction != instruction) fail("lanes of a warp are at different instructions");
    warp.instruction = instruction;
    warp.lane[current_ % 32] = arguments;
    if (++warp.arrived == 32) {
      instruction(warp.lane);
      warp.arrived = 0;
      ++warp.generation;
      ++progress_;
      return;
    }
    const int64_t generation = warp.generation;
    while (warp.generation == generation) yield();
  }

  unsigned char* shared(uint32_t at, size_t bytes) {
    if (at % bytes != 0) fail("an unaligned address in shared memory");
    if (at + bytes > shared_.size()) fail("an address past shared memory");
    return shared_.data() + at;
  }
  unsigned char* shared_object(int at, size_t bytes, size_t alignment) {
    if (static_cast<size_t>(at) % alignment != 0 || static_cast<size_t>(at) + bytes > shared_.size()) {
      fail("an object outside shared memory, or unaligned");
    }
    return shared_.data() + at;
  }
  void check_global(const void* at, size_t bytes) const {
    const auto* address = static_cast<const unsigned char*>(at);
    if (reinterpret_cast<uintptr_t>(address) % bytes != 0) fail("an unaligned address in global memory");
    for (const Range& range : memory_) {
      if (address >= range.first && address + bytes <= range.first + range.bytes) return;
    }
    fail("an address outside the tensors");
  }

  void copy(Copy what) {
    std::memset(shared(what.to, 16), 0xFF, 16);
    if (what.inside) check_global(what.from, 16);
    fibers_[current_].open.push_back(what);
  }
  void commit() {
    Fiber& fiber = fibers_[current_];
    fiber.groups.push_back(std::move(fiber.open));
    fiber.open.clear();
  }
  void wait(size_t pending) {
    Fiber& fiber = fibers_[current_];
    while (fiber.groups.size() > pending) {
      for (const Copy& copy : fiber.groups.front()) {
        if (copy.inside) {
          std::memcpy(shared(copy.to, 16), copy.from, 16);
        } else {
          std::memset(shared(copy.to, 16), 0, 16);
        }
      }
      fiber.groups.erase(fiber.groups.begin());
    }
  }

  const int64_t number;
  const int64_t count;
  static thread_local Block* current_block;

 private:
  struct Meeting {
    int waiting = 0;
    int64_t generation = 0;
  };

  struct Flight {
    uint32_t to;
    size_t bytes;
    std::function<void()> arrive;
    int rounds = -1;  // rounds left; -1: not drawn yet
  };

  // Delivers copies in flight, each after a few rounds, sometimes many.
  void deliver(uint64_t order) {
    for (size_t i = in_flight_.size(); i-- > 0;) {
      ++progress_;
      order = order * 6364136223846793005ULL + 1442695040888963407ULL;
      Flight& flight = in_flight_[i];
      if (flight.rounds < 0) flight.rounds = static_cast<int>((order >> 33) % ((order >> 60) < 4 ? 128 : 4));
      if (flight.rounds-- > 0) continue;
      const std::function<void()> arrive = std::move(flight.arrive);
      in_flight_.erase(in_flight_.begin() + static_cast<std::ptrdiff_t>(i));
      arrive();
    }
  }

  static void start() {
    Block& block = *current_block;
    (*block.body_)();
    ++block.progress_;
    block.fibers_[block.current_].done = true;
    _longjmp(block.scheduler_, 1);
  }
  void resume(Fiber& fiber) {
    if (_setjmp(scheduler_) != 0) return;
    if (fiber.started) _longjmp(fiber.place, 1);
    fiber.started = true;
    setcontext(&fiber.context);
  }
  void yield() {
    if (_setjmp(fibers_[current_].place) == 0) _longjmp(scheduler_, 1);
  }

  std::vector<Fiber> fibers_;
  std::vector<Warp> warps_;
  std::vector<unsigned char> shared_;
  std::vector<Range> memory_;
  std::map<int, Meeting> meetings_;
  std::map<uint32_t, Barrier> barriers_;
  std::vector<Flight> in_flight_;
  const std::function<void()>* body_ = nullptr;
  jmp_buf scheduler_{};
  size_t current_ = 0;
  size_t progress_ = 0;
};

inline thread_local Block* Block::current_block = nullptr;
inline Block& block() { return *Block::current_block; }

inline float compute_half(uint16_t bits) {
  const int exponent = bits >> 10 & 31;
  const int fraction = bits & 1023;
  float value = exponent == 31  ? (fraction != 0 ? NAN : INFINITY)
                : exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                : std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
  return (bits & 0x8000) != 0 ? -value : value;
}

inline float half_to_float(uint16_t bits) {
  static const std::vector<float> table = [] {
    std::vector<float> all(65536);
    for (uint32_t b = 0; b < all.size(); ++b) all[b] = compute_half(static_cast<uint16_t>(b));
    return all;
  }();
  return table[bits];
}

inline uint16_t float_to_half(float value) {
  const auto sign = static_cast<uint16_t>(std::signbit(value) ? 0x8000 : 0);
  const float size = std::fabs(value);
  if (std::isnan(value)) return static_cast<uint16_t>(sign | 0x7E00);
  if (size == 0.0F) return sign;
  if (size >= 65520.0F) return static_cast<uint16_t>(sign | 0x7C00);
  int exponent = 0;
  std::frexp(size, &exponent);
  exponent = exponent < -13 ? -13 : exponent;  // below, numbers are multiples of 2^-24
  const auto units = static_cast<int>(std::nearbyint(std::ldexp(size, 11 - exponent)));
  return static_cast<uint16_t>(sign + ((exponent + 13) << 10) + units);
}

inline float bfloat_to_float(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value = 0;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

inline uint16_t float_to_bfloat(float value) {
  uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof bits);
  if (std::isnan(value)) return 0x7FC0;
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

}  // namespace na_deploy::cuda::emulated

namespace na_deploy::cuda::dev {

inline int thread() { return emulated::block().thread(); }
inline int threads() { return emulated::block().threads(); }
inline int64_t block() { return emulated::block().number; }
inline int64_t blocks() { return emulated::block().count; }
inline void sync() { emulated::block().barrier(); }
inline void sync_warp() {
  emulated::block().together([](void* const(&)[32]) {}, nullptr);
}

inline float shuffle_xor(float value, int mask) {
  struct Arguments {
    float value;
    int mask;
    float found;
  } own{value, mask, 0.0F};
  emulated::block().together(
      [](void* const(&lane)[32]) {
        for (int i = 0; i < 32; ++i) {
          auto* to = static_cast<Arguments*>(lane[i]);
          to->found = static_cast<const Arguments*>(lane[i ^ to->mask])->value;
        }
      },
      &own);
  return own.found;
}

struct BitsArguments {
  uint32_t bits;
};
inline int first_lane(int number) {
  struct Arguments {
    int number;
    int found;
  } own{number, 0};
  emulated::block().together(
      [](void* const(&lane)[32]) {
        for (void* each : lane) static_cast<Arguments*>(each)->found = static_cast<const Arguments*>(lane[0])->number;
      },
      &own);
  return own.found;
}
inline uint32_t any_bits(uint32_t bits) {
  BitsArguments own{bits};
  emulated::block().together(
      [](void* const(&lane)[32]) {
        uint32_t all = 0;
        for (void* one : lane) all |= static_cast<const BitsArguments*>(one)->bits;
        for (void* one : lane) static_cast<BitsArguments*>(one)->bits = all;
      },
      &own);
  return own.bits;
}
inline bool any(bool yes) { return any_bits(yes ? 1 : 0) != 0; }

inline float exp2(float x) { return x < -126.0F ? 0.0F : std::exp2(x); }
inline float reciprocal(float x) { return 1.0F / x; }
inline float log2(float x) { return std::log2(x); }
inline float log(float x) { return std::log(x); }
inline float max(float a, float b) { return std::fmax(a, b); }

inline uint32_t float_bits(float x) {
  if (std::isnan(x)) return 0x7FFFFFFF;  // the only NaN that arithmetic of a GPU makes
  uint32_t bits = 0;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline float bits_float(uint32_t bits) {
  float x = 0;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline void forget(float&) {}
inline void forget(int&) {}
inline std::atomic<int64_t> queries_computed_again{0};
inline void computed_again() { ++queries_computed_again; }
inline uint64_t element_at(uint64_t base, uint32_t number, uint32_t bytes) {
  return base + static_cast<uint64_t>(number) * bytes;
}

inline uint32_t low_bits(int32_t count) {
  return count <= 0 ? 0 : count >= 32 ? 0xFFFFFFFFU : (uint32_t{1} << count) - 1;
}

using Shared = uint32_t;
inline Shared shared_base() { return 0; }
template <typename T>
inline T& shared_object(int offset) {
  return *reinterpret_cast<T*>(emulated::block().shared_object(offset, sizeof(T), alignof(T)));
}
inline void copy_ahead(Shared to, const void* from, bool inside) { emulated::block().copy({to, from, inside}); }
inline void copy_ahead(Shared to, const void* from) { copy_ahead(to, from, true); }
inline void commit_copies() { emulated::block().commit(); }
template <int kPending>
inline void wait_copies() {
  emulated::block().wait(kPending);
}

struct MatrixArguments {
  Shared row;
  uint32_t* to;
};
template <bool kTransposed>
inline void load_matrices_of_warp(void* const (&lane)[32]) {
  for (int m = 0; m < 4; ++m) {
    uint16_t matrix[8][8];
    for (int r = 0; r < 8; ++r) {
      const Shared row = static_cast<const MatrixArguments*>(lane[m * 8 + r])->row;
      std::memcpy(matrix[r], emulated::block().shared(row, 16), 16);
    }
    for (int i = 0; i < 32; ++i) {
      const int a = i / 4;
      const int b = i % 4 * 2;
      const uint32_t low = kTransposed ? matrix[b][a] : matrix[a][b];
      const uint32_t high = kTransposed ? matrix[b + 1][a] : matrix[a][b + 1];
      static_cast<const MatrixArguments*>(lane[i])->to[m] = low | high << 16;
    }
  }
}
inline void load_matrices(uint32_t (&to)[4], Shared row) {
  MatrixArguments own{row, to};
  emulated::block().together(&load_matrices_of_warp<false>, &own);
}
inline void load_matrices_transposed(uint32_t (&to)[4], Shared row) {
  MatrixArguments own{row, to};
  emulated::block().together(&load_matrices_of_warp<true>, &own);
}

// Returns true for every other block, so that both ways are tried.
inline bool stores_matrices() { return emulated::block().number % 2 == 0; }
inline void store_shared4(Shared to, uint32_t word) { std::memcpy(emulated::block().shared(to, 4), &word, 4); }
inline void store_matrices(Shared row, const uint32_t (&from)[4]) {
  struct Arguments {
    Shared row;
    const uint32_t* from;
  } own{row, from};
  emulated::block().together(
      [](void* const(&lane)[32]) {
        for (int m = 0; m < 4; ++m) {
          for (int i = 0; i < 32; ++i) {
            const auto* to = static_cast<const Arguments*>(lane[m * 8 + i / 4]);
            const uint32_t two = static_cast<const Arguments*>(lane[i])->from[m];
            std::memcpy(emulated::block().shared(to->row, 16) + i % 4 * 4, &two, 4);
          }
        }
      },
      &own);
}

inline float load_shared4(Shared from) {
  float v = 0;
  std::memcpy(&v, emulated::block().shared(from, 4), 4);
  return v;
}
struct Floats2 {
  float at[2];
};
inline Floats2 load_shared8(Shared from) {
  Floats2 v;
  std::memcpy(&v, emulated::block().shared(from, 8), 8);
  return v;
}
struct Bytes16 {
  uint32_t word[4];
};
inline Bytes16 load_shared16(Shared from) {
  Bytes16 v;
  std::memcpy(&v, emulated::block().shared(from, 16), 16);
  return v;
}
inline void store_global16(void* to, const Bytes16& v) {
  emulated::block().check_global(to, 16);
  std::memcpy(to, &v, 16);
}

struct Half {
  uint16_t bits;
};
struct Bfloat {
  uint16_t bits;
};
inline float to_float(float x) { return x; }
inline float to_float(Half x) { return emulated::half_to_float(x.bits); }
inline float to_float(Bfloat x) { return emulated::bfloat_to_float(x.bits); }
inline void from_float(float x, float& to) { to = x; }
inline void from_float(float x, Half& to) { to.bits = emulated::float_to_half(x); }
inline void from_float(float x, Bfloat& to) { to.bits = emulated::float_to_bfloat(x); }

template <typename T>
inline T load_global2(const T* from) {
  return *from;
}

template <typename T>
inline uint32_t pack(float low, float high) {
  T a;
  T b;
  from_float(low, a);
  from_float(high, b);
  return a.bits | static_cast<uint32_t>(b.bits) << 16;
}

template <typename T>
inline void store_two(Shared to, float low, float high) {
  if constexpr (sizeof(T) == 4) {
    const float both[2] = {low, high};
    std::memcpy(emulated::block().shared(to, 8), both, 8);
  } else {
    const uint32_t both = pack<T>(low, high);
    std::memcpy(emulated::block().shared(to, 4), &both, 4);
  }
}

template <typename T>
struct MultiplyArguments {
  float* c;
  const uint32_t* a;
  uint32_t b[2];

  static float part(uint32_t word, int index) {
    return to_float(T{static_cast<uint16_t>(index == 0 ? word & 0xFFFF : word >> 16)});
  }

  static void of_warp(void* const (&lane)[32]) {
    float a[16][16];
    float b[16][8];
    for (int i = 0; i < 32; ++i) {
      const auto& own = *static_cast<const MultiplyArguments*>(lane[i]);
      const int g = i / 4;
      const int t = i % 4 * 2;
      for (int j = 0; j < 2; ++j) {
        a[g][t + j] = part(own.a[0], j);
        a[g + 8][t + j] = part(own.a[1], j);
        a[g][t + 8 + j] = part(own.a[2], j);
        a[g + 8][t + 8 + j] = part(own.a[3], j);
        b[t + j][g] = part(own.b[0], j);
        b[t + 8 + j][g] = part(own.b[1], j);
      }
    }
    for (int i = 0; i < 32; ++i) {
      const auto& own = *static_cast<const MultiplyArguments*>(lane[i]);
      for (int j = 0; j < 4; ++j) {
        for (int k = 0; k < 16; ++k) own.c[j] += a[i / 4 + j / 2 * 8][k] * b[k][i % 4 * 2 + j % 2];
      }
    }
  }
};
template <typename T>
inline void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  MultiplyArguments<T> own{c, a, {b0, b1}};
  emulated::block().together(&MultiplyArguments<T>::of_warp, &own);
}

template <typename T>
inline void multiply_from(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const float (&c)[4]) {
  std::memcpy(d, c, sizeof d);
  multiply<T>(d, a, b0, b1);
}

struct Tf32Arguments {
  float* c;
  const uint32_t* a;
  uint32_t b[2];

  static void of_warp(void* const (&lane)[32]) {
    float a[16][8];
    float b[8][8];
    for (int i = 0; i < 32; ++i) {
      const auto& own = *static_cast<const Tf32Arguments*>(lane[i]);
      const int g = i / 4;
      const int t = i % 4;
      for (int part = 0; part < 4; ++part) {
        a[g + part % 2 * 8][t + part / 2 * 4] = bits_float(own.a[part] & 0xFFFFE000U);
      }
      for (int part = 0; part < 2; ++part) b[t + part * 4][g] = bits_float(own.b[part] & 0xFFFFE000U);
    }
    for (int i = 0; i < 32; ++i) {
      const auto& own = *static_cast<const Tf32Arguments*>(lane[i]);
      for (int j = 0; j < 4; ++j) {
        for (int k = 0; k < 8; ++k) own.c[j] += a[i / 4 + j / 2 * 8][k] * b[k][i % 4 * 2 + j % 2];
      }
    }
  }
};
inline void multiply_tf32(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  Tf32Arguments own{c, a, {b0, b1}};
  emulated::block().together(&Tf32Arguments::of_warp, &own);
}

}  // namespace na_deploy::cuda::dev
