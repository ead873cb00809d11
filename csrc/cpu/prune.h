// Prune: a random drop whose odds go by rank within rows (mergekern/fused.py: Pruning), without a
// sort. A coin decides most elements by itself. For the others a histogram of the row's magnitudes
// tells the rank: among equal magnitudes it goes by place, so it is the number of those in lower
// bins and of those that came before. Only where a bin mixes magnitudes, and the coin falls between
// the bounds of its ranks, is the row searched.
#pragma once
#include <algorithm>
#include <utility>
#include <vector>

#include "cpu/blocks.h"
#include "cpu/vectors.h"

namespace mergekern {
namespace MK_ISA {
namespace {

// The bound of a coin by rank.
class Bounds {
 public:
  Bounds(const Odds& odds, int64_t length)
      : smallest_(odds.smallest), span_(odds.largest - odds.smallest), last_(length - 1) {
    if (length > kTable) return;
    for (int64_t r = 0; r < length; ++r) table_.push_back(high_of(r));
  }

  uint64_t at(int64_t rank) const {
    if (last_ == 0) return smallest_ + span_ / 2;
    return smallest_ + span_ * static_cast<uint64_t>(rank) / static_cast<uint64_t>(last_);
  }

  // Its high half: a coin with a lower one is kept, with a higher one dropped.
  const uint16_t* table() const { return table_.empty() ? nullptr : table_.data(); }
  uint16_t high(int64_t rank) const { return table_.empty() ? high_of(rank) : table_[rank]; }

 private:
  static constexpr int64_t kTable = 1 << 16;

  uint16_t high_of(int64_t rank) const {
    return static_cast<uint16_t>(std::min<uint64_t>(at(rank) >> 16, 0xffff));
  }

  uint64_t smallest_, span_;
  int64_t last_;
  std::vector<uint16_t> table_;
};

// Bins of magnitudes: kOctaves below the largest one, all that is smaller in the first.
template <typename M>
struct Bins {
  static constexpr int kMantissa = sizeof(M) == 4 ? 23 : 52, kOctaves = 12;
  static constexpr uint32_t kMixed = 0x80000000u;  // a bin may hold several magnitudes
  static constexpr int kZeros = 8;                 // bins of zeros, behind the others

  int count, shift;

  explicit Bins(int64_t length) {
    int digits = 2;
    while (digits < 7 && (kOctaves << (digits + 1)) <= length) ++digits;
    count = kOctaves << digits;
    shift = kMantissa - digits;
  }

  // slots: the bin of each magnitude, kMixed where it is not the only one that its bin may have
  void sort(const M* __restrict__ keys, M largest, int64_t n, uint32_t* __restrict__ slots) const {
    const M top = largest >> shift, below = static_cast<M>(count - 1);
    const M first = top > below ? top - below : 0, least = first << shift;
    const M low = (M(1) << shift) - 1;
    for (int64_t i = 0; i < n; ++i) {
      const M key = keys[i];
      const bool in = key >= least;
      const uint32_t bin = in ? static_cast<uint32_t>((key >> shift) - first) : 0u;
      const uint32_t mixed = (!in | ((key & low) != 0)) ? kMixed : 0u;
      const uint32_t zero = static_cast<uint32_t>(count) + static_cast<uint32_t>(i & (kZeros - 1));
      slots[i] = key == 0 ? zero : bin | mixed;
    }
  }
};

// One expert's rows that lie among one another.
template <typename Work>
class Panel {
 public:
  using M = typename Bits<Work>::type;

  Panel(const Pruning& rows, const Odds& odds)
      : rows_(rows), odds_(odds), bounds_(odds, rows.length), bins_(rows.length) {
    op_.seed = rows.seed;
    op_.name_hash = rows.name_hash;
    coins_.emplace_back(odds.index, op_);
    const size_t n = static_cast<size_t>(rows.panel());
    keys_.resize(n), slots_.resize(n), before_.resize(n);
    any_.resize(n + kLanesOf16), contested_.resize(n / 8 + 16);
    words_.resize(n / 2 + 16 + kLanesOf32);
    table_.resize(bins_.count + Bins<M>::kZeros), later_.resize(table_.size());
    ends_.resize(bins_.count);
  }

  // kept: all ones or zeros for every element, and room for a register behind the last
  void prune(const Tile& t, const Expert& e, int64_t at, uint16_t* kept) {
    const M largest = take_keys(t, e, at);
    throw_coins(t.offset + at);
    bins_.sort(keys_.data(), largest, rows_.panel(), slots_.data());
    decide_by_coin(kept);
    for (int64_t row = 0; row < rows_.stride; ++row) {
      count(row);
      decide_by_rank(row, kept);
    }
  }

 private:
  static constexpr uint32_t kMixed = Bins<M>::kMixed;

