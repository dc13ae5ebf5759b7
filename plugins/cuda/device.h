// Device functions beyond C++: thread numbers, barriers, copies ahead, matrix products.
//
// Kernels are written against these functions alone. nvcc compiles them to instructions; with NA_CUDA_EMULATED the same
// kernels compile for the host, where plugins/tests/cuda_emulator.h runs every thread of a block as a fiber.
#pragma once

#include <cstdint>
#include <type_traits>

#ifdef NA_CUDA_EMULATED
#include "cuda_emulator.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define NA_DEVICE __device__ __forceinline__
#define NA_UNROLL _Pragma("unroll")
#define NA_NO_UNROLL _Pragma("unroll 1")

namespace na_deploy::cuda::dev {

NA_DEVICE int thread() { return static_cast<int>(threadIdx.x); }
NA_DEVICE int threads() { return static_cast<int>(blockDim.x); }
NA_DEVICE int64_t block() { return blockIdx.x; }
NA_DEVICE int64_t blocks() { return gridDim.x; }

NA_DEVICE void sync() { __syncthreads(); }
NA_DEVICE void sync_warp() { __syncwarp(); }

// The value that the lane `lane ^ mask` holds.
NA_DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffU, value, mask); }

// Gives the first lane's number to the whole warp.
NA_DEVICE int first_lane(int number) { return __shfl_sync(0xffffffffU, number, 0); }

// Combinations over the lanes of a warp: the bits that any lane has, and whether `yes` holds for any lane.
NA_DEVICE uint32_t any_bits(uint32_t bits) { return __reduce_or_sync(0xffffffffU, bits); }
NA_DEVICE bool any(bool yes) { return __any_sync(0xffffffffU, yes) != 0; }

// Two raised to x, within two units of the last place; 0 for -infinity and where the result would be denormal.
NA_DEVICE float exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}
// The reciprocal of x, within two units of the last place.
NA_DEVICE float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}
// The logarithm to base 2, with an error of at most 2^-22 relative to itself or, where it is less than one, to one.
NA_DEVICE float log2(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}
NA_DEVICE float log(float x) { return logf(x); }
NA_DEVICE float max(float a, float b) { return fmaxf(a, b); }

NA_DEVICE uint32_t float_bits(float x) { return __float_as_uint(x); }
NA_DEVICE float bits_float(uint32_t bits) { return __uint_as_float(bits); }

// Keeps the compiler from computing values that depend on x before a loop and holding them in registers.
NA_DEVICE void forget(float& x) { asm volatile("" : "+f"(x)); }
NA_DEVICE void forget(int& x) { asm volatile("" : "+r"(x)); }
// Told of a query that is computed again; tests count them, since wrong reads of poison would be mended too.
NA_DEVICE void computed_again() {}
// The address base + number * bytes, in one instruction.
NA_DEVICE uint64_t element_at(uint64_t base, uint32_t number, uint32_t bytes) {
  uint64_t at;
  asm("mad.wide.u32 %0, %1, %2, %3;\n" : "=l"(at) : "r"(number), "r"(bytes), "l"(base));
  return at;
}

// The lowest `count` bits, all of them from 32 on, none below 1. The shift of PTX, unlike that of C++, ends at 32.
NA_DEVICE uint32_t low_bits(int32_t count) {
  uint32_t above;
  asm("shl.b32 %0, %1, %2;\n" : "=r"(above) : "r"(0xffffffffU), "r"(count > 0 ? count : 0));
  return ~above;
}

// Byte offset in shared memory, by which instructions address it.
using Shared = uint32_t;
extern __shared__ __align__(1024) unsigned char shared_memory[];
NA_DEVICE Shared shared_base() { return static_cast<Shared>(__cvta_generic_to_shared(shared_memory)); }

// An object in the block's shared memory, at a byte offset.
template <typename T>
NA_DEVICE T& shared_object(int offset) {
  return *reinterpret_cast<T*>(shared_memory + offset);
}

// Starts copying 16 bytes, or writing 16 zero bytes where `inside` is false.
NA_DEVICE void copy_ahead(Shared to, const void* from, bool inside) {
  const int bytes = inside ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
NA_DEVICE void copy_ahead(Shared to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(to), "l"(from) : "memory");
}
// Ends a group of copies.
NA_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
// Waits until at most `kPending` groups of this thread's copies are under way; sync() then makes all threads' copies
// visible.
template <int kPending>
NA_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

