// The common ops on inputs of one dtype: up to eight experts, whose elements stay in registers.
//
// A block does what it is sure of. Where cuts move, where addresses are not aligned, at the odd end
// of a tile, and where a number is not finite or too small for the short division, it leaves a
// doubt, and General does that block over again.
#pragma once
#include "cuda/lanes.cuh"

namespace mergekern {

// Half of each coin: a lane lies below the bound exactly where the whole number would.
MK_DEVICE Words4 coins_of(const QuickArgs& a, int k, uint64_t block, uint32_t name) {
  const uint32_t bound = a.keep_below[k], top = bound & 0xffff0000u;
  if (bound == kEveryCoin) return Words4{};
  Words4 high = coin_half(block, a.index[k], 0, name, a.pass.keys);
  bool undecided = false;
  MK_UNROLL for (int w = 0; w < 4; ++w) {
    undecided |= high.w[w] << 16 == top || (high.w[w] & 0xffff0000u) == top;
  }
  if (__builtin_expect(undecided, 0)) {
    const Words4 low = coin_half(block, a.index[k], 1, name, a.pass.keys);
    Words4 decided{};
    MK_UNROLL for (int j = 0; j < kEight; ++j) {
      const uint32_t half = coin_lane(high, j);
      const uint32_t told = coin_lane(low, j) < (bound & 0xffffu) ? 0u : 0xffffu;
      decided.w[j / 2] |= (half == bound >> 16 ? told : half) << (16 * (j % 2));
    }
    high = decided;
  }
  return high;
}

MK_DEVICE bool kept_by(const Words4& coins, int j, uint32_t bound) {
  const uint32_t word = coins.w[j / 2];
  return (j % 2 ? word & 0xffff0000u : word << 16) < bound;
}

MK_DEVICE bool reaches(float d, float cut) { return !(fabsf(d) < cut); }

MK_DEVICE bool infinite(float x) { return reaches(x, bit_cast<float>(Bits<float>::inf)); }

template <typename C>
struct Eight {
  Packed<typename C::In> base, x[C::K];
  Words4 coins[C::kDrops ? C::K : 1];
  float out[kEight];
};

template <typename C>
MK_DEVICE float delta(const Eight<C>& e, int k, int j) {
  const float x = value(e.x[k], j);
  return C::kDeltas ? x - value(e.base, j) : x;
}

// Puts the base in the place of what reaches an upper cut, so that its delta is 0.
template <typename C>
MK_DEVICE bool trim_above(const Lane& lane, int k, Eight<C>* e) {
  bool doubt = false;
  MK_UNROLL for (int j = 0; j < kEight; ++j) {
    const float d = delta(*e, k, j);
    doubt |= infinite(d);
    if (reaches(d, lane.hi)) replace(&e->x[k], e->base, j);
  }
  return doubt;
}

// Counts what reaches the strict cut, in the upper half of `counts`, and marks what is open.
template <typename C>
MK_DEVICE uint32_t guess_apart(const Eight<C>& e, const Lane& lane, int k, uint32_t* counts) {
  uint32_t marks = 0;
  MK_UNROLL for (int j = 0; j < kEight; ++j) {
    const float d = delta(e, k, j);
    if (reaches(d, lane.strict)) *counts += 0x10000u;
    if (reaches(d, lane.wide) && !reaches(d, lane.lo)) marks |= 1u << j;
  }
  return marks;
}

// One element: takes, trims, drops, elects, combines. Says whether the result is in doubt.
template <typename C>
MK_DEVICE bool mix(const QuickArgs& a, const QuickShared<C>& shared, int j, Eight<C>* e,
                   uint32_t* counts) {
  float v[C::K], sum = 0;
  bool doubt = false;
  MK_UNROLL for (int k = 0; k < C::K; ++k) {
    const float d = delta(*e, k, j);
    v[k] = d * a.coef[k];
    if constexpr (C::kDeltas) {
      bool kept = reaches(d, shared.lane[k].lo);
      if constexpr (C::kGuesses) counts[k] += kept;
      if constexpr (C::kDrops) {
        doubt |= infinite(d);
        kept &= kept_by(e->coins[k], j, a.keep_below[k]);
      }
      v[k] = kept ? v[k] : 0.0f;
    }
    sum = sum + v[k];
  }
  float num = sum;
  unsigned set = 0;
  if constexpr (C::kElects) {
    doubt |= infinite(sum);  // of a number that is none nobody need have a trace but this sum
    num = 0;
    MK_UNROLL for (int k = 0; k < C::K; ++k) {
      const bool in = agrees(v[k], sum);
      num = in ? num + v[k] : num;
      set = in ? set + (1u << k) : set;
    }
  }
  if (a.divides) {
    doubt |= rank_of(num) < kLeastRank;
    num = divide(num, shared.quotient[set]);
  }
  const float scale = static_cast<float>(a.pass.scale);
  e->out[j] = C::kDeltas ? finish(value(e->base, j), num, scale) : num;
  return doubt | reaches(e->out[j], a.limit);
}

template <typename Out, typename C>
MK_DEVICE void store_out(const Eight<C>& e, void* out, int64_t i) {
  Packed<Out> packed;
  MK_UNROLL for (int j = 0; j < kEight; ++j) {
    Out rounded;
    round_to(e.out[j], rounded);
    put(rounded, &packed, j);
  }
  store_packed(packed, out, i);
}

template <typename C>
struct Quick {
  static constexpr int kResident = 2;
  using Args = QuickArgs;
  using Shared = QuickShared<C>;

