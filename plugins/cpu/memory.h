// Memory aligned to a vector, as the kernels need it, and scratch memory that a thread keeps.
#pragma once

#include <cstddef>
#include <memory>
#include <new>

namespace na_deploy::cpu {

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

// Scratch memory of the calling thread, at least `bytes` of it. It grows to the largest need and stays until the thread
// ends. Throws std::bad_alloc.
void* scratch_of_thread(size_t bytes);

}  // namespace na_deploy::cpu
