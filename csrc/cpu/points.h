// Counting against brackets of one magnitude, which is what heavy ties make of them, where base and
// experts are all bf16 or all fp32: nothing is stored, and the base is read once for several
// brackets.
#pragma once
#include "cpu/blocks.h"
#include "cpu/lanes.h"
#include "cpu/loops.h"

namespace mergekern {
namespace MK_ISA {
namespace {

bool are_points(const Tile& t, const Bracket* brackets, int count, DType dtype) {
  bool all = t.base_dtype == dtype;
  for (int q = 0; q < count; ++q) {
    all = all && t.experts[brackets[q].expert].dtype == dtype;
    all = all && brackets[q].bins == 1 && brackets[q].shift == 0;
    all = all && brackets[q].low <= Bits<float>::abs;
  }
  return all;
}

struct Point {
  const char* x;
  Ints bits, beyond, equal;  // sums of masks: counts, negative
};

template <typename In, int Q>
void compare(const char* base, Point* points, int n) {
  const char* x[Q];
  Ints bits[Q], beyond[Q], equal[Q];
  for (int q = 0; q < Q; ++q) {
    x[q] = points[q].x, bits[q] = points[q].bits;
    beyond[q] = points[q].beyond, equal[q] = points[q].equal;
  }
  for (int i = 0; i < n; i += kLanesOf16) {
    const Pair b = In::load(base + In::size * i);
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) {
      const Pair v = In::load(x[q] + In::size * i);
      const Ints m = reinterpret_cast<Ints>(magnitude_words(v.first - b.first));
      const Ints w = reinterpret_cast<Ints>(magnitude_words(v.second - b.second));
      beyond[q] += (m > bits[q]) + (w > bits[q]);
      equal[q] += (m == bits[q]) + (w == bits[q]);
    }
  }
  for (int q = 0; q < Q; ++q) points[q].beyond = beyond[q], points[q].equal = equal[q];
}

// What is left of a piece behind its last whole register.
template <typename Element>
void compare_rest(const Tile& t, int64_t begin, int64_t end, const Bracket* brackets, int count,
                  Counter* counters) {
  for (int64_t i = begin; i < end; ++i) {
    const float base = widen(at<Element>(t.base, i)->value);
    for (int q = 0; q < count; ++q) {
      const Expert& e = t.experts[brackets[q].expert];
      const uint32_t m = magnitude(widen(at<Element>(e.data, i)->value) - base);
      counters[q].above += m > brackets[q].low;
      counters[q].histogram[0] += m == brackets[q].low;
      counters[q].chunks[i / kChunk] += m == brackets[q].low;
    }
  }
}

// A piece of a tile, which lies in one chunk.
template <typename In>
void count_points(const Tile& t, int64_t begin, int64_t end, const Bracket* brackets, int count,
                  Counter* counters) {
  const int n = static_cast<int>((end - begin) / kLanesOf16 * kLanesOf16);
  const char* base = static_cast<const char*>(t.base) + In::size * begin;
  for (int q = 0; q < count;) {
    const int group = count - q >= 4 ? 4 : count - q >= 2 ? 2 : 1;
    Point points[4] = {};
    for (int i = 0; i < group; ++i) {
      const Bracket& bracket = brackets[q + i];
      points[i].x = static_cast<const char*>(t.experts[bracket.expert].data) + In::size * begin;
      points[i].bits = Ints{} + static_cast<int32_t>(bracket.low);
    }
    (group == 4 ? compare<In, 4> : group == 2 ? compare<In, 2> : compare<In, 1>)(base, points, n);
    for (int i = 0; i < group; ++i) {
      Counter& counter = counters[q + i];
      const int64_t equal = -sum_of(points[i].equal);
      counter.above -= sum_of(points[i].beyond);
      counter.histogram[0] += equal;
      counter.chunks[begin / kChunk] += equal;
    }
    q += group;
  }
  compare_rest<typename In::Element>(t, begin + n, end, brackets, count, counters);
}

}  // namespace
}  // namespace MK_ISA
}  // namespace mergekern
