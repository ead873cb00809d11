// Counts magnitudes against brackets, one block for every chunk of a tile and group of brackets:
// what a bracket holds is
// what reaches its lower end less what reaches its upper one.
#pragma once
#include "cuda/general.cuh"

namespace mergekern {

constexpr int kBrackets = 8;  // brackets that are counted at once

struct CountArgs {
  Pass pass;
  const BracketRow* brackets;
  int32_t count;
  int64_t *above, *inside;  // [chunks, count]
  int64_t* tallies;
};

template <typename Work>
struct Count {
  static constexpr int kResident = 2;
  using Args = CountArgs;
  using U = typename Bits<Work>::type;
  struct Shared {
    uint32_t reached[2][kBrackets];
  };

  struct Range {
    U low[kBrackets], end[kBrackets];
  };

  MK_MEMBER int64_t groups_of(const Args& a) { return (a.count + kBrackets - 1) / kBrackets; }

  MK_MEMBER void before(const Args&, int64_t, int thread, Shared* shared) {
    if (thread < 2 * kBrackets) shared->reached[thread / kBrackets][thread % kBrackets] = 0;
  }

  MK_MEMBER U clamped(uint64_t cut) {
    return cut > static_cast<U>(-1) ? static_cast<U>(-1) : static_cast<U>(cut);
  }

  MK_MEMBER uint64_t end_of(const BracketRow& b) {
    return static_cast<uint64_t>(b.low) + (static_cast<uint64_t>(b.bins) << b.shift);
  }

  MK_MEMBER void main(const Args& a, int64_t block, int thread, Shared* shared) {
    const int64_t chunk = block / groups_of(a);
    const int from = static_cast<int>(block % groups_of(a)) * kBrackets;
    const int n = a.count - from < kBrackets ? a.count - from : kBrackets;
    Range range;
    MK_UNROLL for (int q = 0; q < kBrackets; ++q) {
      range.low[q] = range.end[q] = static_cast<U>(-1);
      if (q >= n) continue;
      range.low[q] = clamped(static_cast<uint64_t>(a.brackets[from + q].low));
      range.end[q] = clamped(end_of(a.brackets[from + q]));
    }
    uint32_t reached[2][kBrackets] = {};
    const int64_t begin = chunk * kCountChunk, numel = row_of(a.pass, 0)[kNumel];
    const int64_t end = numel - begin < kCountChunk ? numel : begin + kCountChunk;
    MK_ROLLED for (int64_t i = begin + thread * kEight; i < end; i += kThreads * kEight) {
      const Spot s{0, i, static_cast<int>(end - i < kEight ? end - i : kEight)};
      eight(a, from, n, s, range, reached);
    }
    MK_UNROLL for (int q = 0; q < kBrackets; ++q) {
      add_warp(&shared->reached[0][q], reached[0][q]);
      add_warp(&shared->reached[1][q], reached[1][q]);
    }
  }

  MK_MEMBER void after(const Args& a, int64_t block, int thread, Shared* shared) {
    const int64_t chunk = block / groups_of(a);
    const int64_t q = block % groups_of(a) * kBrackets + thread;
    if (thread >= kBrackets || q >= a.count) return;
    const uint32_t above = shared->reached[1][thread];
    const uint32_t inside = shared->reached[0][thread] - above;
    const BracketRow& b = a.brackets[q];
    a.above[chunk * a.count + q] = above;
    a.inside[chunk * a.count + q] = inside;
    if (b.bins == 1 && b.first >= 0 && inside != 0) add_to(a.tallies + b.first, inside);
  }

 private:
  MK_MEMBER void eight(const Args& a, int from, int n, const Spot& s, const Range& range,
                       uint32_t (*reached)[kBrackets]) {
    const int64_t* row = row_of(a.pass, 0);
    Work base[kEight], d[kEight];
    load8(address(row[kBase]), a.pass.base, s.i, s.n, base);
    int64_t expert = -1;
    MK_UNROLL for (int q = 0; q < kBrackets; ++q) {
      if (q >= n) continue;
      const BracketRow& b = a.brackets[from + q];
      if (b.expert != expert) delta8(a.pass, row, s, static_cast<int>(b.expert), base, d);
      expert = b.expert;
      MK_UNROLL for (int j = 0; j < kEight; ++j) {
        const bool there = j < s.n;
        const U m = magnitude(d[j]);
        reached[0][q] += there & (m >= range.low[q]);
        reached[1][q] += there & (m >= range.end[q]);
        const bool in = there & (m >= range.low[q]) & (m < range.end[q]);
        if (in && b.bins > 1 && b.first >= 0) {
          add_to(a.tallies + b.first + static_cast<int64_t>((m - range.low[q]) >> b.shift), 1);
        }
      }
    }
  }
};

}  // namespace mergekern
