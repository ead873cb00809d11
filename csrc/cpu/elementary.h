// exp, log and sums of mergekern/elementary.py, which says what they compute: the same operations
// in the same order, a register of elements at a time.
#pragma once
#include <string.h>

#include "cpu/blocks.h"
#include "cpu/loops.h"

namespace mergekern {
namespace MK_ISA {
namespace {

constexpr double kLn2High = 0x1.62e42feep-1, kLn2Low = 0x1.a39ef35793c76p-33;
constexpr double kLog2E = 0x1.71547652b82fep+0;
constexpr double kSmallest = -708.0, kLargest = 709.0;
constexpr double kUnit = 0x1.8p52;  // leaves a small number whole, in the last bits of the sum
constexpr int kBias = 1023, kDigits = 52;
constexpr uint64_t kSqrtHalf = 0x3fe6a09e667f3bcdull;  // its bits

MK_HD double power_of_e(double x) {
  const double raised = x < kSmallest ? kSmallest : x;
  const double within = raised > kLargest ? kLargest : raised;
  const double shifted = within * kLog2E + kUnit;
  const double k = shifted - kUnit;
  const double r = (within - k * kLn2High) - k * kLn2Low;
  const double square = r * r;
  double series = square * (-691.0 / 653837184000.0);
  series = (series + 1.0 / 23950080) * square;
  series = (series + -1.0 / 604800) * square;
  series = (series + 1.0 / 15120) * square;
  series = (series + -1.0 / 360) * square;
  series = (series + 1.0 / 6) * square;
  const double power = bit_cast<double>((bit_cast<uint64_t>(shifted) + kBias) << kDigits);
  return (1.0 / ((series + 2.0) - r) * (r * 2.0) + 1.0) * power;
}

MK_HD double logarithm(double x) {
  constexpr int kTerms = 11;
  const uint64_t bits = bit_cast<uint64_t>(x);
  const int64_t k = static_cast<int64_t>(bits - kSqrtHalf) >> kDigits;
  const double f = bit_cast<double>(bits - (static_cast<uint64_t>(k) << kDigits)) - 1.0;
  const double s = f / (f + 2.0);
  const double square = s * s;
  double series = 2.0 / (2 * kTerms + 1);
#pragma GCC unroll 16
  for (int term = kTerms - 1; term > 0; --term) series = series * square + 2.0 / (2 * term + 1);
  series = series * square;
  const double power = static_cast<double>(static_cast<int32_t>(k));
  const double low = s * (f - series) - power * kLn2Low;
  return (f - low) + power * kLn2High;
}

void exp(const double* __restrict__ x, int64_t n, double* __restrict__ out) {
  for (int64_t i = 0; i < n; ++i) out[i] = power_of_e(x[i]);
}

void log(const double* __restrict__ x, int64_t n, double* __restrict__ out) {
  for (int64_t i = 0; i < n; ++i) out[i] = logarithm(x[i]);
}

// The sums of rows by halves: the second is added to the first, and so on. half: a row's half of
// memory, at least one element
void total(const double* x, int64_t rows, int64_t length, double* __restrict__ half, double* out) {
  for (int64_t row = 0; row < rows; ++row, x += length) {
    int64_t left = (length + 1) / 2;
    memcpy(half, x, sizeof(double) * left);
    for (int64_t i = 0; i < length - left; ++i) half[i] = half[i] + x[left + i];
    while (left > 1) {
      const int64_t kept = (left + 1) / 2;
#pragma GCC ivdep
      for (int64_t i = 0; i < left - kept; ++i) half[i] = half[i] + half[kept + i];
      left = kept;
    }
    out[row] = length ? half[0] : 0.0;
  }
}

}  // namespace
}  // namespace MK_ISA
}  // namespace mergekern
