// How the numbers of one type pass between memory and registers: a pair of registers of floats for
// every kLanesOf16 elements, bf16 as its even and its odd elements, fp32 as its first and its
// second half. Masks and counts come in such pairs too, so that what lies between does not care.
#pragma once
#include <utility>

#include "cpu/vectors.h"
#include "fused_op.h"

namespace mergekern {
namespace MK_ISA {

struct Pair {
  Floats first, second;
};

struct Bf16Lanes {
  using Element = BFloat16;
  using Word = uint16_t;
  using Magnitudes = Halves;
  static constexpr DType dtype = DType::bf16;
  static constexpr int size = 2;
  static constexpr bool kSplit = true;
  // Deltas are multiples of bf16's smallest number, 2^-133: a power of two down to here times one
  // of them, or times a sum of them, is a float.
  static constexpr float kLeastExact = 0x1p-16f;

  MK_HD Pair load(const char* from) {
    const Words v = MK_ISA::load(from);
    return {widen_even(v), widen_odd(v)};
  }

  MK_HD MaskBits bits(Ints even, Ints odd) {
    return bits_of_16(join_upper(reinterpret_cast<Words>(even), reinterpret_cast<Words>(odd)));
  }

  MK_HD void note(const char* from, Magnitudes* largest) {
    *largest = larger_of(*largest, MK_ISA::load(from));
  }

  MK_HD void store(Pair x, char* to, bool streamed, Magnitudes* largest) {
    const Words rounded = join_upper(round_upper(x.first), round_upper(x.second));
    *largest = larger_of(*largest, rounded);
    put(to, rounded, streamed);
  }

  static bool finite(Magnitudes largest) {
    bool all = true;
    for (int i = 0; i < kLanesOf16; ++i) all = all && largest[i] < kInfinityBF16;
    return all;
  }
};

struct Fp32Lanes {
  using Element = float;
  using Word = uint32_t;
  using Magnitudes = Ints;
  static constexpr DType dtype = DType::f32;
  static constexpr int size = 4;
  static constexpr bool kSplit = false;
  static constexpr float kLeastExact = 1.0f;  // deltas may be as small as floats can be

  MK_HD Pair load(const char* from) {
    return {reinterpret_cast<Floats>(MK_ISA::load(from)),
            reinterpret_cast<Floats>(MK_ISA::load(from + MK_WIDTH))};
  }

  MK_HD MaskBits bits(Ints first, Ints second) {
    return static_cast<MaskBits>(bits_of_32(first) | bits_of_32(second) << kLanesOf32);
  }

  MK_HD void note(const char* from, Magnitudes* largest) {
    const Pair x = load(from);
    note(x, largest);
  }

  MK_HD void store(Pair x, char* to, bool streamed, Magnitudes* largest) {
    note(x, largest);
    put(to, reinterpret_cast<Words>(x.first), streamed);
    put(to + MK_WIDTH, reinterpret_cast<Words>(x.second), streamed);
  }

  static bool finite(Magnitudes largest) {
    bool all = true;
    for (int i = 0; i < kLanesOf32; ++i) {
      all = all && static_cast<uint32_t>(largest[i]) < Bits<float>::inf;
    }
    return all;
  }

 private:
  MK_HD void note(Pair x, Magnitudes* largest) {
    const Ints first = reinterpret_cast<Ints>(magnitude_words(x.first));
    const Ints second = reinterpret_cast<Ints>(magnitude_words(x.second));
    const Ints most = first > second ? first : second;
    *largest = most > *largest ? most : *largest;
  }
};

template <int... kLane>
MK_HD Floats evens(Floats a, Floats b, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(a, b, 2 * kLane...);
}

template <int... kLane>
MK_HD Floats odds(Floats a, Floats b, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(a, b, 2 * kLane + 1 ...);
}

// a0 b0 a1 b1 …, from lane kFrom on
template <int kFrom, int... kLane>
MK_HD Floats zip(Floats a, Floats b, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(a, b, kFrom + kLane / 2 + kLane % 2 * kLanesOf32...);
}

// A pair in the order of another type.
template <typename From, typename To>
MK_HD Pair reorder(Pair x) {
  constexpr auto lanes = std::make_integer_sequence<int, kLanesOf32>();
  if constexpr (From::kSplit == To::kSplit) return x;
  if constexpr (To::kSplit)
    return {evens(x.first, x.second, lanes), odds(x.first, x.second, lanes)};
  return {zip<0>(x.first, x.second, lanes), zip<kLanesOf32 / 2>(x.first, x.second, lanes)};
}

}  // namespace MK_ISA
}  // namespace mergekern