  M take_keys(const Tile& t, const Expert& e, int64_t at) {
    alignas(64) Work base[kStep], d[kStep];
    M largest = 0;
    for (int64_t i = 0; i < rows_.panel(); i += kStep) {
      const int n = static_cast<int>(std::min<int64_t>(rows_.panel() - i, kStep));
      widen_block(t.base, t.base_dtype, at + i, base, n);
      delta_block<false>(e, at + i, base, d, n, 0, 0);
      M* __restrict__ keys = keys_.data() + i;
      uint16_t* __restrict__ any = any_.data() + i;
      for (int j = 0; j < n; ++j) {
        keys[j] = magnitude(d[j]);
        largest = most(largest, keys[j]);
        any[j] = keys[j] != 0 ? 0xffff : 0;
      }
    }
    return largest;
  }

  void throw_coins(int64_t element) {
    first_ = element;
    const int64_t skip = element % 8;
    coins_[0].words(static_cast<uint64_t>(element / 8), (skip + rows_.panel() + 7) / 8,
                    words_.data());
    high_ = reinterpret_cast<const Unaligned<uint16_t>*>(words_.data()) + skip;
  }

  void decide_by_coin(uint16_t* kept) {
    const Halves sure = Halves{} + bounds_.high(0);
    const Halves last = Halves{} + bounds_.high(rows_.length - 1);
    for (int64_t i = 0; i < rows_.panel(); i += kLanesOf16) {
      const Halves high = reinterpret_cast<Halves>(load(high_ + i));
      const Halves any = reinterpret_cast<Halves>(load(&any_[i]));
      const Halves keeps = reinterpret_cast<Halves>(high < sure) & any;
      const Halves may = reinterpret_cast<Halves>(high <= last) & any & ~keeps;
      store(kept + i, keeps);
      const MaskBits bits = bits_of_16(reinterpret_cast<Words>(may));
      __builtin_memcpy(&contested_[i / 8], &bits, sizeof(bits));
    }
  }

  bool is_contested(int64_t i) const { return contested_[i / 8] >> (i % 8) & 1; }

  // The tables become the ranks at which the bins of a half begin, ends_ those behind bins;
  // before_ tells how many of a bin came before each element in its half.
  void count(int64_t row) {
    std::fill(table_.begin(), table_.end(), 0u);
    std::fill(later_.begin(), later_.end(), 0u);
    const int64_t stride = rows_.stride, length = rows_.length;
    // Two halves side by side: the counts of one wait less for one another.
    uint32_t *const table = table_.data(), *const later = later_.data();
    half_ = length / 128 * 64;
    const uint32_t *first = &slots_[row], *second = first + half_ * stride;
    uint32_t *seen = &before_[row], *seen_later = seen + half_ * stride;
    for (int64_t i = 0; i < half_ * stride; i += stride) {
      note(first[i], table, seen + i);
      note(second[i], later, seen_later + i);
    }
    for (int64_t i = half_ * stride; i < (length - half_) * stride; i += stride) {
      note(second[i], later, seen_later + i);
    }
    uint32_t rank = 0;
    for (int b = bins_.count; b < bins_.count + Bins<M>::kZeros; ++b) rank += table[b] + later[b];
    for (int bins = 0; bins < bins_.count; bins += 8) {
      uint32_t any = 0;
      for (int b = bins; b < bins + 8; ++b) any |= table[b] | later[b];
      if (!any) continue;
      for (int b = bins; b < bins + 8; ++b) {
        const uint32_t mine = table[b], others = later[b], mixed = (mine | others) & kMixed;
        table[b] = rank | mixed;
        rank += mine & ~kMixed;
        later[b] = rank | mixed;
        rank += others & ~kMixed;
        ends_[b] = rank;
      }
    }
  }

  static void note(uint32_t slot, uint32_t* table, uint32_t* before) {
    const uint32_t bin = slot & ~kMixed, entry = table[bin];
    *before = entry & ~kMixed;
    table[bin] = (entry + 1) | (slot & kMixed);
  }

  void decide_by_rank(int64_t row, uint16_t* kept) {
    open_.clear();
    if (rows_.stride == 1) {
      for (int64_t at = 0; at < rows_.length; at += 64) {
        uint64_t bits;
        __builtin_memcpy(&bits, &contested_[at / 8], sizeof(bits));
        if (rows_.length - at < 64) bits &= (uint64_t{1} << (rows_.length - at)) - 1;
        decide_bits(at, bits, kept);
      }
    } else {
      for (int64_t i = row; i < rows_.panel(); i += rows_.stride) {
        if (is_contested(i)) kept[i] = decide(i);
      }
    }
    if (open_.empty()) return;
    if (open_.size() > 16 + static_cast<size_t>(rows_.length) / 64) return sort(row, kept);
    for (const int64_t i : open_) kept[i] = reaches(i, search(row, i));
  }

