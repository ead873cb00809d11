// task_vector for the common case: base, at most eight experts and the output all bf16, election by
// mass on the values or none. One loop keeps all of an element in registers, which blocks.h's one
// loop per step cannot; the arithmetic is the same element.h, in the same order.
#pragma once
#include "cpu/blocks.h"

namespace mergekern {
namespace MK_ISA {

constexpr int kFew = 8;

struct FewInputs {
  const Unaligned<BFloat16>* base;
  const Unaligned<BFloat16>* x[kFew];
  uint32_t lo[kFew], hi[kFew];
  float coef[kFew], share[kFew];
  const uint16_t* kept[kFew];  // [kStep] masks, with kDrop
  float scale;
};

// Returns the largest magnitude seen among inputs and outputs: Inf's or more means trouble. It is
// taken of the 16 bits, since that is half the work. kBand: windows have an upper cut too.
template <int K, bool kBand, bool kDrop, bool kElect, bool kMean>
static uint16_t few_run(const FewInputs& in, Unaligned<BFloat16>* out, int n) {
  const Unaligned<BFloat16>*const base_at = in.base, *x[K];
  const uint16_t* kept[K];
  uint32_t lo[K], hi[K];
  float coef[K], share[K];
  for (int k = 0; k < K; ++k) {
    x[k] = in.x[k], kept[k] = in.kept[k], lo[k] = in.lo[k], hi[k] = in.hi[k];
    coef[k] = in.coef[k], share[k] = in.share[k];
  }
  const float scale = in.scale;
  uint16_t largest = 0;
#pragma GCC ivdep
  for (int i = 0; i < n; ++i) {
    const float base = widen(base_at[i].value);
    largest = most(largest, magnitude(base_at[i].value));
    float v[K], sum = 0, num = 0, den = 0;
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k) {
      const float wide = widen(x[k][i].value);
      largest = most(largest, magnitude(x[k][i].value));
      float d = wide - base;
      d = kBand ? trim(d, lo[k], hi[k]) : trim(d, lo[k]);
      if (kDrop) d = kept[k][i] ? d : 0.0f;
      v[k] = d * coef[k];
      if (kElect) sum = sum + v[k];
    }
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k) {
      const bool agree = !kElect || agrees(v[k], sum);
      num = num + (agree ? v[k] : 0.0f);
      if (kMean) den = den + (agree ? share[k] : 0.0f);
    }
    BFloat16 rounded;
    round_to(finish(base, kMean ? num / guarded(den) : num, scale), rounded);
    out[i].value = rounded;
    largest = most(largest, magnitude(rounded));
  }
  return largest;
}

using FewRun = uint16_t (*)(const FewInputs&, Unaligned<BFloat16>*, int);

template <int K, bool kBand>
static FewRun few_of(bool drop, bool elect, bool mean) {
  if (drop) {
    if (elect)
      return mean ? few_run<K, kBand, true, true, true> : few_run<K, kBand, true, true, false>;
    return few_run<K, kBand, true, false, false>;
  }
  if (elect)
    return mean ? few_run<K, kBand, false, true, true> : few_run<K, kBand, false, true, false>;
  return few_run<K, kBand, false, false, false>;
}

template <int K>
static FewRun few_of(bool band, bool drop, bool elect, bool mean) {
  return band ? few_of<K, true>(drop, elect, mean) : few_of<K, false>(drop, elect, mean);
}

// The loop for this op, or null where it is not the common case.
static inline FewRun few_loop(const FusedOp& op, const Tile& t, DType out_dtype) {
  const bool elect = op.elect == Elect::mass, mean = op.combine == Combine::mean;
  bool common = op.rule == Rule::task_vector && op.divisor == 1 && op.ballots_are_values;
  common = common && op.combine != Combine::max && op.elect != Elect::count && (elect || !mean);
  common = common && t.base_dtype == DType::bf16 && out_dtype == DType::bf16 && t.count <= kFew;
  bool drop = false, band = false;
  for (int k = 0; k < t.count; ++k) {
    common = common && t.experts[k].dtype == DType::bf16;
    drop |= t.experts[k].drop;
    band |= t.experts[k].window.hi < Bits<float>::abs;
  }
  if (!common) return nullptr;
  switch (t.count) {
    case 1: return few_of<1>(band, drop, elect, mean);
    case 2: return few_of<2>(band, drop, elect, mean);
    case 3: return few_of<3>(band, drop, elect, mean);
    case 4: return few_of<4>(band, drop, elect, mean);
    case 5: return few_of<5>(band, drop, elect, mean);
    case 6: return few_of<6>(band, drop, elect, mean);
    case 7: return few_of<7>(band, drop, elect, mean);
    case 8: return few_of<8>(band, drop, elect, mean);
  }
  return nullptr;
}

// Elements [begin, end) of the tile; false when an input or an output is NaN or Inf.
static inline bool few(FewRun run, const FusedOp& op, const Tile& t, int64_t begin, int64_t end,
                       void* out) {
  uint16_t kept[kFew][kStep];
  FewInputs in = {};
  in.scale = static_cast<float>(op.scale);
  for (int k = 0; k < t.count; ++k) {
    in.coef[k] = static_cast<float>(t.experts[k].coef);
    in.share[k] = static_cast<float>(t.experts[k].share);
  }
  uint16_t largest = 0;
  for (int64_t at_ = begin; at_ < end;) {
    const int64_t here = t.offset + at_;
    int n = static_cast<int>(end - at_ < kStep ? end - at_ : kStep);
    for (int k = 0; k < t.count; ++k) n = same_cuts(t.experts[k].window, here, n);
    in.base = at<BFloat16>(t.base, at_);
    for (int k = 0; k < t.count; ++k) {
      const Expert& e = t.experts[k];
      in.x[k] = at<BFloat16>(e.data, at_);
      in.lo[k] = low_cut<float>(e.window, here);
      in.hi[k] = high_cut<float>(e.window, here);
      in.kept[k] = kept[k];
      if (e.drop) {
        keep_block(e, op, here, kept[k], n);
      } else {
        for (int i = 0; i < n; ++i) kept[k][i] = 0xffff;
      }
    }
    largest = most(largest, run(in, static_cast<Unaligned<BFloat16>*>(out) + at_, n));
    at_ += n;
  }
  return largest < kInfinityBF16;
}

}  // namespace MK_ISA
}  // namespace mergekern
