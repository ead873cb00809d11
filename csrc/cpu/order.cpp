// A histogram of the highest bits tells the bin that a rank lies in, and so on with the next bits
// of what is in that bin, until its magnitudes are all the same: however many there are of each,
// the passes are as many as the bits allow.
#include "cpu/order.h"

#include <array>

#include "cpu/pool.h"

namespace mergekern {
namespace {

constexpr int kBits = 11;
constexpr int64_t kBins = int64_t{1} << kBits;

// Two counts for each bin, since one that was just stored is slow to load again.
using Counts = std::array<std::array<uint32_t, kBins>, 2>;

int64_t bin_of(int64_t magnitude, int shift) { return magnitude >> shift & (kBins - 1); }

// The bin that holds a rank; the rank is counted within it afterwards.
int64_t find_bin(const Counts& counts, int64_t* rank) {
  int64_t bin = kBins - 1;
  for (;; --bin) {
    const int64_t here = int64_t{counts[0][bin]} + counts[1][bin];
    if (*rank <= here || bin == 0) return bin;
    *rank -= here;
  }
}

class Order {
 public:
  explicit Order(const Unordered& all) : m_(all.m), n_(all.n) {
    int64_t any = 0;
    for (int64_t i = 0; i < n_; ++i) any |= m_[i];
    while (any >> shift_ >= kBins) ++shift_;
    int64_t i = 0;
    for (; i + 1 < n_; i += 2) {
      ++counts_[0][m_[i] >> shift_];
      ++counts_[1][m_[i + 1] >> shift_];
    }
    if (i < n_) ++counts_[0][m_[i] >> shift_];
  }

  Ranked at(int64_t rank) {
    const int64_t bin = find_bin(counts_, &rank);
    // An element is noted whether it lies in the bin or not, so that nothing has to be predicted.
    index_.resize(static_cast<size_t>(counts_[0][bin]) + counts_[1][bin] + 1);
    size_t size = 0;
    for (int64_t i = 0; i < n_; ++i) {
      index_[size] = i;
      size += (m_[i] >> shift_) == bin;
    }
    int shift = shift_;
    while (shift > 0) {
      shift = shift > kBits ? shift - kBits : 0;
      size = narrow(size, shift, &rank);
    }
    const int64_t found = index_[rank - 1];
    return {m_[found], found};
  }

 private:
  // Keeps those of the first `size` indices whose bits from `shift` on are those of a rank.
  size_t narrow(size_t size, int shift, int64_t* rank) {
    Counts counts{};
    for (size_t i = 0; i < size; ++i) ++counts[i & 1][bin_of(m_[index_[i]], shift)];
    const int64_t bin = find_bin(counts, rank);
    size_t kept = 0;
    for (size_t i = 0; i < size; ++i) {
      const int64_t at = index_[i];
      index_[kept] = at;
      kept += bin_of(m_[at], shift) == bin;
    }
    return kept;
  }

  const int64_t* m_;
  int64_t n_;
  int shift_ = 0;
  Counts counts_{};
  std::vector<int64_t> index_;
};

}  // namespace

std::vector<std::vector<Ranked>> order_statistics(int threads, const std::vector<Unordered>& all) {
  std::vector<std::vector<Ranked>> found(all.size());
  parallel_for(threads, static_cast<int64_t>(all.size()), [&](int, int64_t number) {
    if (all[number].ranks.empty()) return;
    Order order(all[number]);
    for (int64_t rank : all[number].ranks) found[number].push_back(order.at(rank));
  });
  return found;
}

}  // namespace mergekern