  // Where a bin holds one magnitude, as most do, the rank is known.
  void decide_bits(int64_t at, uint64_t bits, uint16_t* kept) {
    const uint32_t* const slots = &slots_[at];
    const uint32_t* const before = &before_[at];
    const uint32_t* const table = at < half_ ? table_.data() : later_.data();
    const Unaligned<uint16_t>* const high = high_ + at;
    const uint16_t* const bounds = bounds_.table();
    uint64_t rest = bounds ? 0 : bits;
    for (bits ^= rest; bits; bits &= bits - 1) {
      const int j = __builtin_ctzll(bits);
      const uint32_t slot = slots[j], entry = table[slot & ~kMixed];
      const uint32_t mixed = entry >> 31;
      const uint16_t bound = bounds[(entry + before[j]) & (mixed - 1)], h = high[j].value;
      kept[at + j] = static_cast<uint16_t>(-(h < bound));
      rest |= uint64_t{mixed | (h == bound)} << j;
    }
    for (; rest; rest &= rest - 1) {
      const int64_t i = at + __builtin_ctzll(rest);
      kept[i] = decide(i);
    }
  }

  uint16_t decide(int64_t i) {
    const uint32_t bin = slots_[i] & ~kMixed, entry = table_[bin];
    const bool later = i >= half_ * rows_.stride;
    if (!(entry & kMixed)) return reaches(i, (later ? later_[bin] : entry) + before_[i]);
    const uint16_t h = high_[i].value;
    if (h < bounds_.high(entry & ~kMixed)) return 0xffff;
    if (h > bounds_.high(int64_t{ends_[bin]} - 1)) return 0;
    open_.push_back(i);
    return 0;
  }

  // Whether an element of this rank is kept.
  uint16_t reaches(int64_t i, int64_t rank) const {
    const uint16_t h = high_[i].value, bound = bounds_.high(rank);
    return (h == bound ? exactly(i, rank) : h < bound) ? 0xffff : 0;
  }

  bool exactly(int64_t i, int64_t rank) const {
    const int64_t element = first_ + i;
    const Words4 low =
        coin_half(static_cast<uint64_t>(element / 8), odds_.index, 1, rows_.name_hash, rows_.seed);
    const uint32_t coin = static_cast<uint32_t>(high_[i].value) << 16 | coin_lane(low, element % 8);
    return coin < bounds_.at(rank);
  }

  int64_t search(int64_t row, int64_t i) const {
    const M key = keys_[i];
    M less = 0, same = 0;
    const int64_t stride = rows_.stride;
    if (stride == 1) {
      const M* __restrict__ keys = keys_.data();
      for (int64_t j = 0; j < i; ++j) same += keys[j] <= key;
      for (int64_t j = i + 1; j < rows_.length; ++j) less += keys[j] < key;
    } else {
      for (int64_t j = row; j < i; j += stride) same += keys_[j] <= key;
      for (int64_t j = i + stride; j < rows_.panel(); j += stride) less += keys_[j] < key;
    }
    return static_cast<int64_t>(less) + static_cast<int64_t>(same);
  }

  // All ranks of a row in which much is open.
  void sort(int64_t row, uint16_t* kept) {
    std::vector<std::pair<M, int64_t>> order;
    for (int64_t i = row; i < rows_.panel(); i += rows_.stride) order.emplace_back(keys_[i], i);
    std::sort(order.begin(), order.end());
    for (int64_t rank = 0; rank < rows_.length; ++rank) {
      const int64_t i = order[rank].second;
      if (is_contested(i)) kept[i] = reaches(i, rank);
    }
  }

  const Pruning rows_;
  const Odds odds_;
  FusedOp op_{};
  Bounds bounds_;
  Bins<M> bins_;
  std::vector<Coins> coins_;
  std::vector<M> keys_;
  std::vector<uint32_t> slots_, before_, words_, table_, later_, ends_;
  int64_t half_ = 0;  // of a row: the second one is counted in later_
  std::vector<uint16_t> any_;
  std::vector<uint8_t> contested_;  // bits
  std::vector<int64_t> open_;
  const Unaligned<uint16_t>* high_ = nullptr;
  int64_t first_ = 0;
};

inline void pack(const uint16_t* kept, int64_t n, uint8_t* mask) {
  for (int64_t i = 0; i < n; i += kLanesOf16) {
    const MaskBits bits = bits_of_16(load(kept + i));
    const int64_t bytes = std::min<int64_t>(sizeof(bits), (n - i + 7) / 8);
    __builtin_memcpy(mask + i / 8, &bits, static_cast<size_t>(bytes));
  }
}

// Elements [begin, end): whole panels, and whole bytes of the masks unless they end the tile.
template <typename Work>
void prune(const Pruning& rows, const Odds* odds, const Tile& t, int64_t begin, int64_t end,
           uint8_t* const* masks) {
  std::vector<uint16_t> kept(static_cast<size_t>(end - begin) + kLanesOf16);
  for (int k = 0; k < t.count; ++k) {
    if (!masks[k]) continue;
    Panel<Work> panel(rows, odds[k]);
    for (int64_t at = begin; at < end; at += rows.panel()) {
      panel.prune(t, t.experts[k], at, &kept[at - begin]);
    }
    std::fill(kept.end() - kLanesOf16, kept.end(), uint16_t{0});
    pack(kept.data(), end - begin, masks[k] + begin / 8);
  }
}

}  // namespace
}  // namespace MK_ISA
}  // namespace mergekern
