// Eight elements of any dtype, widened; fewer at the end of a tile, where zeros stand for the rest.
#pragma once
#include "cuda/memory.cuh"

namespace mergekern {

// As they lie in memory. Two of 16 bits share a word, whose halves widen in one step each.
template <typename In>
struct alignas(16) Packed {
  static constexpr int kParts = sizeof(In) * kEight / sizeof(Sixteen);
  uint32_t w[4 * kParts];
};

template <typename In>
MK_DEVICE Packed<In> load_packed(const void* data, int64_t i) {
  const Sixteen* from = reinterpret_cast<const Sixteen*>(static_cast<const In*>(data) + i);
  Packed<In> packed;
  MK_UNROLL for (int part = 0; part < Packed<In>::kParts; ++part) {
    const Sixteen words = load16(from + part);
    MK_UNROLL for (int w = 0; w < 4; ++w) packed.w[4 * part + w] = words.w[w];
  }
  return packed;
}

template <typename Out>
MK_DEVICE void store_packed(const Packed<Out>& packed, void* data, int64_t i) {
  Sixteen* to = reinterpret_cast<Sixteen*>(static_cast<Out*>(data) + i);
  MK_UNROLL for (int part = 0; part < Packed<Out>::kParts; ++part) {
    Sixteen words;
    MK_UNROLL for (int w = 0; w < 4; ++w) words.w[w] = packed.w[4 * part + w];
    store16(words, to + part);
  }
}

MK_DEVICE float value(const Packed<BFloat16>& x, int j) {
  return bit_cast<float>(j % 2 ? x.w[j / 2] & 0xffff0000u : x.w[j / 2] << 16);
}
MK_DEVICE float value(const Packed<Float16>& x, int j) {
  return widen(Float16{static_cast<uint16_t>(x.w[j / 2] >> (16 * (j % 2)))});
}
MK_DEVICE float value(const Packed<float>& x, int j) { return bit_cast<float>(x.w[j]); }
MK_DEVICE double value(const Packed<double>& x, int j) {
  return bit_cast<double>(static_cast<uint64_t>(x.w[2 * j + 1]) << 32 | x.w[2 * j]);
}

// Elements are put in their order: the second of a word joins the first.
template <typename Out>
MK_DEVICE void put_half(Out x, Packed<Out>* packed, int j) {
  packed->w[j / 2] = j % 2 ? packed->w[j / 2] | static_cast<uint32_t>(x.bits) << 16 : x.bits;
}
MK_DEVICE void put(BFloat16 x, Packed<BFloat16>* packed, int j) { put_half(x, packed, j); }
MK_DEVICE void put(Float16 x, Packed<Float16>* packed, int j) { put_half(x, packed, j); }
MK_DEVICE void put(float x, Packed<float>* packed, int j) { packed->w[j] = bit_cast<uint32_t>(x); }
MK_DEVICE void put(double x, Packed<double>* packed, int j) {
  packed->w[2 * j] = static_cast<uint32_t>(bit_cast<uint64_t>(x));
  packed->w[2 * j + 1] = static_cast<uint32_t>(bit_cast<uint64_t>(x) >> 32);
}

template <typename In>
MK_DEVICE void replace(Packed<In>* packed, const Packed<In>& by, int j) {
  if constexpr (sizeof(In) == 2) {
    const uint32_t mask = j % 2 ? 0xffff0000u : 0xffffu;
    packed->w[j / 2] = (packed->w[j / 2] & ~mask) | (by.w[j / 2] & mask);
  } else {
    packed->w[j] = by.w[j];
  }
}

template <typename In, typename Work>
MK_DEVICE void load_as(const void* data, int64_t i, int n, Work* to) {
  if (n == kEight && aligned16(static_cast<const In*>(data) + i)) {
    const Packed<In> packed = load_packed<In>(data, i);
    MK_UNROLL for (int j = 0; j < kEight; ++j) to[j] = static_cast<Work>(value(packed, j));
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
  Out rounded[kEight];
  Packed<Out> packed;
  bool fine = true;
  MK_UNROLL for (int j = 0; j < kEight; ++j) {
    round_to(from[j], rounded[j]);
    put(rounded[j], &packed, j);
    fine &= j >= n || is_finite(rounded[j]);
  }
  if (n == kEight && aligned16(static_cast<Out*>(data) + i)) {
    store_packed(packed, data, i);
    return fine;
  }
  MK_UNROLL for (int j = 0; j < kEight; ++j) {
    if (j < n) store_bytes(rounded[j], data, i + j);
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
