// The arithmetic of one element, for host and device: widen, trim, elect, combine, round.
//
// Every function is branch-free where it runs per element, so that a plain loop over it vectorises.
// Nothing here may contract a product and a sum: the bits are promised (-ffp-contract=off).
#pragma once
#include <stdint.h>

#if defined(__CUDACC__)
#define MK_HD static __host__ __device__ __forceinline__
#else
#define MK_HD static inline __attribute__((always_inline))
#endif

namespace mergekern {

// bits of a floating-point number and back

template <typename To, typename From>
MK_HD To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

template <typename Work>
struct Bits;
template <>
struct Bits<float> {
  using type = uint32_t;
  static constexpr uint32_t abs = 0x7fffffffu, inf = 0x7f800000u;
};
template <>
struct Bits<double> {
  using type = uint64_t;
  static constexpr uint64_t abs = 0x7fffffffffffffffull, inf = 0x7ff0000000000000ull;
};

template <typename Work>
MK_HD typename Bits<Work>::type magnitude(Work x) {
  return bit_cast<typename Bits<Work>::type>(x) & Bits<Work>::abs;
}

// element types as they lie in a checkpoint

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

MK_HD uint16_t magnitude(BFloat16 x) { return x.bits & 0x7fffu; }
static constexpr uint16_t kInfinityBF16 = 0x7f80u;

// widen: exact

MK_HD float widen(BFloat16 x) { return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }

MK_HD float widen(Float16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t body = static_cast<uint32_t>(x.bits & 0x7fffu) << 13;
  // Exponent bias 15 -> 127; the product is exact, for half denormals too.
  const uint32_t finite = bit_cast<uint32_t>(bit_cast<float>(body) * 0x1p112f);
  const uint32_t special = body | 0x7f800000u;
  return bit_cast<float>(sign | (body >= 0x0f800000u ? special : finite));
}

MK_HD float widen(float x) { return x; }
MK_HD double widen(double x) { return x; }

// round: once, to nearest even, on the integer bits; NaN becomes 0x7fc0 (0x7e00 in fp16)

MK_HD void round_to(float x, BFloat16& out) {
  const uint32_t u = bit_cast<uint32_t>(x);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  out.bits = static_cast<uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

MK_HD void round_to(float x, Float16& out) {
  const uint32_t u = bit_cast<uint32_t>(x);
  const uint32_t a = u & 0x7fffffffu;
  const uint32_t rebased = a - 0x38000000u;  // bias 127 -> 15
  const uint32_t normal = (rebased + 0xfffu + ((rebased >> 13) & 1u)) >> 13;
  const uint32_t clamped = normal < 0x7c00u ? normal : 0x7c00u;
  // Below 2^-14 the half's ulp is 2^-24, which is the ulp of numbers in [0.5, 1).
  const uint32_t tiny = bit_cast<uint32_t>(bit_cast<float>(a) + 0.5f) - 0x3f000000u;
  const uint32_t body = a < 0x38800000u ? tiny : clamped;
  const uint32_t finite = ((u >> 16) & 0x8000u) | body;
  out.bits = static_cast<uint16_t>(a > 0x7f800000u ? 0x7e00u : finite);
}

MK_HD void round_to(float x, float& out) { out = x; }
MK_HD void round_to(float x, double& out) { out = static_cast<double>(x); }
MK_HD void round_to(double x, double& out) { out = x; }
MK_HD void round_to(double x, float& out) { out = static_cast<float>(x); }

// To fp32 with the last bit sticky ("round to odd"): a second rounding, to nearest even and at
// least two bits shorter, then gives what one rounding from fp64 would.
MK_HD float round_to_odd(double x) {
  const float nearest = static_cast<float>(x);
  const double back = static_cast<double>(nearest);
  uint32_t u = bit_cast<uint32_t>(nearest);
  const uint32_t beyond = magnitude(back) > magnitude(x) ? 1u : 0u;
  u = (u - beyond) | (back != x ? 1u : 0u);
  return x != x ? nearest : bit_cast<float>(u);
}

MK_HD void round_to(double x, BFloat16& out) { round_to(round_to_odd(x), out); }
MK_HD void round_to(double x, Float16& out) { round_to(round_to_odd(x), out); }

// Magnitudes at or beyond infinity's are NaN or Inf; the largest one of many tells for all.
template <typename Work>
MK_HD bool finite(typename Bits<Work>::type largest_magnitude) {
  return largest_magnitude < Bits<Work>::inf;
}

// trim: keep lo <= |d| < hi

template <typename Work>
MK_HD Work trim(Work d, typename Bits<Work>::type lo, typename Bits<Work>::type hi) {
  const auto m = magnitude(d);
  return (m >= lo) & (m < hi) ? d : Work(0);
}

template <typename Work>
MK_HD Work trim(Work d, typename Bits<Work>::type lo) {
  return magnitude(d) >= lo ? d : Work(0);
}

// elect: the sign of a ballot, and whether it agrees with the sum of all (a sum of 0 counts as +)

template <typename Work>
MK_HD Work sign(Work u) {
  return (u > 0 ? Work(1) : Work(0)) - (u < 0 ? Work(1) : Work(0));
}

template <typename Work>
MK_HD bool agrees(Work ballot, Work sum) {
  using U = typename Bits<Work>::type;
  const U flip = sum < 0 ? ~Bits<Work>::abs : U(0);
  return bit_cast<Work>(static_cast<U>(bit_cast<U>(ballot) ^ flip)) > 0;
}

// combine

template <typename Work>
MK_HD Work larger(Work best, Work v) {
  return magnitude(v) > magnitude(best) ? v : best;
}

template <typename Work>
MK_HD Work guarded(Work denominator) {
  return denominator == 0 ? Work(1) : denominator;
}

// Not below `least`, where there is one.
template <typename Work>
MK_HD Work at_least(Work denominator, Work least) {
  return (least != 0) & (denominator < least) ? least : denominator;
}

template <typename Work>
MK_HD Work finish(Work base, Work mixed, Work scale) {
  const Work scaled = scale * mixed;
  return base + scaled;
}

}  // namespace mergekern
