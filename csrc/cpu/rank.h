// Rank: the exact windows of a small tensor, whose magnitudes stay in cache meanwhile. Larger ones
// are sampled first (mergekern/sampling.py), which costs more than all that is done here.
#pragma once
#include <limits>
#include <vector>

#include "cpu/blocks.h"
#include "cpu/scratch.h"

namespace mergekern {
namespace MK_ISA {
namespace {

// Magnitudes as signed numbers: they have no sign, and not every processor compares others.
template <typename Work>
struct Ordered;
template <>
struct Ordered<float> {
  using type = int32_t;
};
template <>
struct Ordered<double> {
  using type = int64_t;
};

template <typename M>
int64_t reaching(const M* __restrict__ m, int64_t n, M cut) {
  M sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += m[i] >= cut;
  return sum;
}

template <typename M>
M least_reaching(const M* __restrict__ m, int64_t n, M cut) {
  M least = std::numeric_limits<M>::max();
  for (int64_t i = 0; i < n; ++i) {
    const M other = m[i] >= cut ? m[i] : least;
    least = other < least ? other : least;
  }
  return least;
}

// The rank-th largest, 1 being the largest: bit by bit from the highest, but for those bits that
// all have or none.
template <typename M>
M ranked(const M* __restrict__ m, int64_t n, int64_t rank) {
  M any = 0, all = std::numeric_limits<M>::max();
  for (int64_t i = 0; i < n; ++i) {
    any |= m[i];
    all &= m[i];
  }
  M found = all;
  for (M bit = M(1) << (8 * sizeof(M) - 2); bit; bit >>= 1) {
    if (((any ^ all) & bit) == 0) continue;
    const int64_t reach = reaching(m, n, static_cast<M>(found | bit));
    if (reach >= rank) found |= bit;
    if (reach == rank) return least_reaching(m, n, found);
  }
  return found;
}

// The index of the number-th element of a magnitude; there are that many.
template <typename M>
int64_t index_of(const M* __restrict__ m, int64_t n, M magnitude, int64_t number) {
  int64_t at = 0;
  for (; at + kStep < n; at += kStep) {
    M ties = 0;
    for (int i = 0; i < kStep; ++i) ties += m[at + i] == magnitude;
    if (ties >= number) break;
    number -= ties;
  }
  for (; number > 0; ++at) number -= m[at] == magnitude;
  return at - 1;
}

// A cut that just `rank` magnitudes reach, and its last index.
template <typename M>
void cut_by_index(const M* m, int64_t n, int64_t rank, int64_t* cut) {
  const M magnitude = ranked(m, n, rank);
  // None is larger than the largest number: where that is the magnitude, there is nothing above.
  const bool top = magnitude == std::numeric_limits<M>::max();
  const int64_t above = top ? 0 : reaching(m, n, static_cast<M>(magnitude + 1));
  const int64_t last = index_of(m, n, magnitude, rank - above);
  cut[0] = magnitude;
  cut[1] = last < n - 1 ? last : INT64_MAX;
}

// ranks: [K, 2], of the last magnitude that is kept, and of the last that is too large, or, where
// equal magnitudes are kept together, of the first that is not; 0 for none.  windows: [K, 4]
template <typename Work>
void rank(const Tile& t, const int64_t* ranks, bool by_index, int64_t* windows) {
  using M = typename Ordered<Work>::type;
  const Scratch<Work> scratch(2);
  std::vector<M> magnitudes(t.numel);
  for (int k = 0; k < t.count; ++k, ranks += 2, windows += 4) {
    windows[0] = 0;
    windows[1] = windows[2] = windows[3] = INT64_MAX;
    if (ranks[0] == 0 && ranks[1] == 0) continue;
    for (int64_t at = 0; at < t.numel; at += kStep) {
      const int n = static_cast<int>(t.numel - at < kStep ? t.numel - at : kStep);
      widen_block(t.base, t.base_dtype, at, scratch[0], n);
      delta_block<false>(t.experts[k], at, scratch[0], scratch[1], n, 0, 0);
      for (int i = 0; i < n; ++i) {
        magnitudes[at + i] = static_cast<M>(magnitude(scratch[1][i]));
      }
    }
    for (int side = 0; side < 2; ++side) {
      if (ranks[side] == 0) continue;
      if (by_index) {
        cut_by_index(magnitudes.data(), t.numel, ranks[side], windows + 2 * side);
      } else {
        windows[2 * side] = ranked(magnitudes.data(), t.numel, ranks[side]) + int64_t{side};
      }
    }
  }
}

}  // namespace
}  // namespace MK_ISA
}  // namespace mergekern