  MK_MEMBER void before(const Args& a, int64_t block, int thread, Shared* shared) {
    set_up<C>(a, block, thread, shared);
  }

  MK_MEMBER void main(const Args& a, int64_t block, int thread, Shared* shared) {
    if (shared->odd || any(shared->crooked)) {
      shared->doubt = 1;
      return;
    }
    const int64_t* row = row_of(a.pass, shared->tile);
    const int64_t begin = (block - row[kFirst]) * kSpan, numel = row[kNumel];
    uint32_t counts[C::K] = {};  // of the given and, in the upper half, of the strict cut
    bool doubt = false;
    MK_ROLLED for (int turn = 0; turn < kTurns; ++turn) {
      const int64_t i = begin + (turn * kThreads + thread) * kEight;
      if (i >= numel) break;
      doubt |= eight(a, *shared, row, i, counts);
    }
    if (doubt) shared->doubt = 1;
    if constexpr (C::kGuesses) add_counts(counts, shared);
  }

  MK_MEMBER void after(const Args& a, int64_t block, int thread, Shared* shared) {
    if (thread == 0) a.pass.doubts[block] = shared->doubt;
    if (C::kGuesses && !shared->doubt && thread < 2 * C::K) {
      const int k = thread / 2, which = thread % 2;
      add_to(a.pass.kept + (shared->tile * C::K + k) * 4 + which, shared->tally[k][which]);
    }
  }

 private:
  MK_MEMBER void add_counts(const uint32_t* counts, Shared* shared) {
    MK_UNROLL for (int k = 0; k < C::K; ++k) {
      const uint32_t given = counts[k] & 0xffffu;
      add_warp(&shared->tally[k][0], shared->apart[k] ? counts[k] >> 16 : given);
      add_warp(&shared->tally[k][1], given);
    }
  }

  MK_MEMBER bool eight(const Args& a, const Shared& shared, const int64_t* row, int64_t i,
                       uint32_t* counts) {
    Eight<C> e;
    if constexpr (C::kDeltas) e.base = load_packed<typename C::In>(address(row[kBase]), i);
    MK_UNROLL for (int k = 0; k < C::K; ++k) {
      e.x[k] = load_packed<typename C::In>(shared.lane[k].data, i);
    }
    if constexpr (C::kDrops) {
      const uint64_t block = static_cast<uint64_t>(row[kOffset] + i) / kEight;
      const uint32_t name = static_cast<uint32_t>(row[kNameHash]);
      MK_UNROLL for (int k = 0; k < C::K; ++k) e.coins[k] = coins_of(a, k, block, name);
    }
    bool doubt = false;
    if constexpr (C::kDeltas && !C::kGuesses) {
      MK_UNROLL for (int k = 0; k < C::K; ++k) {
        if (shared.between[k]) doubt |= trim_above(shared.lane[k], k, &e);
      }
    }
    if constexpr (C::kGuesses) {
      uint32_t marks = 0;
      MK_UNROLL for (int k = 0; k < C::K; ++k) {
        if (shared.apart[k]) marks |= guess_apart(e, shared.lane[k], k, &counts[k]);
      }
      static_cast<uint8_t*>(address(row[kMarks]))[i / kEight] = static_cast<uint8_t>(marks);
    }
    MK_UNROLL for (int j = 0; j < kEight; ++j) doubt |= mix(a, shared, j, &e, counts);
    if (!a.pass.merges) return false;
    store(a.pass, e, address(row[kOut]), i);
    return doubt;
  }

  MK_MEMBER void store(const Pass& p, const Eight<C>& e, void* out, int64_t i) {
    switch (p.out) {
      case DType::bf16: return store_out<BFloat16>(e, out, i);
      case DType::f16: return store_out<Float16>(e, out, i);
      default: return store_out<float>(e, out, i);
    }
  }
};

}  // namespace mergekern
