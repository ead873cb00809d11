// Functions of each element that are methods of their own, block by block. Their meaning, and with
// it the order of every product and sum, stands in mergekern/methods/elementwise.py.
#pragma once
#include "cpu/blocks.h"
#include "cpu/loops.h"
#include "cpu/scratch.h"

namespace mergekern {
namespace MK_ISA {
namespace {

template <typename Work>
MK_HD Work absolute(Work x) {
  return bit_cast<Work>(magnitude(x));
}

// NaN stays NaN, and -0 as the bound 0.
template <typename Work>
MK_HD Work clamped(Work x, Work low, Work high) {
  const Work raised = x < low ? low : x;
  return raised > high ? high : raised;
}

// out = w x + (1 - w) base, w = clamp(t / max(|base - x|, nearest), 0, 1)
template <typename Work>
void near_swap_block(Work t, Work nearest, const Work* __restrict__ base,
                     const Work* __restrict__ x, Work* __restrict__ out, int n) {
  for (int i = 0; i < n; ++i) {
    const Work distance = absolute(base[i] - x[i]);
    const Work inverse = 1 / (distance < nearest ? nearest : distance);
    const Work w = clamped(inverse * t, Work(0), Work(1));
    // What a function returns is rounded as a sum of one, in which -0 becomes 0.
    out[i] = Work(0) + (w * x[i] + (1 - w) * base[i]);
  }
}

template <typename Work>
void near_swap(const Elementwise& f, const Tile& t, int64_t begin, int64_t end, void* out,
               DType out_dtype, Findings* found) {
  const Scratch<Work> scratch(3);
  Work *base = scratch[0], *x = scratch[1], *merged = scratch[2];
  const Expert& e = t.experts[0];
  const Work reach = static_cast<Work>(f.t), nearest = static_cast<Work>(f.epsilon);
  for (int64_t at = begin; at < end; at += kStep) {
    const int n = static_cast<int>(end - at < kStep ? end - at : kStep);
    if (!widen_block(t.base, t.base_dtype, at, base, n)) found->non_finite[0] = 1;
    if (!widen_block(e.data, e.dtype, at, x, n)) found->non_finite[1] = 1;
    near_swap_block(reach, nearest, base, x, merged, n);
    if (!round_block(merged, out, out_dtype, at, n)) found->overflow = true;
  }
}

// Adds 1 where a delta counts as a change.
template <typename Work>
void count_changes(Work epsilon, const Work* __restrict__ d, Work* __restrict__ count, int n) {
  for (int i = 0; i < n; ++i) count[i] = count[i] + (absolute(d[i]) > epsilon ? Work(1) : Work(0));
}

// Adds a delta where it counts as a change, times its share, or `alone` where that is all.
template <typename Work>
void add_change(Work epsilon, Work alone, const Work* __restrict__ d,
                const Work* __restrict__ share, Work* __restrict__ sum, int n) {
  for (int i = 0; i < n; ++i) {
    const Work part = d[i] * (share[i] == 1 ? alone : share[i]);
    sum[i] = sum[i] + (absolute(d[i]) > epsilon ? part : Work(0));
  }
}

// out = base + the mean of what counts as a change; the coef of an expert is the factor of what it
// alone changed.
template <typename Work>
void overlap_mean(const Elementwise& f, const Tile& t, int64_t begin, int64_t end, void* out,
                  DType out_dtype, Findings* found) {
  const Scratch<Work> scratch(3 + t.count);
  Work *base = scratch[0], *share = scratch[1], *sum = scratch[2];
  const Work epsilon = static_cast<Work>(f.epsilon);
  for (int64_t at = begin; at < end; at += kStep) {
    const int n = static_cast<int>(end - at < kStep ? end - at : kStep);
    if (!widen_block(t.base, t.base_dtype, at, base, n)) found->non_finite[0] = 1;
    clear(share, n);
    clear(sum, n);
    for (int k = 0; k < t.count; ++k) {
      Work* d = scratch[3 + k];
      if (!delta_block<false>(t.experts[k], at, base, d, n, 0, 0)) found->non_finite[1 + k] = 1;
      count_changes(epsilon, d, share, n);
    }
    for (int i = 0; i < n; ++i) share[i] = 1 / (share[i] < 1 ? Work(1) : share[i]);
    for (int k = 0; k < t.count; ++k) {
      add_change(epsilon, static_cast<Work>(t.experts[k].coef), scratch[3 + k], share, sum, n);
    }
    for (int i = 0; i < n; ++i) sum[i] = base[i] + sum[i];
    if (!round_block(sum, out, out_dtype, at, n)) found->overflow = true;
  }
}

// Adds a delta, times its weight, to the sum of all.
template <typename Work>
void add_weighted(Work weight, Work* __restrict__ d, Work* __restrict__ total, int n) {
  for (int i = 0; i < n; ++i) {
    const Work v = d[i] * weight;
    d[i] = v;
    total[i] = total[i] + v;
  }
}

// Adds 1 where a value is large against the sum of the others.
template <typename Work>
void count_masks(Work strength, const Work* __restrict__ v, const Work* __restrict__ total,
                 Work* __restrict__ masks, int n) {
  for (int i = 0; i < n; ++i) {
    const bool masked = absolute(v[i]) > absolute(total[i] - v[i]) * strength;
    masks[i] = masks[i] + (masked ? Work(1) : Work(0));
  }
}

// out = base + scale total where there are enough masks, in a sum of one as in near_swap_block
template <typename Work>
void consensus_block(Work least, Work scale, const Work* __restrict__ base,
                     const Work* __restrict__ masks, Work* __restrict__ total, int n) {
  for (int i = 0; i < n; ++i) {
    const Work kept = masks[i] >= least ? total[i] : Work(0);
    total[i] = Work(0) + (base[i] + kept * scale);
  }
}

// The coef of an expert is the weight of its delta, its share the strength of its mask.
template <typename Work>
void consensus(const Elementwise& f, const Tile& t, int64_t begin, int64_t end, void* out,
               DType out_dtype, Findings* found) {
  const Scratch<Work> scratch(3 + t.count);
  Work *base = scratch[0], *total = scratch[1], *masks = scratch[2];
  const Work least = static_cast<Work>(f.epsilon), scale = static_cast<Work>(f.t);
  for (int64_t at = begin; at < end; at += kStep) {
    const int n = static_cast<int>(end - at < kStep ? end - at : kStep);
    if (!widen_block(t.base, t.base_dtype, at, base, n)) found->non_finite[0] = 1;
    clear(total, n);
    clear(masks, n);
    for (int k = 0; k < t.count; ++k) {
      const Expert& e = t.experts[k];
      if (!delta_block<false>(e, at, base, scratch[3 + k], n, 0, 0)) found->non_finite[1 + k] = 1;
      add_weighted(static_cast<Work>(e.coef), scratch[3 + k], total, n);
    }
    for (int k = 0; k < t.count; ++k) {
      count_masks(static_cast<Work>(t.experts[k].share), scratch[3 + k], total, masks, n);
    }
    consensus_block(least, scale, base, masks, total, n);
    if (!round_block(total, out, out_dtype, at, n)) found->overflow = true;
  }
}

// Adds a model's elements, each times its importance, and the importances.
template <typename Work>
void add_important(Work epsilon, Work weight, const Work* __restrict__ x,
                   const Work* __restrict__ fisher, Work* __restrict__ sum,
                   Work* __restrict__ total, int n) {
  for (int i = 0; i < n; ++i) {
    const Work importance = (fisher[i] + epsilon) * weight;
    sum[i] = sum[i] + importance * x[i];
    total[i] = total[i] + importance;
  }
}

// out = sum / total. The second half of the experts are the diagonals of the first; the coef of an
// expert is its weight.
template <typename Work>
void fisher(const Elementwise& f, const Tile& t, int64_t begin, int64_t end, void* out,
            DType out_dtype, Findings* found) {
  const Scratch<Work> scratch(4);
  Work *x = scratch[0], *diagonal = scratch[1], *sum = scratch[2], *total = scratch[3];
  const Work epsilon = static_cast<Work>(f.epsilon);
  const int models = t.count / 2;
  for (int64_t at = begin; at < end; at += kStep) {
    const int n = static_cast<int>(end - at < kStep ? end - at : kStep);
    clear(sum, n);
    clear(total, n);
    for (int k = 0; k < models; ++k) {
      const Expert &e = t.experts[k], &d = t.experts[models + k];
      if (!widen_block(e.data, e.dtype, at, x, n)) found->non_finite[1 + k] = 1;
      if (!widen_block(d.data, d.dtype, at, diagonal, n)) found->non_finite[1 + models + k] = 1;
      add_important(epsilon, static_cast<Work>(e.coef), x, diagonal, sum, total, n);
    }
    for (int i = 0; i < n; ++i) sum[i] = Work(0) + sum[i] / total[i];
    if (!round_block(sum, out, out_dtype, at, n)) found->overflow = true;
  }
}

// Adds a delta, times its weight, where its mask is set, and 1 to how many are.
template <typename Work>
void add_masked(Work weight, const Work* __restrict__ d, const Work* __restrict__ mask,
                Work* __restrict__ sum, Work* __restrict__ masks, int n) {
  for (int i = 0; i < n; ++i) {
    const bool masked = mask[i] != 0;
    const Work v = d[i] * weight;
    sum[i] = sum[i] + (masked ? v : Work(0));
    masks[i] = masks[i] + (masked ? Work(1) : Work(0));
  }
}

// out = base + scale sum / masks, in a sum of one as in near_swap_block
template <typename Work>
void stitch_block(Work scale, const Work* __restrict__ base, const Work* __restrict__ masks,
                  Work* __restrict__ sum, int n) {
  for (int i = 0; i < n; ++i) {
    const Work mean = sum[i] / (masks[i] < 1 ? Work(1) : masks[i]);
    sum[i] = Work(0) + (base[i] + mean * scale);
  }
}

// The second half of the experts are the masks of the first; the coef of an expert is the weight of
// its delta.
template <typename Work>
void stitch(const Elementwise& f, const Tile& t, int64_t begin, int64_t end, void* out,
            DType out_dtype, Findings* found) {
  const Scratch<Work> scratch(5);
  Work *base = scratch[0], *d = scratch[1], *mask = scratch[2], *sum = scratch[3];
  Work* masks = scratch[4];
  const int models = t.count / 2;
  for (int64_t at = begin; at < end; at += kStep) {
    const int n = static_cast<int>(end - at < kStep ? end - at : kStep);
    if (!widen_block(t.base, t.base_dtype, at, base, n)) found->non_finite[0] = 1;
    clear(sum, n);
    clear(masks, n);
    for (int k = 0; k < models; ++k) {
      const Expert &e = t.experts[k], &m = t.experts[models + k];
      if (!delta_block<false>(e, at, base, d, n, 0, 0)) found->non_finite[1 + k] = 1;
      if (!widen_block(m.data, m.dtype, at, mask, n)) found->non_finite[1 + models + k] = 1;
      add_masked(static_cast<Work>(e.coef), d, mask, sum, masks, n);
    }
    stitch_block(static_cast<Work>(f.t), base, masks, sum, n);
    if (!round_block(sum, out, out_dtype, at, n)) found->overflow = true;
  }
}

// The factor of each element's row.
template <typename Work>
void spread_rows(const Elementwise& f, int64_t element, Work* factor, int n) {
  int64_t row = element / f.width;
  for (int i = 0; i < n; ++row) {
    const int64_t left = (row + 1) * f.width - (element + i);
    const int stop = left < n - i ? i + static_cast<int>(left) : n;
    const Work value = static_cast<Work>(f.rows[row]);
    for (; i < stop; ++i) factor[i] = value;
  }
}

// out = |d| factor: how much a delta d matters
template <typename Work>
void importance_block(const Work* __restrict__ d, const Work* __restrict__ factor,
                      Work* __restrict__ out, int n) {
  for (int i = 0; i < n; ++i) out[i] = absolute(d[i]) * factor[i];
}

// out = base + d where d matters enough, in a sum of one as in near_swap_block
template <typename Work>
void fusion_block(Work threshold, const Work* __restrict__ base, const Work* __restrict__ d,
                  const Work* __restrict__ factor, Work* __restrict__ out, int n) {
  for (int i = 0; i < n; ++i) {
    const bool matters = absolute(d[i]) * factor[i] >= threshold;
    out[i] = Work(0) + (base[i] + (matters ? d[i] : Work(0)));
  }
}

template <typename Work>
void fusion(const Elementwise& f, const Tile& t, int64_t begin, int64_t end, void* out,
            DType out_dtype, Findings* found) {
  const Scratch<Work> scratch(4);
  Work *base = scratch[0], *d = scratch[1], *factor = scratch[2], *merged = scratch[3];
  const Work threshold = static_cast<Work>(f.epsilon);
  for (int64_t at = begin; at < end; at += kStep) {
    const int n = static_cast<int>(end - at < kStep ? end - at : kStep);
    if (!widen_block(t.base, t.base_dtype, at, base, n)) found->non_finite[0] = 1;
    if (!delta_block<false>(t.experts[0], at, base, d, n, 0, 0)) found->non_finite[1] = 1;
    spread_rows(f, t.offset + at, factor, n);
    if (f.formula == Formula::importance) {
      importance_block(d, factor, merged, n);
    } else {
      fusion_block(threshold, base, d, factor, merged, n);
    }
    if (!round_block(merged, out, out_dtype, at, n)) found->overflow = true;
  }
}

// Adds to counts, [2, K], where a delta counts as a change: along with others, and by itself.
template <typename Work>
void overlaps(const Tile& t, double least, int64_t begin, int64_t end, int64_t* counts) {
  const Scratch<Work> scratch(2 + t.count);
  Work *base = scratch[0], *count = scratch[1];
  const Work epsilon = static_cast<Work>(least);
  for (int64_t at = begin; at < end; at += kStep) {
    const int n = static_cast<int>(end - at < kStep ? end - at : kStep);
    widen_block(t.base, t.base_dtype, at, base, n);
    clear(count, n);
    for (int k = 0; k < t.count; ++k) {
      delta_block<false>(t.experts[k], at, base, scratch[2 + k], n, 0, 0);
      count_changes(epsilon, scratch[2 + k], count, n);
    }
    for (int k = 0; k < t.count; ++k) {
      const Work* d = scratch[2 + k];
      int changes = 0, alone = 0;
      for (int i = 0; i < n; ++i) {
        const bool active = absolute(d[i]) > epsilon;
        changes += active ? 1 : 0;
        alone += active & (count[i] == 1) ? 1 : 0;
      }
      counts[k] += changes - alone;
      counts[t.count + k] += alone;
    }
  }
}

template <typename Work>
void elementwise(const Elementwise& f, const Tile& t, int64_t begin, int64_t end, void* out,
                 DType out_dtype, Findings* found) {
  switch (f.formula) {
    case Formula::near_swap: return near_swap<Work>(f, t, begin, end, out, out_dtype, found);
    case Formula::overlap_mean: return overlap_mean<Work>(f, t, begin, end, out, out_dtype, found);
    case Formula::consensus: return consensus<Work>(f, t, begin, end, out, out_dtype, found);
    case Formula::fisher: return fisher<Work>(f, t, begin, end, out, out_dtype, found);
    case Formula::stitch: return stitch<Work>(f, t, begin, end, out, out_dtype, found);
    case Formula::importance:
    case Formula::fusion: return fusion<Work>(f, t, begin, end, out, out_dtype, found);
  }
}

}  // namespace
}  // namespace MK_ISA
}  // namespace mergekern
