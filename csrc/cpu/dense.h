// Products of matrices and triangular systems in fp64, in blocks that stay in cache.
//
// Every element's sum runs over ascending k, products and sums rounded one by one, so that no bit
// depends on blocks, vector width or threads: vectors hold elements that have nothing to do with
// each other. What is subtracted is added with the other sign, which gives the same bits.
#pragma once
#include <utility>

#include "cpu/blocks.h"
#include "cpu/loops.h"
#include "cpu/vectors.h"

namespace mergekern {
namespace MK_ISA {
namespace {

typedef double Doubles __attribute__((vector_size(MK_WIDTH)));

constexpr int kDoubles = MK_WIDTH / 8;
constexpr int kTall = MK_WIDTH == 64 ? 8 : 4;  // rows and registers of a block of sums
constexpr int kWide = MK_WIDTH == 16 ? 2 : 3;
constexpr int kStrip = kWide * kDoubles;  // columns
constexpr int64_t kDeep = 256;            // products of a sum that are taken at once

static_assert(kDenseRows % kTall == 0 && kPanel % kTall == 0 && kPanel <= kDeep);
static_assert(kDenseRoom >= kDenseRows * kDeep + kDeep * kStrip);
static_assert(kDenseRoom >= kPanel * kPanel + kPanel * kStrip);

MK_HD Doubles doubles(const double* from) { return reinterpret_cast<Doubles>(load(from)); }

// Calls f(0), ... f(n - 1) with constants, so that arrays they index can be registers.
template <typename F, int... i>
MK_HD void for_each(std::integer_sequence<int, i...>, F&& f) {
  (f(std::integral_constant<int, i>()), ...);
}

// c += a b for kTall x kStrip elements; a is packed [k, kTall], b [k, kStrip].
inline void sum_block(const double* a, const double* b, int64_t k, double* c, int64_t c_row) {
  constexpr auto all = std::make_integer_sequence<int, kTall * kWide>();
  Doubles sum[kTall * kWide];
  for_each(all, [&](auto at) __attribute__((always_inline)) {
    sum[at] = doubles(c + at / kWide * c_row + at % kWide * kDoubles);
  });
  for (; k > 0; --k, a += kTall, b += kStrip) {
    for_each(all, [&](auto at) __attribute__((always_inline)) {
      sum[at] = sum[at] + a[at / kWide] * doubles(b + at % kWide * kDoubles);
    });
  }
  for_each(all, [&](auto at) __attribute__((always_inline)) {
    store(c + at / kWide * c_row + at % kWide * kDoubles, sum[at]);
  });
}

// Rows [begin, begin + m) and products [first, first + k) of a factor, kTall rows behind one
// another, those that are missing 0. Where rows are neighbours, products are gone through once.
template <typename T>
void pack_rows(const Factor& a, int64_t begin, int64_t m, int64_t first, int64_t k, double* out) {
  const auto* data = static_cast<const Unaligned<T>*>(a.data);
  const auto pack = [&](int64_t top, int64_t at) __attribute__((always_inline)) {
    double* to = out + top * k + at * kTall;
    const int64_t column = first + at;
    for (int64_t i = top; i < top + kTall; ++i) {
      const int64_t row = begin + (i < m ? i : m - 1);
      const double x = static_cast<double>(widen(data[row * a.row_step + column * a.step].value));
      const double reduced = column - row == a.diagonal ? x : x * a.reduction;
      to[i - top] = i < m ? reduced * a.weight : 0.0;
    }
  };
  if (a.row_step == 1) {
    for (int64_t at = 0; at < k; ++at) {
      for (int64_t top = 0; top < m; top += kTall) pack(top, at);
    }
  } else {
    for (int64_t top = 0; top < m; top += kTall) {
      for (int64_t at = 0; at < k; ++at) pack(top, at);
    }
  }
}

// k rows of at most kStrip columns behind one another; missing columns are 0.
inline void pack_strip(const double* b, int64_t b_row, int64_t k, int64_t columns, double* out) {
  for (; k > 0; --k, b += b_row, out += kStrip) {
    for (int64_t j = 0; j < kStrip; ++j) out[j] = j < columns ? b[j] : 0.0;
  }
}

// The same back into place.
inline void unpack_strip(const double* from, int64_t rows, int64_t columns, double* x,
                         int64_t x_row) {
  for (; rows > 0; --rows, from += kStrip, x += x_row) {
    for (int64_t j = 0; j < columns; ++j) x[j] = from[j];
  }
}

// A block of sums that ends within kTall x kStrip.
inline void sum_edge(const double* a, const double* b, int64_t k, int64_t rows, int64_t columns,
                     double* c, int64_t c_row) {
  double block[kTall * kStrip] = {};
  pack_strip(c, c_row, rows, columns, block);
  sum_block(a, b, k, block, kStrip);
  unpack_strip(block, rows, columns, c, c_row);
}

// c += a b for rows [begin, end) of a, kDenseRows at the most; c begins with the first of them
void add_product(const Factor& a, int64_t begin, int64_t end, int64_t n, int64_t k, const double* b,
                 int64_t b_row, double* c, int64_t c_row, double* room) {
  const int64_t m = end - begin;
  double *rows = room, *strip = room + kDenseRows * kDeep;
  for (int64_t first = 0; first < k; first += kDeep) {
    const int64_t deep = k - first < kDeep ? k - first : kDeep;
    with_type(a.dtype,
              [&](auto type) { pack_rows<decltype(type)>(a, begin, m, first, deep, rows); });
    for (int64_t j = 0; j < n; j += kStrip) {
      pack_strip(b + first * b_row + j, b_row, deep, n - j, strip);
      for (int64_t i = 0; i < m; i += kTall) {
        double* block = c + i * c_row + j;
        if (m - i >= kTall && n - j >= kStrip) {
          sum_block(rows + i * deep, strip, deep, block, c_row);
        } else {
          const int64_t tall = m - i < kTall ? m - i : kTall;
          const int64_t wide = n - j < kStrip ? n - j : kStrip;
          sum_edge(rows + i * deep, strip, deep, tall, wide, block, c_row);
        }
      }
    }
  }
}

// x = T^-1 x of the n x n lower triangle T, n <= kPanel; element (i, k) of it is t[i * t_row +
// k * t_step], and x has so many columns.
void substitute(const double* t, int64_t t_row, int64_t t_step, int64_t n, double* x, int64_t x_row,
                int64_t columns, double* room) {
  double *rows = room, *strip = room + kPanel * kPanel;
  const Factor below{t, DType::f64, t_row, t_step, 1.0, -1.0, -kPanel};
  pack_rows<double>(below, 0, n, 0, n, rows);
  for (int64_t j = 0; j < columns; j += kStrip) {
    pack_strip(x + j, x_row, n, columns - j, strip);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t top = i / kTall * kTall;
      double* mine = strip + i * kStrip;
      if (i == top && n - top >= kTall) {
        sum_block(rows + top * n, strip, top, mine, kStrip);
      } else if (i == top) {
        sum_edge(rows + top * n, strip, top, n - top, kStrip, mine, kStrip);
      }
      for (int64_t k = top; k < i; ++k) {
        const double by = t[i * t_row + k * t_step];
        for (int v = 0; v < kStrip; ++v) mine[v] = mine[v] - by * strip[k * kStrip + v];
      }
      for (int v = 0; v < kStrip; ++v) mine[v] = mine[v] / t[i * (t_row + t_step)];
    }
    unpack_strip(strip, n, columns - j < kStrip ? columns - j : kStrip, x + j, x_row);
  }
}

// The upper triangle of a, n <= kPanel, becomes U with U^T U = a. Returns the first row that leaves
// no more than least[row] of its diagonal element, which then stays what is left of it; n if none.
int64_t factor_panel(double* a, int64_t row, int64_t n, const double* least) {
  for (int64_t k = 0; k < n; ++k) {
    double* top = a + k * row;
    if (!(top[k] > least[k])) return k;
    top[k] = __builtin_sqrt(top[k]);
    for (int64_t j = k + 1; j < n; ++j) top[j] = top[j] / top[k];
    for (int64_t i = k + 1; i < n; ++i) {
      double* here = a + i * row;
      const double by = top[i];
#pragma GCC ivdep
      for (int64_t j = i; j < n; ++j) here[j] = here[j] - by * top[j];
    }
  }
  return n;
}

}  // namespace
}  // namespace MK_ISA
}  // namespace mergekern
