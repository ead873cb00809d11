// Loops over one block: at most kStep elements that stay in the first-level cache. Plain C++, so that
// the compiler vectorises them for each instruction set; __restrict__ because no two arrays overlap.
#pragma once
#include <initializer_list>

#include "element.h"
#include "fused_op.h"
#include "philox.h"

namespace mergekern {
namespace MK_ISA {

constexpr int kStep = 512;
constexpr int kLanes = 16;  // partial sums of a reduction: element i adds to lane i mod 16

// Checkpoints may place a tensor at any byte.
template <typename T>
struct __attribute__((packed, may_alias)) Unaligned {
  T value;
};

template <typename T>
static inline const Unaligned<T>* at(const void* data, int64_t index) {
  return static_cast<const Unaligned<T>*>(data) + index;
}

// Calls f with a value of the C++ type of `dtype`.
template <typename F>
static inline void with_type(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f64: return f(double());
    case DType::f32: return f(float());
    case DType::f16: return f(Float16());
    case DType::bf16: return f(BFloat16());
  }
}

// w = x, widened; false if one is NaN or Inf
template <typename T, typename Work>
static inline bool widen_block(const Unaligned<T>* __restrict__ x, Work* __restrict__ w, int n) {
  uint32_t bad = 0;
  for (int i = 0; i < n; ++i) {
    const T raw = x[i].value;
    w[i] = static_cast<Work>(widen(raw));
    bad |= finite(raw) ? 0u : 1u;
  }
  return bad == 0;
}

template <typename Work>
static inline bool widen_block(const void* data, DType dtype, int64_t index, Work* w, int n) {
  bool ok = true;
  with_type(dtype, [&](auto type) { ok = widen_block(at<decltype(type)>(data, index), w, n); });
  return ok;
}

// d = x - b, trimmed to [lo, hi); false if an x is NaN or Inf
template <bool kTrim, typename T, typename Work>
static inline bool delta_block(const Unaligned<T>* __restrict__ x, const Work* __restrict__ b,
                               Work* __restrict__ d, int n, typename Bits<Work>::type lo,
                               typename Bits<Work>::type hi) {
  uint32_t bad = 0;
  for (int i = 0; i < n; ++i) {
    const T raw = x[i].value;
    const Work delta = static_cast<Work>(widen(raw)) - b[i];
    d[i] = kTrim ? trim(delta, lo, hi) : delta;
    bad |= finite(raw) ? 0u : 1u;
  }
  return bad == 0;
}

template <bool kTrim, typename Work>
static inline bool delta_block(const Expert& e, int64_t index, const Work* b, Work* d, int n,
                               uint64_t lo, uint64_t hi) {
  using Cut = typename Bits<Work>::type;
  const uint64_t most = Bits<Work>::abs;
  const Cut low = static_cast<Cut>(lo < most ? lo : most);
  const Cut high = static_cast<Cut>(hi < most ? hi : most);
  bool ok = true;
  with_type(e.dtype, [&](auto type) {
    ok = delta_block<kTrim>(at<decltype(type)>(e.data, index), b, d, n, low, high);
  });
  return ok;
}

// The deltas of one expert. `index` counts within the tile, `element` within the tensor; the cuts
// of a window move where its last indices lie, so a block falls into at most three runs.
template <typename Work>
static inline bool trimmed_block(const Expert& e, int64_t index, int64_t element, const Work* b,
                                 Work* d, int n) {
  if (!e.trim) return delta_block<false>(e, index, b, d, n, 0, 0);
  const Window& w = e.window;
  bool ok = true;
  for (int i = 0; i < n;) {
    const int64_t here = element + i;
    int run = n - i;
    for (const int64_t last : {w.lo_last, w.hi_last}) {
      if (here <= last && last - here < run - 1) run = static_cast<int>(last - here + 1);
    }
    const uint64_t lo = w.lo + (here > w.lo_last), hi = w.hi + (here > w.hi_last);
    ok &= delta_block<true>(e, index + i, b + i, d + i, run, lo, hi);
    i += run;
  }
  return ok;
}

// out[4 * j + w] = word w of the coins of block first + j, for one half
static inline void coin_block(uint64_t first, int blocks, uint32_t expert, uint32_t half,
                              const FusedOp& op, uint32_t* __restrict__ out) {
  for (int j = 0; j < blocks; ++j) {
    const Words4 words = coin_half(first + j, expert, half, op.name_hash, op.seed);
    for (int w = 0; w < 4; ++w) out[4 * j + w] = words.w[w];
  }
}

// d = 0 where the coin falls at or beyond keep_below. The low halves of the numbers are made only
// for blocks of eight in which a high half equals the bound's.
template <typename Work>
static inline void drop_block(const Expert& e, const FusedOp& op, int64_t element, Work* d, int n) {
  uint32_t words[kStep / 2 + 4];
  uint16_t high[kStep + 8];
  const int skip = static_cast<int>(element % 8);
  const uint64_t first = static_cast<uint64_t>(element / 8);
  const int blocks = (skip + n + 7) / 8;
  coin_block(first, blocks, e.index, 0, op, words);
  for (int j = 0; j < 4 * blocks; ++j) {
    high[2 * j] = static_cast<uint16_t>(words[j]);
    high[2 * j + 1] = static_cast<uint16_t>(words[j] >> 16);
  }
  const uint16_t bound = static_cast<uint16_t>(e.keep_below >> 16);
  const uint16_t low_bound = static_cast<uint16_t>(e.keep_below);
  uint32_t undecided = 0;
  for (int i = 0; i < n; ++i) undecided |= high[skip + i] == bound ? 1u : 0u;
  if (undecided) {
    for (int i = 0; i < n; ++i) {
      if (high[skip + i] != bound) continue;
      const int at = skip + i;
      const Words4 low = coin_half(first + at / 8, e.index, 1, op.name_hash, op.seed);
      if (coin_lane(low, at % 8) >= low_bound) d[i] = 0;
    }
    for (int i = 0; i < n; ++i) d[i] = high[skip + i] <= bound ? d[i] : Work(0);
  } else {
    for (int i = 0; i < n; ++i) d[i] = high[skip + i] < bound ? d[i] : Work(0);
  }
}

template <typename T, typename Work>
static inline bool round_block(const Work* __restrict__ w, Unaligned<T>* __restrict__ out, int n) {
  uint32_t bad = 0;
  for (int i = 0; i < n; ++i) {
    T rounded;
    round_to(w[i], rounded);
    bad |= finite(rounded) ? 0u : 1u;
    out[i].value = rounded;
  }
  return bad == 0;
}

template <typename Work>
static inline bool round_block(const Work* w, void* data, DType dtype, int64_t index, int n) {
  bool ok = true;
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    ok = round_block(w, static_cast<Unaligned<T>*>(data) + index, n);
  });
  return ok;
}

}  // namespace MK_ISA
}  // namespace mergekern
