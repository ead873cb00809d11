// What a quick block knows before its first element: its experts' addresses and cuts, and what it
// will divide by.
#pragma once
#include "cuda/choose.h"
#include "cuda/quotient.cuh"
#include "cuda/tables.cuh"

namespace mergekern {

enum class Mix {
  linear,   // linear_combination
  sum,      // no election
  elected,  // by mass, where ballots are values
};

// What a kernel is compiled for.
template <typename Input, int kCount, Mix kMixed, bool kDropping, bool kGuessing>
struct Case {
  using In = Input;
  static constexpr int K = kCount;
  static constexpr bool kDrops = kDropping, kGuesses = kGuessing;
  static constexpr bool kElects = kMixed == Mix::elected, kDeltas = kMixed != Mix::linear;
  static constexpr int kSets = kElects ? 1 << kCount : 1;  // of experts that may agree
};

// Cuts as floats, which compare as the bits of magnitudes do; up to infinity, as NaN has many.
struct alignas(16) Lane {
  const void* data;
  float lo, hi, strict, wide;
};

template <typename C>
struct QuickShared {
  Lane lane[C::K];
  Quotient quotient[C::kSets];
  uint32_t tally[C::K][2];  // Speculation.kept of the lower cut
  alignas(8) uint8_t crooked[kMost], apart[kMost], between[kMost];
  int64_t tile;
  bool odd;        // known before the first element
  uint32_t doubt;  // found on the way
};

MK_DEVICE bool any(const uint8_t* flags) { return load_bytes<uint64_t>(flags, 0) != 0; }

MK_DEVICE float cut_as_float(uint32_t cut) {
  return bit_cast<float>(cut > Bits<float>::inf ? Bits<float>::inf : cut);
}

// Whether cuts are the same from the first to the last of these elements.
MK_DEVICE bool steady(const int64_t* w, int64_t first, int64_t last) {
  return !(first <= w[1] && w[1] < last) && !(first <= w[3] && w[3] < last);
}

template <typename C>
MK_DEVICE void set_lane(const Pass& p, int64_t tile, int64_t begin, int64_t end, int k,
                        QuickShared<C>* shared) {
  const int64_t* row = row_of(p, tile);
  const int64_t first = row[kOffset] + begin, last = row[kOffset] + end - 1;
  uint32_t low[3] = {};
  Lane lane{address(row[kExperts + k]), 0, 0, 0, 0};
  bool crooked = !aligned16(lane.data), between = false;
  for (int which = 0; which < p.per_expert; ++which) {
    const int64_t* w = window_of(p, tile, k, which);
    const uint32_t hi = cut_at<uint32_t>(w[2], w[3], first);
    low[which] = cut_at<uint32_t>(w[0], w[1], first);
    crooked |= !steady(w, first, last) || low[which] > Bits<float>::inf;
    if (hi > Bits<float>::abs) continue;
    crooked |= C::kGuesses || hi > Bits<float>::inf;
    between = true;
    lane.hi = cut_as_float(hi);
  }
  lane.lo = cut_as_float(low[0]), lane.strict = cut_as_float(low[1]);
  lane.wide = cut_as_float(low[2]);
  shared->lane[k] = lane;
  shared->crooked[k] = crooked;
  shared->apart[k] = C::kGuesses && (low[1] != low[0] || low[2] < low[0]);
  shared->between[k] = between;
}

// By what the sum of the experts of a set is divided.
template <typename C>
MK_DEVICE Quotient quotient_of(const QuickArgs& a, unsigned set) {
  float sum = 0;
  for (int k = 0; k < C::K; ++k) {
    if (!C::kElects || (set >> k & 1)) sum = sum + a.share[k];
  }
  const float divisor = a.mean ? guarded(sum) : static_cast<float>(a.pass.divisor);
  return Quotient{divisor, 1.0f / divisor};
}

template <typename C>
MK_DEVICE void set_up(const QuickArgs& a, int64_t block, int thread, QuickShared<C>* shared) {
  const Pass& p = a.pass;
  const int64_t tile = tile_of(p, block);
  const int64_t* row = row_of(p, tile);
  const int64_t begin = (block - row[kFirst]) * kSpan;
  const int64_t end = row[kNumel] - begin < kSpan ? row[kNumel] : begin + kSpan;
  if (thread < kMost) shared->crooked[thread] = shared->apart[thread] = shared->between[thread] = 0;
  if (thread < C::K) {
    set_lane(p, tile, begin, end, thread, shared);
    shared->tally[thread][0] = shared->tally[thread][1] = 0;
  }
  if (thread < C::kSets) {
    shared->quotient[thread] = quotient_of<C>(a, static_cast<unsigned>(thread));
  }
  if (thread != 0) return;
  const bool aligned = aligned16(address(row[kBase] | row[kOut]));
  shared->tile = tile;
  shared->odd = !aligned || end % kEight != 0;
  shared->doubt = 0;
}

}  // namespace mergekern
