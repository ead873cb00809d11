// Compiled once per instruction set, MK_ISA naming it: the loops over element.h.
#include "cpu/loops.h"

#include <stdlib.h>

#include "cpu/few.h"

#define MK_STRING_(x) #x
#define MK_STRING(x) MK_STRING_(x)

namespace mergekern {
namespace MK_ISA {
namespace {

template <typename Work>
struct Scratch {
  explicit Scratch(int arrays)
      : data(static_cast<Work*>(aligned_alloc(64, sizeof(Work) * kStep * arrays))) {}
  ~Scratch() { free(data); }
  Scratch(const Scratch&) = delete;
  Work* operator[](int array) const { return data + static_cast<int64_t>(kStep) * array; }
  Work* data;
};

// task_vector

// sum of ballots so far, or of their signs; values replace deltas where ballots are values
template <typename Work>
void vote_block(const Expert& e, const FusedOp& op, Work* __restrict__ d, Work* __restrict__ sum,
                int n) {
  const Work coef = static_cast<Work>(e.coef), vote = static_cast<Work>(e.vote);
  if (op.elect == Elect::none) {
    for (int i = 0; i < n; ++i) d[i] = d[i] * coef;
  } else if (op.ballots_are_values && op.elect == Elect::mass) {
    for (int i = 0; i < n; ++i) {
      const Work v = d[i] * coef;
      d[i] = v;
      sum[i] = sum[i] + v;
    }
  } else if (op.ballots_are_values) {
    for (int i = 0; i < n; ++i) {
      const Work v = d[i] * coef;
      d[i] = v;
      sum[i] = sum[i] + sign(v);
    }
  } else if (op.elect == Elect::mass) {
    for (int i = 0; i < n; ++i) sum[i] = sum[i] + d[i] * vote;
  } else {
    for (int i = 0; i < n; ++i) sum[i] = sum[i] + sign(d[i] * vote);
  }
}

// How one expert's values enter the combination; kElected and kSeparate fix its shape.
template <Combine kCombine, bool kElected, bool kSeparate, typename Work>
void combine_block(const Expert& e, const Work* __restrict__ d, const Work* __restrict__ sum,
                   Work* __restrict__ num, Work* __restrict__ den, int n) {
  const Work coef = static_cast<Work>(e.coef), vote = static_cast<Work>(e.vote);
  const Work share = static_cast<Work>(e.share);
  for (int i = 0; i < n; ++i) {
    const Work ballot = kSeparate ? d[i] * vote : d[i];
    const Work value = kSeparate ? d[i] * coef : d[i];
    const bool in = !kElected || agrees(ballot, sum[i]);
    const Work v = in ? value : Work(0);
    if (kCombine == Combine::max) {
      num[i] = larger(num[i], v);
    } else {
      num[i] = num[i] + v;
    }
    if (kCombine == Combine::mean) den[i] = den[i] + (in ? share : Work(0));
  }
}

template <Combine kCombine, typename Work>
void combine_block(const FusedOp& op, const Expert& e, const Work* d, const Work* sum, Work* num,
                   Work* den, int n) {
  if (op.elect == Elect::none) {
    combine_block<kCombine, false, false>(e, d, sum, num, den, n);
  } else if (op.ballots_are_values) {
    combine_block<kCombine, true, false>(e, d, sum, num, den, n);
  } else {
    combine_block<kCombine, true, true>(e, d, sum, num, den, n);
  }
}

template <typename Work>
void combine_block(const FusedOp& op, const Expert& e, const Work* d, const Work* sum, Work* num,
                   Work* den, int n) {
  switch (op.combine) {
    case Combine::sum: return combine_block<Combine::sum>(op, e, d, sum, num, den, n);
    case Combine::mean: return combine_block<Combine::mean>(op, e, d, sum, num, den, n);
    case Combine::max: return combine_block<Combine::max>(op, e, d, sum, num, den, n);
  }
}

template <typename Work>
void finish_block(const FusedOp& op, const Work* __restrict__ base, const Work* __restrict__ den,
                  Work* __restrict__ num, int n) {
  const Work scale = static_cast<Work>(op.scale), divisor = static_cast<Work>(op.divisor);
  if (op.combine == Combine::mean) {
    for (int i = 0; i < n; ++i) num[i] = finish(base[i], num[i] / guarded(den[i]), scale);
  } else if (divisor != 1) {
    for (int i = 0; i < n; ++i) num[i] = finish(base[i], num[i] / divisor, scale);
  } else {
    for (int i = 0; i < n; ++i) num[i] = finish(base[i], num[i], scale);
  }
}

template <typename Work>
void clear(Work* array, int n) {
  for (int i = 0; i < n; ++i) array[i] = 0;
}

template <typename Work>
void task_vector(const FusedOp& op, const Tile& t, int64_t begin, int64_t end, void* out,
                 DType out_dtype, Findings* found) {
  const Scratch<Work> scratch(4 + t.count);
  Work *base = scratch[0], *sum = scratch[1], *num = scratch[2], *den = scratch[3];
  for (int64_t at = begin; at < end; at += kStep) {
    const int n = static_cast<int>(end - at < kStep ? end - at : kStep);
    if (!widen_block(t.base, t.base_dtype, at, base, n)) found->non_finite[0] = 1;
    clear(sum, n);
    clear(num, n);
    clear(den, n);
    for (int k = 0; k < t.count; ++k) {
      const Expert& e = t.experts[k];
      Work* d = scratch[4 + k];
      if (!trimmed_block(e, at, t.offset + at, base, d, n)) found->non_finite[1 + k] = 1;
      if (e.drop) drop_block(e, op, t.offset + at, d, n);
      vote_block(e, op, d, sum, n);
    }
    for (int k = 0; k < t.count; ++k) {
      combine_block(op, t.experts[k], scratch[4 + k], sum, num, den, n);
    }
    finish_block(op, base, den, num, n);
    if (!round_block(num, out, out_dtype, at, n)) found->overflow = true;
  }
}

// linear_combination

template <typename Work>
void linear_combination(const FusedOp& op, const Tile& t, int64_t begin, int64_t end, void* out,
                        DType out_dtype, Findings* found) {
  const Scratch<Work> scratch(2);
  Work *sum = scratch[0], *x = scratch[1];
  const Work divisor = static_cast<Work>(op.divisor);
  for (int64_t at = begin; at < end; at += kStep) {
    const int n = static_cast<int>(end - at < kStep ? end - at : kStep);
    clear(sum, n);
    for (int k = 0; k < t.count; ++k) {
      const Expert& e = t.experts[k];
      const Work coef = static_cast<Work>(e.coef);
      if (!widen_block(e.data, e.dtype, at, x, n)) found->non_finite[1 + k] = 1;
      for (int i = 0; i < n; ++i) sum[i] = sum[i] + x[i] * coef;
    }
    if (divisor != 1) {
      for (int i = 0; i < n; ++i) sum[i] = sum[i] / divisor;
    }
    if (!round_block(sum, out, out_dtype, at, n)) found->overflow = true;
  }
}

template <typename Work>
void fuse(const FusedOp& op, const Tile& t, int64_t begin, int64_t end, void* out, DType out_dtype,
          Findings* found) {
  const FewRun run = sizeof(Work) == sizeof(float) ? few_loop(op, t, out_dtype) : nullptr;
  // Where it meets NaN or Inf, the general loop goes over it again and says which input it was.
  if (run && few(run, op, t, begin, end, out)) return;
  if (op.rule == Rule::linear_combination) {
    linear_combination<Work>(op, t, begin, end, out, out_dtype, found);
  } else {
    task_vector<Work>(op, t, begin, end, out, out_dtype, found);
  }
}

// select: counts against brackets

template <typename Work>
void magnitude_block(const Expert& e, int64_t at, const Work* base, Work* d,
                     typename Bits<Work>::type* __restrict__ m, int n) {
  delta_block<false>(e, at, base, d, n, 0, 0);
  for (int i = 0; i < n; ++i) m[i] = magnitude(d[i]);
}

// The marks are bytes so that eight elements outside the bracket cost one test.
template <typename M>
int count_block(const Bracket& bracket, const M* __restrict__ m, uint8_t* __restrict__ inside,
                int n, Counter* counter) {
  const M low = static_cast<M>(bracket.low);
  const M span = static_cast<M>(bracket.bins << bracket.shift);
  uint32_t hits = 0, above = 0;
  for (int i = 0; i < n; ++i) {
    const bool in = static_cast<M>(m[i] - low) < span;
    inside[i] = in;
    hits += in;
    above += (m[i] >= low) & !in;
  }
  counter->above += above;
  if (hits == 0 || bracket.bins == 1) {
    counter->histogram[0] += hits;
    return static_cast<int>(hits);
  }
  for (int i = 0; i < n; i += 8) {
    uint64_t marks;
    __builtin_memcpy(&marks, inside + i, sizeof(marks));
    if (marks == 0) continue;
    for (int j = i; j < i + 8; ++j) {
      if (inside[j]) ++counter->histogram[(m[j] - low) >> bracket.shift];
    }
  }
  return static_cast<int>(hits);
}

// A bracket of one magnitude, which is what heavy ties make of it: nothing needs to be stored.
template <typename T, typename Work>
int point_block(const Unaligned<T>* __restrict__ x, const Work* __restrict__ base, int n,
                typename Bits<Work>::type point, Counter* counter) {
  typename Bits<Work>::type at_least = 0, beyond = 0;
  for (int i = 0; i < n; ++i) {
    const Work wide = static_cast<Work>(widen(x[i].value));
    const auto m = magnitude(wide - base[i]);
    at_least += m >= point;
    beyond += m > point;
  }
  counter->above += static_cast<int64_t>(beyond);
  counter->histogram[0] += static_cast<int64_t>(at_least - beyond);
  return static_cast<int>(at_least - beyond);
}

template <typename Work>
int point_block(const Expert& e, int64_t at_, const Work* base, int n, uint64_t point,
                Counter* counter) {
  int ties = 0;
  with_type(e.dtype, [&](auto type) {
    ties = point_block(at<decltype(type)>(e.data, at_), base, n,
                       static_cast<typename Bits<Work>::type>(point), counter);
  });
  return ties;
}

template <typename Work>
void count(const Tile& t, int64_t begin, int64_t end, const Bracket* brackets, int count,
           Counter* counters) {
  const Scratch<Work> scratch(3);
  Work *base = scratch[0], *d = scratch[1];
  auto* m = reinterpret_cast<typename Bits<Work>::type*>(scratch[2]);
  uint8_t inside[kStep + 8] = {};
  for (int64_t at = begin; at < end; at += kStep) {
    const int n = static_cast<int>(end - at < kStep ? end - at : kStep);
    widen_block(t.base, t.base_dtype, at, base, n);
    for (int i = n; i < n + 8; ++i) inside[i] = 0;
    for (int q = 0; q < count; ++q) {
      const Expert& e = t.experts[brackets[q].expert];
      int64_t* ties = &counters[q].chunks[at / kChunk];
      if (brackets[q].bins == 1 && brackets[q].shift == 0) {
        *ties += point_block(e, at, base, n, brackets[q].low, &counters[q]);
        continue;
      }
      magnitude_block(e, at, base, d, m, n);
      *ties += count_block(brackets[q], m, inside, n, &counters[q]);
    }
  }
}

template <typename Work>
void magnitudes(const Tile& t, int64_t begin, int64_t end, int expert, int64_t* out) {
  const Scratch<Work> scratch(2);
  for (int64_t at = begin; at < end; at += kStep) {
    const int n = static_cast<int>(end - at < kStep ? end - at : kStep);
    widen_block(t.base, t.base_dtype, at, scratch[0], n);
    delta_block<false>(t.experts[expert], at, scratch[0], scratch[1], n, 0, 0);
    for (int i = 0; i < n; ++i) out[at + i] = static_cast<int64_t>(magnitude(scratch[1][i]));
  }
}

// reduce: sums in fp64 over fixed blocks. Lane i mod 16 takes its elements in order, then the lanes
// are added in order, so that neither threads, tiles nor vector widths change a bit.

double add_lanes(const double* lane) {
  double sum = 0;
  for (int j = 0; j < kLanes; ++j) sum = sum + lane[j];
  return sum;
}

template <typename Work>
void add_magnitudes(const Work* __restrict__ d, int n, double* __restrict__ lane) {
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int j = 0; j < kLanes; ++j) {
      lane[j] = lane[j] + static_cast<double>(bit_cast<Work>(magnitude(d[i + j])));
    }
  }
  for (int j = 0; i + j < n; ++j) {
    lane[j] = lane[j] + static_cast<double>(bit_cast<Work>(magnitude(d[i + j])));
  }
}

template <typename Work>
void add_products(const Work* __restrict__ a, const Work* __restrict__ b, int n,
                  double* __restrict__ lane) {
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int j = 0; j < kLanes; ++j) {
      lane[j] = lane[j] + static_cast<double>(a[i + j]) * static_cast<double>(b[i + j]);
    }
  }
  for (int j = 0; i + j < n; ++j) {
    lane[j] = lane[j] + static_cast<double>(a[i + j]) * static_cast<double>(b[i + j]);
  }
}

