// Loads, stores and counters: what a device has instructions of its own for.
#pragma once
#include "cuda/run.cuh"

namespace mergekern {

struct alignas(16) Sixteen {
  uint32_t w[4];
};

// Every input is read once and every output written once: they need not stay in the caches.
MK_DEVICE Sixteen load16(const void* from) {
#if defined(__CUDACC__)
  return bit_cast<Sixteen>(__ldcs(static_cast<const uint4*>(from)));
#else
  return *static_cast<const Sixteen*>(from);
#endif
}

MK_DEVICE void store16(const Sixteen& words, void* to) {
#if defined(__CUDACC__)
  __stcs(static_cast<uint4*>(to), bit_cast<uint4>(words));
#else
  *static_cast<Sixteen*>(to) = words;
#endif
}

MK_DEVICE bool aligned16(const void* address) {
  return (reinterpret_cast<uintptr_t>(address) & 15) == 0;
}

template <typename T>
MK_DEVICE T load_bytes(const void* from, int64_t i) {
  T x;
  __builtin_memcpy(&x, static_cast<const char*>(from) + i * static_cast<int64_t>(sizeof(T)),
                   sizeof(T));
  return x;
}

template <typename T>
MK_DEVICE void store_bytes(const T& x, void* to, int64_t i) {
  __builtin_memcpy(static_cast<char*>(to) + i * static_cast<int64_t>(sizeof(T)), &x, sizeof(T));
}

MK_DEVICE void add_to(int64_t* counter, uint64_t n) {
#if defined(__CUDACC__)
  atomicAdd(reinterpret_cast<unsigned long long*>(counter), static_cast<unsigned long long>(n));
#else
  *counter += static_cast<int64_t>(n);
#endif
}

// The same by threads that may be any of their warp's: one of those that came along adds for all.
MK_DEVICE void add_together(int64_t* counter, uint32_t n) {
#if defined(__CUDACC__)
  const unsigned here = __activemask();
  const unsigned sum = __reduce_add_sync(here, n);
  const unsigned lane = threadIdx.x % 32;
  if (sum != 0 && lane == static_cast<unsigned>(__ffs(static_cast<int>(here))) - 1) {
    add_to(counter, sum);
  }
#else
  if (n != 0) add_to(counter, n);
#endif
}

// To a counter of the block's, by all threads of a warp.
MK_DEVICE void add_warp(uint32_t* counter, uint32_t n) {
#if defined(__CUDACC__)
  const unsigned sum = __reduce_add_sync(0xffffffffu, n);
  if (threadIdx.x % 32 == 0) atomicAdd(counter, sum);
#else
  *counter += n;
#endif
}

}  // namespace mergekern
