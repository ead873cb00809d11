// Ranks by counting: the magnitudes of a row fall into slots by their highest digits, two for each
// number that these form: one for the only magnitude without other digits, and one for those that
// have some, which are all larger. Equal magnitudes are ranked by place, so that in a slot of the
// first kind a rank is the number of elements in lower slots and of those that came before.
#pragma once
#include <algorithm>
#include <vector>

#include "cpu/blocks.h"

namespace mergekern {
namespace MK_ISA {
namespace {

typedef uint32_t Four __attribute__((vector_size(16)));

// The slots of a row and where they begin and end among its ranks.
template <typename Work>
class Slots {
 public:
  using M = typename Bits<Work>::type;
  static constexpr int kZeros = 8;  // the first ones: counts of zeros wait less for one another

  explicit Slots(int64_t length) {
    int digits = 2;
    while (digits < kMostDigits && (2 * kOctaves << (digits + 1)) <= length) ++digits;
    numbers_ = M(kOctaves) << digits;
    shift_ = kMantissa - digits;
    begins_.resize(kZeros + 2 * numbers_ + 4);
  }

  static bool is_single(uint16_t slot) { return slot % 2 == 0; }  // has one magnitude
  const uint32_t* begins() const { return begins_.data(); }       // the next one's is its end

  // Slots for rows whose largest magnitude is about this: up to twice as much, and kOctaves below.
  // All that is smaller has one slot, and all that is larger.
  void aim(M largest) {
    const M top = (largest >> shift_) + octave();
    first_ = top > numbers_ ? top - numbers_ : 0;
  }

  // Whether this one is about the largest, too.
  bool suits(M largest) const {
    if (largest == 0) return true;
    const M digits = largest >> shift_, top = first_ + numbers_;
    return digits < top && (first_ == 0 || digits + 4 * octave() >= top);
  }

  // slots: of the magnitudes of d. Returns the largest one.
  M sort(const Work* __restrict__ d, int n, uint16_t* __restrict__ slots) const {
    const int shift = shift_;
    const M rest = (M(1) << shift) - 1, before = 2 * first_ - kZeros;
    const M least = first_ << shift | 1, most = (first_ + numbers_ - 1) << shift | rest;
    M largest = 0;
    for (int i = 0; i < n; ++i) {
      const M m = magnitude(d[i]);
      largest = m > largest ? m : largest;
      const M raised = m > least ? m : least, held = raised < most ? raised : most;
      const M slot = (held >> shift) + ((held + rest) >> shift) - before;
      slots[i] = static_cast<uint16_t>(m == 0 ? static_cast<M>(i) & (kZeros - 1) : slot);
    }
    return largest;
  }

  // Counts a row; before: how many of its slot came before each element. `stride` is theirs.
  void rank(const uint16_t* slots, int64_t length, int64_t stride, uint32_t* before) {
    std::fill(begins_.begin(), begins_.end(), 0u);
    uint32_t* const counts = begins_.data();
    for (int64_t i = 0; i < length * stride; i += stride) before[i] = counts[slots[i]]++;
    Four rank{};
    for (size_t i = 0; i + 4 <= begins_.size(); i += 4) {
      Four here;
      __builtin_memcpy(&here, counts + i, sizeof(here));
      Four ends = here + __builtin_shufflevector(here, Four{}, 4, 0, 1, 2);
      ends += __builtin_shufflevector(ends, Four{}, 4, 4, 0, 1);
      ends += rank;
      rank = __builtin_shufflevector(ends, ends, 3, 3, 3, 3);
      const Four begins = ends - here;
      __builtin_memcpy(counts + i, &begins, sizeof(begins));
    }
  }

 private:
  static constexpr int kMantissa = sizeof(M) == 4 ? 23 : 52;
  static constexpr int kOctaves = 10, kMostDigits = 11;  // a slot is a number of 16 bits

  M octave() const { return M(1) << (kMantissa - shift_); }

  M numbers_, first_ = 0;
  int shift_;
  std::vector<uint32_t> begins_;  // 32 bits each: stores of fewer are slower
};

}  // namespace
}  // namespace MK_ISA
}  // namespace mergekern