template <typename Work>
void masked_sums(const FusedOp& op, const Tile& t, int64_t begin, int64_t end, double* out) {
  const Scratch<Work> scratch(2);
  Work *base = scratch[0], *d = scratch[1];
  for (int64_t block = begin; block < end; block += kBlock) {
    const int64_t stop = end - block < kBlock ? end : block + kBlock;
    double* sums = out + block / kBlock * t.count * 2;
    for (int k = 0; k < t.count; ++k) {
      const Expert& e = t.experts[k];
      double before[kLanes] = {}, after[kLanes] = {};
      for (int64_t at = block; at < stop; at += kStep) {
        const int n = static_cast<int>(stop - at < kStep ? stop - at : kStep);
        widen_block(t.base, t.base_dtype, at, base, n);
        delta_block<false>(e, at, base, d, n, 0, 0);
        add_magnitudes(d, n, before);
        if (e.trim) trimmed_block(e, at, t.offset + at, base, d, n);
        if (e.drop) drop_block(e, op, t.offset + at, d, n);
        add_magnitudes(d, n, after);
      }
      sums[2 * k] = add_lanes(before);
      sums[2 * k + 1] = add_lanes(after);
    }
  }
}

template <typename Work>
void widen_all(const Tile& t, int64_t at, int n, const Scratch<Work>& scratch) {
  if (t.base) widen_block(t.base, t.base_dtype, at, scratch[t.count], n);
  for (int k = 0; k < t.count; ++k) {
    const Expert& e = t.experts[k];
    if (t.base) {
      delta_block<false>(e, at, scratch[t.count], scratch[k], n, 0, 0);
    } else {
      widen_block(e.data, e.dtype, at, scratch[k], n);
    }
  }
}

