// factor * (W + scale * L R) for a stretch of elements, and sums of its squares.
//
// Products and sums are rounded one by one, over ascending ranks, so that the bits depend on no
// vector width; many columns at once keep the adders busy meanwhile.
#pragma once
#include <utility>

#include "cpu/blocks.h"
#include "cpu/loops.h"
#include "cpu/vectors.h"

namespace mergekern {
namespace MK_ISA {
namespace {

// Where a block begins in the factors; `factor` has a number for each of its rows or columns.
struct Corner {
  const float* left;
  const float* right;
  const float* factor;
  bool by_column;
};

MK_HD Floats floats(const float* from) { return reinterpret_cast<Floats>(load(from)); }

// Calls f(0), ... f(n - 1) with constants, so that arrays they index can be registers.
template <typename F, int... i>
MK_HD void each(std::integer_sequence<int, i...>, F&& f) {
  (f(std::integral_constant<int, i>()), ...);
}

// kRows x kVectors registers: what is loaded of one factor serves all of the other's.
template <int kRows, int kVectors, typename T>
inline void block(const LowRank& x, const Corner& c, const Unaligned<T>* weight, float* out) {
  constexpr int kColumns = kVectors * kLanesOf32;
  constexpr auto vectors = std::make_integer_sequence<int, kVectors>();
  constexpr auto all = std::make_integer_sequence<int, kRows * kVectors>();
  float w[kRows][kColumns];
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kColumns; ++j) w[i][j] = widen(weight[i * x.columns + j].value);
  }
  const int64_t columns = x.columns;
  const int32_t rank = x.rank;
  Floats sum[kRows * kVectors], right[kVectors];
  const auto load_right = [&](int32_t k) __attribute__((always_inline)) {
    const float* from = c.right + k * columns;
    each(vectors,
         [&](auto v) __attribute__((always_inline)) { right[v] = floats(from + v * kLanesOf32); });
  };
  load_right(0);
  each(all, [&](auto at) __attribute__((always_inline)) {
    sum[at] = c.left[at / kVectors * rank] * right[at % kVectors];
  });
  for (int32_t k = 1; k < rank; ++k) {
    load_right(k);
    each(all, [&](auto at) __attribute__((always_inline)) {
      sum[at] = sum[at] + c.left[at / kVectors * rank + k] * right[at % kVectors];
    });
  }
  each(all, [&](auto at) __attribute__((always_inline)) {
    constexpr int i = at / kVectors, j = at % kVectors * kLanesOf32;
    const Floats whole = floats(&w[i][j]) + x.scale * sum[at];
    const Floats by = c.by_column ? floats(c.factor + j) : Floats{} + c.factor[i];
    store(out + i * columns + j, reinterpret_cast<Words>(whole * by));
  });
}

template <typename T>
inline void element(const LowRank& x, const Corner& c, const Unaligned<T>* weight, float* out) {
  const float w = widen(weight->value);
  float sum = c.left[0] * c.right[0];
  for (int32_t k = 1; k < x.rank; ++k) sum = sum + c.left[k] * c.right[k * x.columns];
  *out = (w + x.scale * sum) * *c.factor;
}

// n columns of kRows rows, from the corner on.
template <int kRows, int kVectors, typename T>
void rows_of(const LowRank& x, Corner c, const Unaligned<T>* weight, int64_t n, float* out) {
  int64_t j = 0;
  const auto advance = [&](int step) {
    j += step;
    c.right += step;
    c.factor += c.by_column ? step : 0;
  };
  for (constexpr int kMany = kVectors * kLanesOf32; n - j >= kMany; advance(kMany)) {
    block<kRows, kVectors>(x, c, weight + j, out + j);
  }
  for (; n - j >= kLanesOf32; advance(kLanesOf32)) block<kRows, 1>(x, c, weight + j, out + j);
  for (; j < n; advance(1)) {
    for (int i = 0; i < kRows; ++i) {
      const float* factor = c.factor + (c.by_column ? 0 : i);
      const Corner one{c.left + i * x.rank, c.right, factor, c.by_column};
      element(x, one, weight + i * x.columns + j, out + i * x.columns + j);
    }
  }
}

// The weights may lie at the end of the memory of `out`. Element by element each is read before
// anything is written over it, and four rows at a time, too, as long as eight are left: what is
// made of an element takes at most twice the bytes of it.
template <typename T>
void add_lowrank(const LowRank& x, const void* weights, int64_t begin, int64_t end, float* out) {
  constexpr int kRows = 4;
  const float ones[kRows] = {1.0f, 1.0f, 1.0f, 1.0f};  // products with them change no bit
  const auto* weight = MK_ISA::at<T>(weights, 0);
  for (int64_t at = begin; at < end;) {
    const int64_t row = at / x.columns, j = at % x.columns, left = end - at;
    Corner c{x.left + row * x.rank, x.right + row / x.rows * x.rank * x.columns + j, ones, false};
    if (x.factor) c = {c.left, c.right, x.factor + (x.by_column ? j : row), x.by_column};
    int64_t n = left < x.columns - j ? left : x.columns - j;
    if (j == 0 && left >= 2 * kRows * x.columns && row % x.rows + kRows <= x.rows) {
      rows_of<kRows, 2>(x, c, weight + (at - begin), n, out + (at - begin));
      n *= kRows;
    } else {
      rows_of<1, 8>(x, c, weight + (at - begin), n, out + (at - begin));
    }
    at += n;
  }
}

// Elements [begin, end) of the matrix; `weight` and `out` begin with the first of them.
void add_lowrank(const LowRank& x, const void* weight, DType dtype, int64_t begin, int64_t end,
                 float* out) {
  switch (dtype) {
    case DType::f32: return add_lowrank<float>(x, weight, begin, end, out);
    case DType::f16: return add_lowrank<Float16>(x, weight, begin, end, out);
    case DType::bf16: return add_lowrank<BFloat16>(x, weight, begin, end, out);
    case DType::f64: return;  // does not widen to float; callers refuse it
  }
}

// Adds the squares of whole rows to sums[columns], or by row to sums[rows]: column j to lane
// j mod kLanes, then lane after lane.
void sum_squares(const float* x, int64_t rows, int64_t columns, bool by_column, double* sums) {
  for (int64_t i = 0; i < rows; ++i, x += columns) {
    if (by_column) {
      for (int64_t j = 0; j < columns; ++j) sums[j] += static_cast<double>(x[j]) * x[j];
      continue;
    }
    double lanes[kLanes] = {};
    int64_t j = 0;
    for (; j + kLanes <= columns; j += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) {
        lanes[lane] += static_cast<double>(x[j + lane]) * x[j + lane];
      }
    }
    for (int lane = 0; j < columns; ++lane, ++j) lanes[lane] += static_cast<double>(x[j]) * x[j];
    for (int lane = 0; lane < kLanes; ++lane) sums[i] += lanes[lane];
  }
}

}  // namespace
}  // namespace MK_ISA
}  // namespace mergekern
