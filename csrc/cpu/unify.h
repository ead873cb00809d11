// One task vector that stands for many, and of each a mask of where it agrees (EMR-Merging);
// mergekern/fused.py gives the meaning.
#pragma once
#include <algorithm>
#include <vector>

#include "cpu/packed.h"
#include "cpu/reduce.h"

namespace mergekern {
namespace MK_ISA {
namespace {

// Adds a delta to the sum of all, and to the largest and the smallest of them.
template <typename Work>
void take_delta(const Work* __restrict__ d, Work* __restrict__ total, Work* __restrict__ high,
                Work* __restrict__ low, int n) {
  for (int i = 0; i < n; ++i) {
    total[i] = total[i] + d[i];
    high[i] = d[i] > high[i] ? d[i] : high[i];
    low[i] = d[i] < low[i] ? d[i] : low[i];
  }
}

// The largest of the side that the sum is on
template <typename Work>
void elect_block(const Work* __restrict__ total, const Work* __restrict__ high,
                 const Work* __restrict__ low, Work* __restrict__ unified, int n) {
  for (int i = 0; i < n; ++i) {
    const Work negative = total[i] < 0 ? low[i] : Work(0);
    unified[i] = total[i] > 0 ? high[i] : negative;
  }
}

// kept[i] = 0xffff where a delta has the sign of what stands for it, 0 elsewhere and behind
template <typename Work>
void agree_block(const Work* __restrict__ d, const Work* __restrict__ unified,
                 uint16_t* __restrict__ kept, int n) {
  for (int i = 0; i < n; ++i) {
    const bool both = (d[i] > 0) & (unified[i] > 0), neither = (d[i] < 0) & (unified[i] < 0);
    kept[i] = both | neither ? 0xffff : 0;
  }
  for (int i = n; i < n + kLanesOf16 && i < kStep + kLanesOf16; ++i) kept[i] = 0;
}

// One chunk of kChunk elements or what is left of one, which is one record of the sums.
template <typename Work>
class Unifying {
 public:
  Unifying(const Unify& u, const Tile& t)
      : u_(u),
        t_(t),
        scratch_(7 + t.count),
        lanes_((2 * t.count * kLanes + kStep - 1) / kStep),
        sums_(2 * static_cast<size_t>(t.count)) {}

  void chunk(int64_t begin, int64_t end, Findings* found) {
    std::fill(sums_.begin(), sums_.end(), 0.0);
    for (int64_t block = begin; block < end; block += kBlock) {
      const int64_t stop = end - block < kBlock ? end : block + kBlock;
      clear(lanes_.data, static_cast<int>(sums_.size()) * kLanes);
      for (int64_t at = block; at < stop; at += kStep) {
        step(at, static_cast<int>(stop - at < kStep ? stop - at : kStep), found);
      }
      for (size_t i = 0; i < sums_.size(); ++i) {
        sums_[i] = sums_[i] + add_lanes(lanes_.data + i * kLanes);
      }
    }
    if (u_.sums) std::copy(sums_.begin(), sums_.end(), u_.sums + begin / kChunk * sums_.size());
  }

 private:
  void step(int64_t at, int n, Findings* found) {
    Work *base = scratch_[0], *total = scratch_[1], *high = scratch_[2], *low = scratch_[3];
    Work* unified = scratch_[4];
    if (!widen_block(t_.base, t_.base_dtype, at, base, n)) found->non_finite[0] = 1;
    for (Work* each : {total, high, low}) clear(each, n);
    for (int k = 0; k < t_.count; ++k) {
      Work* d = scratch_[7 + k];
      if (!delta_block<false>(t_.experts[k], at, base, d, n, 0, 0)) found->non_finite[1 + k] = 1;
      take_delta(d, total, high, low, n);
    }
    elect_block(total, high, low, unified, n);
    Work* stored = scratch_[5];  // in its own dtype, which may be twice as wide
    if (!round_block(unified, stored, u_.stored, 0, n)) found->overflow = true;
    widen_block(stored, u_.stored, 0, unified, n);
    if (u_.out) {
      with_type(u_.stored, [&](auto type) {
        constexpr int64_t size = sizeof(type);
        __builtin_memcpy(static_cast<uint8_t*>(u_.out) + at * size, stored, n * size);
      });
    }
    for (int k = 0; k < t_.count; ++k) {
      if (u_.masks[k] || u_.sums) tell(k, at, n, unified);
    }
  }

  // What is to be known of one expert: where it agrees, and its sums
  void tell(int k, int64_t at, int n, const Work* unified) {
    alignas(64) uint16_t kept[kStep + kLanesOf16];
    agree_block(scratch_[7 + k], unified, kept, n);
    if (u_.masks[k]) pack_block(kept, u_.masks[k] + at / 8, n);
    if (!u_.sums) return;
    double* lane = lanes_.data + static_cast<int64_t>(2) * k * kLanes;
    add_magnitudes(scratch_[7 + k], n, lane);
    Work* left = scratch_[0];  // the base has been taken
    std::copy(unified, unified + n, left);
    keep_marked(kept, left, n);
    add_magnitudes(left, n, lane + kLanes);
  }

  const Unify& u_;
  const Tile& t_;
  Scratch<Work> scratch_;
  Scratch<double> lanes_;
  std::vector<double> sums_;
};

template <typename Work>
void unify(const Unify& u, const Tile& t, int64_t begin, int64_t end, Findings* found) {
  Unifying<Work> unifying(u, t);
  for (int64_t chunk = begin; chunk < end; chunk += kChunk) {
    unifying.chunk(chunk, end - chunk < kChunk ? end : chunk + kChunk, found);
  }
}

}  // namespace
}  // namespace MK_ISA
}  // namespace mergekern