template <typename Work>
void gram(const Tile& t, int64_t begin, int64_t end, double* out) {
  const int pairs = t.count * (t.count + 1) / 2;
  const Scratch<Work> scratch(t.count + 1);
  const Scratch<double> sums((pairs * kLanes + kStep - 1) / kStep);
  for (int64_t block = begin; block < end; block += kBlock) {
    const int64_t stop = end - block < kBlock ? end : block + kBlock;
    clear(sums.data, pairs * kLanes);
    for (int64_t at = block; at < stop; at += kStep) {
      const int n = static_cast<int>(stop - at < kStep ? stop - at : kStep);
      widen_all(t, at, n, scratch);
      double* lane = sums.data;
      for (int a = 0; a < t.count; ++a) {
        for (int b = 0; b <= a; ++b, lane += kLanes) add_products(scratch[a], scratch[b], n, lane);
      }
    }
    double* matrix = out + block / kBlock * t.count * t.count;
    const double* lane = sums.data;
    for (int a = 0; a < t.count; ++a) {
      for (int b = 0; b <= a; ++b, lane += kLanes) {
        matrix[a * t.count + b] = matrix[b * t.count + a] = add_lanes(lane);
      }
    }
  }
}

}  // namespace

extern const Loops table;
const Loops table = {
    MK_STRING(MK_ISA),
    [](const FusedOp& op, const Tile& t, bool wide, int64_t begin, int64_t end, void* out,
       DType out_dtype, Findings* found) {
      (wide ? fuse<double> : fuse<float>)(op, t, begin, end, out, out_dtype, found);
    },
    [](const Tile& t, bool wide, int64_t begin, int64_t end, const Bracket* brackets, int n,
       Counter* counters) {
      (wide ? count<double> : count<float>)(t, begin, end, brackets, n, counters);
    },
    [](const FusedOp& op, const Tile& t, bool wide, int64_t begin, int64_t end, double* out) {
      (wide ? masked_sums<double> : masked_sums<float>)(op, t, begin, end, out);
    },
    [](const Tile& t, bool wide, int64_t begin, int64_t end, double* out) {
      (wide ? gram<double> : gram<float>)(t, begin, end, out);
    },
    [](const Tile& t, bool wide, int64_t begin, int64_t end, int expert, int64_t* out) {
      (wide ? magnitudes<double> : magnitudes<float>)(t, begin, end, expert, out);
    },
};

}  // namespace MK_ISA
}  // namespace mergekern
