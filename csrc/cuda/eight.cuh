// Eight elements of any dtype, widened; fewer at the end of a tile, where zeros stand for the rest.
#pragma once
#include "cuda/memory.cuh"

namespace mergekern {

template <typename In>
struct alignas(16) Packed {
  In at[kEight];
};

template <typename In>
MK_DEVICE Packed<In> load_packed(const void* data, int64_t i) {
  constexpr int kParts = sizeof(Packed<In>) / sizeof(Sixteen);
  const Sixteen* from = reinterpret_cast<const Sixteen*>(static_cast<const In*>(data) + i);
  struct alignas(16) Parts {
    Sixteen part[kParts];
  } parts;
  MK_UNROLL for (int p = 0; p < kParts; ++p) parts.part[p] = load16(from + p);
  return bit_cast<Packed<In>>(parts);
}

template <typename Out>
MK_DEVICE void store_packed(const Packed<Out>& packed, void* data, int64_t i) {
  constexpr int kParts = sizeof(Packed<Out>) / sizeof(Sixteen);
  Sixteen* to = reinterpret_cast<Sixteen*>(static_cast<Out*>(data) + i);
  struct alignas(16) Parts {
    Sixteen part[kParts];
  };
  const Parts parts = bit_cast<Parts>(packed);
  MK_UNROLL for (int p = 0; p < kParts; ++p) store16(parts.part[p], to + p);
}

template <typename In, typename Work>
MK_DEVICE void load_as(const void* data, int64_t i, int n, Work* to) {
  if (n == kEight && aligned16(static_cast<const In*>(data) + i)) {
    const Packed<In> packed = load_packed<In>(data, i);
    MK_UNROLL for (int j = 0; j < kEight; ++j) to[j] = static_cast<Work>(widen(packed.at[j]));
    return;
  }
  MK_UNROLL for (int j = 0; j < kEight; ++j) {
    to[j] = j < n ? static_cast<Work>(widen(load_bytes<In>(data, i + j))) : Work(0);
  }
}

template <typename Work>
MK_DEVICE void load8(const void* data, DType dtype, int64_t i, int n, Work* to) {
  switch (dtype) {
    case DType::bf16: return load_as<BFloat16>(data, i, n, to);
    case DType::f16: return load_as<Float16>(data, i, n, to);
    case DType::f32: return load_as<float>(data, i, n, to);
    case DType::f64: return load_as<double>(data, i, n, to);
  }
}

MK_HD bool is_finite(BFloat16 x) { return (x.bits & 0x7fffu) < 0x7f80u; }
MK_HD bool is_finite(Float16 x) { return (x.bits & 0x7fffu) < 0x7c00u; }
MK_HD bool is_finite(float x) { return finite<float>(magnitude(x)); }
MK_HD bool is_finite(double x) { return finite<double>(magnitude(x)); }

// False where the output holds NaN or Inf.
template <typename Out, typename Work>
MK_DEVICE bool store_as(const Work* from, void* data, int64_t i, int n) {
  Packed<Out> packed;
  bool fine = true;
  MK_UNROLL for (int j = 0; j < kEight; ++j) {
    round_to(from[j], packed.at[j]);
    fine &= j >= n || is_finite(packed.at[j]);
  }
  if (n == kEight && aligned16(static_cast<Out*>(data) + i)) {
    store_packed(packed, data, i);
    return fine;
  }
  MK_UNROLL for (int j = 0; j < kEight; ++j) {
    if (j < n) store_bytes(packed.at[j], data, i + j);
  }
  return fine;
}

template <typename Work>
MK_DEVICE bool store8(const Work* from, void* data, DType dtype, int64_t i, int n) {
  switch (dtype) {
    case DType::bf16: return store_as<BFloat16>(from, data, i, n);
    case DType::f16: return store_as<Float16>(from, data, i, n);
    case DType::f32: return store_as<float>(from, data, i, n);
    case DType::f64: return store_as<double>(from, data, i, n);
  }
  return true;
}

}  // namespace mergekern
