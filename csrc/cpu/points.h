// Counting against brackets of one magnitude, which is what heavy ties make of them, where base and
// experts are bf16: nothing is stored, and the base is read once for several brackets.
#pragma once
#include "cpu/blocks.h"
#include "cpu/loops.h"
#include "cpu/vectors.h"

namespace mergekern {
namespace MK_ISA {
namespace {

bool are_points(const Tile& t, const Bracket* brackets, int count) {
  bool all = t.base_dtype == DType::bf16;
  for (int q = 0; q < count; ++q) {
    all = all && t.experts[brackets[q].expert].dtype == DType::bf16;
    all = all && brackets[q].bins == 1 && brackets[q].shift == 0;
    all = all && brackets[q].low <= Bits<float>::abs;
  }
  return all;
}

struct Point {
  const char* x;
  Ints bits, beyond, equal;  // sums of masks: counts, negative
};

template <int Q>
void compare(const char* base, Point* points, int n) {
  const char* x[Q];
  Ints bits[Q], beyond[Q], equal[Q];
  for (int q = 0; q < Q; ++q) {
    x[q] = points[q].x, bits[q] = points[q].bits;
    beyond[q] = points[q].beyond, equal[q] = points[q].equal;
  }
  for (int i = 0; i < n; i += kLanesOf16) {
    const Words b = load(base + 2 * i);
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) {
      const Words v = load(x[q] + 2 * i);
      const Ints even = reinterpret_cast<Ints>(magnitude_words(widen_even(v) - widen_even(b)));
      const Ints odd = reinterpret_cast<Ints>(magnitude_words(widen_odd(v) - widen_odd(b)));
      beyond[q] += (even > bits[q]) + (odd > bits[q]);
      equal[q] += (even == bits[q]) + (odd == bits[q]);
    }
  }
  for (int q = 0; q < Q; ++q) points[q].beyond = beyond[q], points[q].equal = equal[q];
}

// What is left of a piece behind its last whole register.
void compare_rest(const Tile& t, int64_t begin, int64_t end, const Bracket* brackets, int count,
                  Counter* counters) {
  for (int64_t i = begin; i < end; ++i) {
    const float base = widen(at<BFloat16>(t.base, i)->value);
    for (int q = 0; q < count; ++q) {
      const Expert& e = t.experts[brackets[q].expert];
      const uint32_t m = magnitude(widen(at<BFloat16>(e.data, i)->value) - base);
      counters[q].above += m > brackets[q].low;
      counters[q].histogram[0] += m == brackets[q].low;
      counters[q].chunks[i / kChunk] += m == brackets[q].low;
    }
  }
}

// A piece of a tile, which lies in one chunk.
void count_points(const Tile& t, int64_t begin, int64_t end, const Bracket* brackets, int count,
                  Counter* counters) {
  const int n = static_cast<int>((end - begin) / kLanesOf16 * kLanesOf16);
  const char* base = static_cast<const char*>(t.base) + 2 * begin;
  for (int q = 0; q < count;) {
    const int group = count - q >= 4 ? 4 : count - q >= 2 ? 2 : 1;
    Point points[4] = {};
    for (int i = 0; i < group; ++i) {
      const Bracket& bracket = brackets[q + i];
      points[i].x = static_cast<const char*>(t.experts[bracket.expert].data) + 2 * begin;
      points[i].bits = Ints{} + static_cast<int32_t>(bracket.low);
    }
    (group == 4 ? compare<4> : group == 2 ? compare<2> : compare<1>)(base, points, n);
    for (int i = 0; i < group; ++i) {
      Counter& counter = counters[q + i];
      const int64_t equal = -sum_of(points[i].equal);
      counter.above -= sum_of(points[i].beyond);
      counter.histogram[0] += equal;
      counter.chunks[begin / kChunk] += equal;
    }
    q += group;
  }
  compare_rest(t, begin + n, end, brackets, count, counters);
}

}  // namespace
}  // namespace MK_ISA
}  // namespace mergekern
