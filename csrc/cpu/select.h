// Select: magnitudes, and counts of them against brackets.
#pragma once
#include "cpu/blocks.h"
#include "cpu/loops.h"
#include "cpu/points.h"
#include "cpu/scratch.h"
#include "cpu/thin.h"

namespace mergekern {
namespace MK_ISA {
namespace {

// The number that is looked at: the delta of an expert, or the variance of all.
template <typename Work>
void looked_at_block(const Tile& t, int k, int64_t at, const Work* base, Work* d, int n) {
  if (t.spread) {
    variance_block(t, at, d, n);
  } else {
    delta_block<false>(t.experts[k], at, base, d, n, 0, 0);
  }
}

template <typename Work>
void magnitude_block(const Tile& t, int k, int64_t at, const Work* base, Work* d,
                     typename Bits<Work>::type* __restrict__ m, int n) {
  looked_at_block(t, k, at, base, d, n);
  for (int i = 0; i < n; ++i) m[i] = magnitude(d[i]);
}

// The marks are bytes so that eight elements outside the bracket cost one test.
template <typename M>
int count_block(const Bracket& bracket, const M* __restrict__ m, uint8_t* __restrict__ inside,
                int n, Counter* counter) {
  const M low = static_cast<M>(bracket.low);
  const M span = static_cast<M>(bracket.bins << bracket.shift);
  uint32_t hits = 0, above = 0;
  for (int i = 0; i < n; ++i) {
    const bool in = static_cast<M>(m[i] - low) < span;
    inside[i] = in;
    hits += in;
    above += (m[i] >= low) & !in;
  }
  counter->above += above;
  if (hits == 0 || bracket.bins == 1) {
    counter->histogram[0] += hits;
    return static_cast<int>(hits);
  }
  for (int i = 0; i < n; i += 8) {
    uint64_t marks;
    __builtin_memcpy(&marks, inside + i, sizeof(marks));
    if (marks == 0) continue;
    for (int j = i; j < i + 8; ++j) {
      if (inside[j]) ++counter->histogram[(m[j] - low) >> bracket.shift];
    }
  }
  return static_cast<int>(hits);
}

// A bracket of one magnitude, which is what heavy ties make of it: nothing needs to be stored.
template <typename T, typename Work>
int point_block(const Unaligned<T>* __restrict__ x, const Work* __restrict__ base, int n,
                typename Bits<Work>::type point, Counter* counter) {
  typename Bits<Work>::type at_least = 0, beyond = 0;
  for (int i = 0; i < n; ++i) {
    const Work wide = static_cast<Work>(widen(x[i].value));
    const auto m = magnitude(wide - base[i]);
    at_least += m >= point;
    beyond += m > point;
  }
  counter->above += static_cast<int64_t>(beyond);
  counter->histogram[0] += static_cast<int64_t>(at_least - beyond);
  return static_cast<int>(at_least - beyond);
}

template <typename Work>
int point_block(const Expert& e, int64_t at_, const Work* base, int n, uint64_t point,
                Counter* counter) {
  int ties = 0;
  with_type(e.dtype, [&](auto type) {
    ties = point_block(at<decltype(type)>(e.data, at_), base, n,
                       static_cast<typename Bits<Work>::type>(point), counter);
  });
  return ties;
}

template <typename Work>
void count(const Tile& t, int64_t begin, int64_t end, const Bracket* brackets, int count,
           Counter* counters) {
  if (sizeof(Work) == sizeof(float) && !t.spread) {
    if (are_points(t, brackets, count, DType::bf16)) {
      return count_points<Bf16Lanes>(t, begin, end, brackets, count, counters);
    }
    if (are_points(t, brackets, count, DType::f32)) {
      return count_points<Fp32Lanes>(t, begin, end, brackets, count, counters);
    }
  }
  const Scratch<Work> scratch(3);
  Work *base = scratch[0], *d = scratch[1];
  auto* m = reinterpret_cast<typename Bits<Work>::type*>(scratch[2]);
  uint8_t inside[kStep + 8] = {};
  for (int64_t at = begin; at < end; at += kStep) {
    const int n = static_cast<int>(end - at < kStep ? end - at : kStep);
    widen_block(t.base, t.base_dtype, at, base, n);
    for (int i = n; i < n + 8; ++i) inside[i] = 0;
    for (int q = 0; q < count; ++q) {
      const int k = brackets[q].expert;
      int64_t* ties = &counters[q].chunks[at / kChunk];
      if (brackets[q].bins == 1 && brackets[q].shift == 0 && !t.spread) {
        *ties += point_block(t.experts[k], at, base, n, brackets[q].low, &counters[q]);
        continue;
      }
      magnitude_block(t, k, at, base, d, m, n);
      *ties += count_block(brackets[q], m, inside, n, &counters[q]);
    }
  }
}

template <typename Work>
void magnitudes(const Tile& t, int64_t begin, int64_t end, int expert, int64_t* out) {
  const Scratch<Work> scratch(2);
  for (int64_t at = begin; at < end; at += kStep) {
    const int n = static_cast<int>(end - at < kStep ? end - at : kStep);
    widen_block(t.base, t.base_dtype, at, scratch[0], n);
    looked_at_block(t, expert, at, scratch[0], scratch[1], n);
    for (int i = 0; i < n; ++i) out[at + i] = static_cast<int64_t>(magnitude(scratch[1][i]));
  }
}

}  // namespace
}  // namespace MK_ISA
}  // namespace mergekern
