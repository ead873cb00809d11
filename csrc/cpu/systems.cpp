#include "cpu/systems.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "cpu/pool.h"

namespace mergekern {
namespace {

constexpr int64_t kTileColumns = 256;

int64_t tiles_of(int64_t numel, int64_t each) { return (numel + each - 1) / each; }

// A block of memory for every thread, made when it is first wanted.
class Rooms {
 public:
  explicit Rooms(int threads) : rooms_(threads) {}
  double* of(int thread) {
    if (!rooms_[thread]) rooms_[thread].reset(new double[kDenseRoom]);
    return rooms_[thread].get();
  }

 private:
  std::vector<std::unique_ptr<double[]>> rooms_;
};

// The operations over blocks, on one pool of memory.
class Blocks {
 public:
  Blocks(const std::string& isa, int threads)
      : loops_(loops(isa.c_str())), threads_(threads), rooms_(threads) {}

  // c += a b; upper: of a square c, what lies on and above the diagonal, and more of it or not
  void product(const Factor& a, int64_t m, int64_t n, int64_t k, const double* b, int64_t b_row,
               double* c, int64_t c_row, bool upper = false) {
    const int64_t down = tiles_of(m, kDenseRows), across = tiles_of(n, kTileColumns);
    parallel_for(threads_, down * across, [&](int thread, int64_t tile) {
      const int64_t i = tile / across * kDenseRows, j = tile % across * kTileColumns;
      const int64_t tall = std::min(m - i, kDenseRows), wide = std::min(n - j, kTileColumns);
      if (upper && j + wide <= i) return;
      loops_.add_product(a, i, i + tall, wide, k, b + j, b_row, c + i * c_row + j, c_row,
                         rooms_.of(thread));
    });
  }

  void substitute(const double* t, int64_t t_row, int64_t t_step, int64_t n, double* x,
                  int64_t x_row, int64_t columns) {
    const int64_t each = std::clamp<int64_t>(columns / threads_ / 48 * 48, 48, kTileColumns);
    parallel_for(threads_, tiles_of(columns, each), [&](int thread, int64_t tile) {
      const int64_t j = tile * each;
      loops_.substitute(t, t_row, t_step, n, x + j, x_row, std::min(columns - j, each),
                        rooms_.of(thread));
    });
  }

  int64_t factor_panel(double* a, int64_t row, int64_t n, const double* least) {
    int64_t done = 0;
    parallel_for(1, 1, [&](int, int64_t) { done = loops_.factor_panel(a, row, n, least); });
    return done;
  }

 private:
  const Loops& loops_;
  int threads_;
  Rooms rooms_;
};

Factor minus(const double* data, int64_t row_step, int64_t step) {
  return {data, DType::f64, row_step, step, 1.0, -1.0, 0};
}

}  // namespace

void product(const std::string& isa, int threads, const Factor& a, int64_t m, int64_t n, int64_t k,
             const double* b, int64_t b_row, double* c, int64_t c_row) {
  Blocks(isa, threads).product(a, m, n, k, b, b_row, c, c_row);
}

std::pair<int64_t, double> factorise(const std::string& isa, int threads, double* a, int64_t n,
                                     double least) {
  Blocks blocks(isa, threads);
  std::vector<double> bound(n);
  for (int64_t i = 0; i < n; ++i) bound[i] = least * a[i * n + i];
  for (int64_t top = 0; top < n; top += kPanel) {
    const int64_t tall = std::min(n - top, kPanel), left = n - top - tall;
    double* panel = a + top * n + top;
    const int64_t done = blocks.factor_panel(panel, n, tall, &bound[top]);
    if (done < tall) return {top + done, panel[done * (n + 1)]};
    double *right = panel + tall, *rest = right + tall * n;
    blocks.substitute(panel, 1, n, tall, right, n, left);
    blocks.product(minus(right, 1, n), left, left, tall, right, n, rest, n, true);
  }
  return {n, 0.0};
}

// U^T y = b goes down the rows; U x = y goes up them, as down those of U turned round.
void solve(const std::string& isa, int threads, const double* u, int64_t n, double* x,
           int64_t columns) {
  Blocks blocks(isa, threads);
  for (int64_t top = 0; top < n; top += kPanel) {
    const int64_t tall = std::min(n - top, kPanel), left = n - top - tall;
    const double* panel = u + top * n + top;
    double* here = x + top * columns;
    blocks.substitute(panel, 1, n, tall, here, columns, columns);
    blocks.product(minus(panel + tall, 1, n), left, columns, tall, here, columns,
                   here + tall * columns, columns);
  }
  for (int64_t stop = n; stop > 0;) {
    const int64_t top = (stop - 1) / kPanel * kPanel, tall = stop - top;
    double* last = x + (stop - 1) * columns;
    blocks.substitute(u + (stop - 1) * (n + 1), -n, -1, tall, last, -columns, columns);
    blocks.product(minus(u + stop - 1, n, -1), top, columns, tall, last, -columns, x, columns);
    stop = top;
  }
}

}  // namespace mergekern
