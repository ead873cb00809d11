// Prune: a random drop whose odds go by rank within rows (mergekern/fused.py: Pruning), without a
// sort. A coin decides most elements by itself, and for most of the others it is enough to know
// where the slot of their magnitude begins and ends among the ranks (slots.h). What is open then is
// sorted, slot by slot.
#pragma once
#include <algorithm>
#include <utility>
#include <vector>

#include "cpu/blocks.h"
#include "cpu/slots.h"
#include "cpu/vectors.h"

namespace mergekern {
namespace MK_ISA {
namespace {

// The bound of a coin by rank.
class Bounds {
 public:
  Bounds(const Odds& odds, int64_t length)
      : smallest_(odds.smallest), span_(odds.largest - odds.smallest), last_(length - 1) {
    origin_ = at(0) << kFraction;
    step_ = last_ ? (span_ << kFraction) / static_cast<uint64_t>(last_) : 0;
  }

  uint64_t at(int64_t rank) const {
    if (last_ == 0) return smallest_ + span_ / 2;
    return smallest_ + span_ * static_cast<uint64_t>(rank) / static_cast<uint64_t>(last_);
  }

  // Its high half, or one less: a coin with a lower one is kept. One that is higher by more than
  // one is dropped.
  uint32_t high(uint32_t rank) const {
    return static_cast<uint32_t>((origin_ + step_ * rank) >> (kFraction + 16));
  }

 private:
  static constexpr int kFraction = 24;  // what a step loses adds up to less than 1 << 16

  uint64_t smallest_, span_, origin_, step_;
  int64_t last_;
};

// Bits that follow each other in memory, from the first of a byte on.
class BitWriter {
 public:
  explicit BitWriter(uint8_t* to) : to_(to) {}
  ~BitWriter() { __builtin_memcpy(to_, &held_, static_cast<size_t>((count_ + 7) / 8)); }
  BitWriter(const BitWriter&) = delete;

  // n <= 64; the bits behind are zero
  void add(uint64_t bits, int n) {
    held_ |= bits << count_;
    count_ += n;
    if (count_ < 64) return;
    __builtin_memcpy(to_, &held_, sizeof(held_));
    to_ += sizeof(held_);
    count_ -= 64;
    held_ = count_ ? bits >> (n - count_) : 0;
  }

 private:
  uint8_t* to_;
  uint64_t held_ = 0;
  int count_ = 0;
};

template <typename T, typename Work>
void difference_block(const Unaligned<T>* __restrict__ x, const Unaligned<T>* __restrict__ b,
                      Work* __restrict__ d, int n) {
  for (int i = 0; i < n; ++i) {
    d[i] = static_cast<Work>(widen(x[i].value)) - static_cast<Work>(widen(b[i].value));
  }
}

// The deltas of one expert, whatever they are.
template <typename Work>
void difference_block(const Tile& t, const Expert& e, int64_t at_, Work* d, int n) {
  if (e.dtype == t.base_dtype) {
    with_type(e.dtype, [&](auto type) {
      using T = decltype(type);
      difference_block(at<T>(e.data, at_), at<T>(t.base, at_), d, n);
    });
    return;
  }
  alignas(64) Work base[kStep];
  widen_block(t.base, t.base_dtype, at_, base, n);
  delta_block<false>(e, at_, base, d, n, 0, 0);
}

// One expert's rows that lie among one another.
template <typename Work>
class Panel {
 public:
  using M = typename Bits<Work>::type;

  Panel(const Pruning& rows, const Odds& odds)
      : rows_(rows),
        odds_(odds),
        op_(thrown_for(rows)),
        bounds_(odds, rows.length),
        ranks_(rows.length),
        coins_(odds.index, op_) {
    const size_t n = static_cast<size_t>(rows.panel());
    before_.resize(n);
    slots_.resize(n + 64);  // behind them lie slots of zeros
    words_.resize(n / 2 + 64);
    kept_.resize(n / 64 + 1), contested_.resize(n / 64 + 1);
  }

