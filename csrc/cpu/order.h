// Order statistics: which of many magnitudes has a given rank.
#pragma once
#include <cstdint>
#include <utility>
#include <vector>

namespace mergekern {

using Ranked = std::pair<int64_t, int64_t>;  // magnitude, index

// m: [n], not negative
struct Unordered {
  const int64_t* m;
  int64_t n;
  std::vector<int64_t> ranks;  // from 1, the largest, to n
};

// The elements of these ranks, of each of the arrays; of equal magnitudes the lower index comes
// first.
std::vector<std::vector<Ranked>> order_statistics(int threads, const std::vector<Unordered>&);

}  // namespace mergekern
