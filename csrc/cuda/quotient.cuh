// IEEE division by a number that is known beforehand, without dividing.
//
// With the reciprocal y = RN(1 / d), q = RN(n y) is within two ulps of n / d; one correction
// q + (n - q d) y brings it within one, and of such a q the next one gives RN(n / d) (Markstein).
// The remainder n - q d has to be exact: n is 0 or at least 2^-100, and d, by choose_quick(),
// between 2^-20 and 2^20.
#pragma once
#include <math.h>

#include "cuda/run.cuh"

namespace mergekern {

struct alignas(8) Quotient {
  float divisor, reciprocal;
};

// 0, or at least 2^-100, as magnitudes: twice the bits less one has zeros wrap around to the top.
constexpr uint32_t kLeastRank = (27u << 24) - 1;

MK_HD uint32_t rank_of(float numerator) { return 2 * bit_cast<uint32_t>(numerator) - 1; }

MK_DEVICE float fused(float a, float b, float c) {
#if defined(__CUDACC__)
  return __fmaf_rn(a, b, c);
#else
  return fmaf(a, b, c);
#endif
}

MK_DEVICE float divide(float n, const Quotient& by) {
  const float q = n * by.reciprocal;
  const float close = fused(fused(-q, by.divisor, n), by.reciprocal, q);
  return fused(fused(-close, by.divisor, n), by.reciprocal, close);
}

}  // namespace mergekern