  void prune(const Tile& t, const Expert& e, int64_t at, BitWriter* mask) {
    const M largest = take_slots(t, e, at);
    if (!ranks_.suits(largest)) {  // as the last panel's did
      ranks_.aim(largest);
      take_slots(t, e, at);
    }
    throw_coins(t.offset + at);
    decide_by_coin();
    for (int64_t row = 0; row < rows_.stride; ++row) {
      ranks_.rank(&slots_[row], rows_.length, rows_.stride, &before_[row]);
      decide_by_rank(t, e, at, row);
    }
    for (int64_t i = 0; i < rows_.panel(); i += 64) {
      mask->add(kept_[i / 64], static_cast<int>(std::min<int64_t>(rows_.panel() - i, 64)));
    }
  }

 private:
  static FusedOp thrown_for(const Pruning& rows) {
    FusedOp op{};
    op.seed = rows.seed;
    op.name_hash = rows.name_hash;
    return op;
  }

  // Returns the largest magnitude.
  M take_slots(const Tile& t, const Expert& e, int64_t at) {
    alignas(64) Work d[kStep];
    M largest = 0;
    for (int64_t i = 0; i < rows_.panel(); i += kStep) {
      const int n = static_cast<int>(std::min<int64_t>(rows_.panel() - i, kStep));
      difference_block(t, e, at + i, d, n);
      largest = most(largest, ranks_.sort(d, n, &slots_[i]));
    }
    return largest;
  }

  void throw_coins(int64_t element) {
    first_ = element;
    const int64_t skip = element % 8;
    coins_.words(static_cast<uint64_t>(element / 8), (skip + rows_.panel() + 7) / 8, words_.data());
    high_ = reinterpret_cast<const Unaligned<uint16_t>*>(words_.data()) + skip;
  }

  void decide_by_coin() {
    constexpr uint32_t highest = 0xffff;
    const uint32_t most = bounds_.high(static_cast<uint32_t>(rows_.length - 1)) + 1;
    const Halves sure = Halves{} + static_cast<uint16_t>(std::min(bounds_.high(0), highest));
    const Halves last = Halves{} + static_cast<uint16_t>(std::min(most, highest));
    const Halves zeros = Halves{} + (Slots<Work>::kZeros - 1);
    for (int64_t i = 0; i < rows_.panel(); i += 64) {
      uint64_t kept = 0, contested = 0;
      for (int j = 0; j < 64; j += kLanesOf16) {
        const Halves high = reinterpret_cast<Halves>(load(high_ + i + j));
        const auto any = reinterpret_cast<Halves>(load(&slots_[i + j])) > zeros;
        const auto keeps = high < sure;
        const auto may = (high <= last) & ~keeps;
        kept |= uint64_t{bits_of_16(reinterpret_cast<Words>(keeps & any))} << j;
        contested |= uint64_t{bits_of_16(reinterpret_cast<Words>(may & any))} << j;
      }
      const int64_t n = rows_.panel() - i;
      const uint64_t inside = n < 64 ? (uint64_t{1} << n) - 1 : ~uint64_t{0};
      kept_[i / 64] = kept & inside;
      contested_[i / 64] = contested & inside;
    }
  }

  void decide_by_rank(const Tile& t, const Expert& e, int64_t at, int64_t row) {
    open_.clear();
    if (rows_.stride == 1) {
      for (int64_t i = 0; i < rows_.length; i += 64) decide(i, contested_[i / 64]);
    } else {
      for (int64_t i = row; i < rows_.panel(); i += rows_.stride) {
        if (is_contested(i)) decide(i / 64 * 64, uint64_t{1} << (i % 64));
      }
    }
    std::sort(open_.begin(), open_.end());
    open_.erase(std::unique(open_.begin(), open_.end()), open_.end());
    for (const uint16_t slot : open_) sort(t, e, at, row, slot);
  }