// Loads four 8x8 matrices of 16-bit numbers; lane l gives the address of row l % 8 of matrix l / 8.
NA_DEVICE void load_matrices(uint32_t (&to)[4], Shared row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(row)
               : "memory");
}
NA_DEVICE void load_matrices_transposed(uint32_t (&to)[4], Shared row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(row)
               : "memory");
}

// Returns whether the device has store_matrices.
NA_DEVICE constexpr bool stores_matrices() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  return true;
#else
  return false;
#endif
}
// Stores four 8x8 matrices of 16-bit numbers; lane l gives the address of row l % 8 of matrix l / 8.
NA_DEVICE void store_matrices([[maybe_unused]] Shared row, [[maybe_unused]] const uint32_t (&from)[4]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};\n" ::"r"(row), "r"(from[0]),
               "r"(from[1]), "r"(from[2]), "r"(from[3])
               : "memory");
#endif
}
NA_DEVICE void store_shared4(Shared to, uint32_t word) {
  asm volatile("st.shared.b32 [%0], %1;\n" ::"r"(to), "r"(word) : "memory");
}

NA_DEVICE float load_shared4(Shared from) {
  float v;
  asm volatile("ld.shared.f32 %0, [%1];\n" : "=f"(v) : "r"(from) : "memory");
  return v;
}
struct Floats2 {
  float at[2];
};
NA_DEVICE Floats2 load_shared8(Shared from) {
  Floats2 v;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];\n" : "=f"(v.at[0]), "=f"(v.at[1]) : "r"(from) : "memory");
  return v;
}
struct Bytes16 {
  uint32_t word[4];
};
NA_DEVICE Bytes16 load_shared16(Shared from) {
  Bytes16 v;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
               : "r"(from)
               : "memory");
  return v;
}
NA_DEVICE void store_global16(void* to, const Bytes16& v) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};\n" ::"l"(to), "r"(v.word[0]), "r"(v.word[1]), "r"(v.word[2]),
               "r"(v.word[3])
               : "memory");
}

// 16-bit numbers as stored in memory.
struct Half {
  uint16_t bits;
};
struct Bfloat {
  uint16_t bits;
};
template <typename T>
constexpr bool kIsHalf = std::is_same_v<T, Half>;
NA_DEVICE float to_float(float x) { return x; }
NA_DEVICE float to_float(Half x) { return __half2float(__ushort_as_half(x.bits)); }
NA_DEVICE float to_float(Bfloat x) { return __bfloat162float(__ushort_as_bfloat16(x.bits)); }
NA_DEVICE void from_float(float x, float& to) { to = x; }
NA_DEVICE void from_float(float x, Half& to) { to.bits = __half_as_ushort(__float2half_rn(x)); }
NA_DEVICE void from_float(float x, Bfloat& to) { to.bits = __bfloat16_as_ushort(__float2bfloat16_rn(x)); }

// Loads two bytes from global memory, in program order.
template <typename T>
NA_DEVICE T load_global2(const T* from) {
  T v;
  asm volatile("ld.global.nc.u16 %0, [%1];\n" : "=h"(v.bits) : "l"(from));
  return v;
}

// Packs two numbers into one register, the first in the low half.
template <typename T>
NA_DEVICE uint32_t pack(float low, float high);
template <>
NA_DEVICE uint32_t pack<Half>(float low, float high) {
  const __half2 v = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&v);
}
template <>
NA_DEVICE uint32_t pack<Bfloat>(float low, float high) {
  const __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&v);
}

// Stores two neighbouring numbers in shared memory.
template <typename T>
NA_DEVICE void store_two(Shared to, float low, float high) {
  if constexpr (sizeof(T) == 4) {
    asm volatile("st.shared.v2.f32 [%0], {%1, %2};\n" ::"r"(to), "f"(low), "f"(high) : "memory");
  } else {
    asm volatile("st.shared.b32 [%0], %1;\n" ::"r"(to), "r"(pack<T>(low, high)) : "memory");
  }
}

// c += a (16x16) times b (16x8), one warp, in the register layouts of mma.m16n8k16.
template <typename T>
NA_DEVICE void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
NA_DEVICE void multiply<Half>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
NA_DEVICE void multiply<Bfloat>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// d = c + a times b, likewise.
template <typename T>
NA_DEVICE void multiply_from(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const float (&c)[4]) {
  NA_UNROLL
  for (int i = 0; i < 4; ++i) d[i] = c[i];
  multiply<T>(d, a, b0, b1);
}

// c += a (16x8) times b (8x8) of TF32, one warp, in the register layouts of mma.m16n8k8; low bits are ignored.
NA_DEVICE void multiply_tf32(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace na_deploy::cuda::dev

#endif  // NA_CUDA_EMULATED