  // Decides contested elements, `first` and up to 63 behind it, as far as their slots tell.
  void decide(int64_t first, uint64_t contested) {
    const uint16_t* const slots = &slots_[first];
    const uint32_t *const before = &before_[first], *const begins = ranks_.begins();
    const auto* const highs = high_ + first;
    const Bounds bounds = bounds_;
    uint64_t kept = 0, open = 0;
    for (uint64_t bits = contested; bits; bits &= bits - 1) {
      const int j = __builtin_ctzll(bits);
      const uint16_t slot = slots[j];
      uint32_t rank = begins[slot], range = 1;
      if (Slots<Work>::is_single(slot)) {
        rank += before[j];
      } else {
        range += bounds.high(begins[slot + 1] - 1) - bounds.high(rank);
      }
      const uint32_t high = highs[j].value, bound = bounds.high(rank);
      kept |= uint64_t{high < bound} << j;
      if (__builtin_expect(high - bound <= range, 0)) open |= uint64_t{1} << j;
    }
    kept_[first / 64] |= kept;
    for (; open; open &= open - 1) look(first + __builtin_ctzll(open));
  }

  void look(int64_t i) {
    const uint16_t slot = slots_[i];
    if (!Slots<Work>::is_single(slot)) return open_.push_back(slot);
    if (reaches(i, ranks_.begins()[slot] + before_[i])) keep(i);
  }

  bool is_contested(int64_t i) const { return contested_[i / 64] >> (i % 64) & 1; }
  void keep(int64_t i) { kept_[i / 64] |= uint64_t{1} << (i % 64); }

  // Whether an element of this rank is kept.
  bool reaches(int64_t i, uint32_t rank) const {
    const uint32_t high = high_[i].value, bound = bounds_.high(rank);
    if (high - bound > 1) return high < bound;
    const int64_t element = first_ + i;
    const Words4 low =
        coin_half(static_cast<uint64_t>(element / 8), odds_.index, 1, rows_.name_hash, rows_.seed);
    return (high << 16 | coin_lane(low, element % 8)) < bounds_.at(rank);
  }

  // Decides by the ranks in a slot of several magnitudes.
  void sort(const Tile& t, const Expert& e, int64_t at, int64_t row, uint16_t slot) {
    order_.clear();
    const auto note = [&](int64_t i) {
      Work d;
      difference_block(t, e, at + i, &d, 1);
      order_.emplace_back(magnitude(d), i);
    };
    if (rows_.stride == 1) {
      for (int64_t i = 0; i < rows_.length; i += kLanesOf16) {
        const auto same = reinterpret_cast<Halves>(load(&slots_[i])) == slot;
        uint32_t bits = bits_of_16(reinterpret_cast<Words>(same));
        for (; bits; bits &= bits - 1) note(i + __builtin_ctz(bits));
      }
    } else {
      for (int64_t i = row; i < rows_.panel(); i += rows_.stride) {
        if (slots_[i] == slot) note(i);
      }
    }
    std::sort(order_.begin(), order_.end());
    uint32_t rank = ranks_.begins()[slot];
    for (const auto& [key, i] : order_) {
      if (is_contested(i) && reaches(i, rank)) keep(i);
      ++rank;
    }
  }

  const Pruning rows_;
  const Odds odds_;
  const FusedOp op_;
  const Bounds bounds_;
  Slots<Work> ranks_;
  Coins coins_;
  std::vector<uint16_t> slots_, open_;
  std::vector<uint32_t> before_, words_;
  std::vector<uint64_t> kept_, contested_;  // bits
  std::vector<std::pair<M, int64_t>> order_;
  const Unaligned<uint16_t>* high_ = nullptr;
  int64_t first_ = 0;
};

// Elements [begin, end): whole panels, and whole bytes of the masks unless they end the tile.
template <typename Work>
void prune(const Pruning& rows, const Odds* odds, const Tile& t, int64_t begin, int64_t end,
           uint8_t* const* masks) {
  for (int k = 0; k < t.count; ++k) {
    if (!masks[k]) continue;
    Panel<Work> panel(rows, odds[k]);
    BitWriter mask(masks[k] + begin / 8);
    for (int64_t at = begin; at < end; at += rows.panel()) {
      panel.prune(t, t.experts[k], at, &mask);
    }
  }
}

}  // namespace
}  // namespace MK_ISA
}  // namespace mergekern
