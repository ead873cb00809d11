#include "cpu/passes.h"

#include <algorithm>
#include <atomic>
#include <functional>
#include <numeric>

#include "cpu/pool.h"

namespace mergekern {
namespace {

// work(thread, begin, end) for every piece of a tile
void over_pieces(int threads, int64_t numel,
                 const std::function<void(int, int64_t, int64_t)>& work) {
  parallel_for(threads, pieces_of(numel), [&](int thread, int64_t piece) {
    const int64_t begin = piece * kChunk, end = begin + kChunk;
    work(thread, begin, end < numel ? end : numel);
  });
}

// Each thread's findings, to be brought together.
class FoundByThread {
 public:
  FoundByThread(int threads, const Tile& t)
      : models_(t.count + 1), bad_(models_ * threads, 0), found_(threads, Findings{}) {
    for (int i = 0; i < threads; ++i) found_[i].non_finite = &bad_[i * models_];
  }

  Findings* of(int thread) { return &found_[thread]; }

  Found all() const {
    Found all;
    for (size_t model = 0; model < models_; ++model) {
      bool any = false;
      for (size_t i = model; i < bad_.size(); i += models_) any |= bad_[i] != 0;
      if (any) all.non_finite.push_back(static_cast<int>(model) - 1);
    }
    for (const Findings& f : found_) all.overflow |= f.overflow;
    return all;
  }

 private:
  size_t models_;
  std::vector<uint8_t> bad_;
  std::vector<Findings> found_;
};

}  // namespace

Found fuse(const How& how, const FusedOp& op, const Tile& t, void* out, DType out_dtype) {
  const Loops& table = loops(how.isa.c_str());
  FoundByThread found(how.threads, t);
  over_pieces(how.threads, t.numel, [&](int thread, int64_t begin, int64_t end) {
    table.fuse(op, t, how.wide, begin, end, out, out_dtype, found.of(thread));
  });
  return found.all();
}

Found elementwise(const How& how, const Elementwise& f, const Tile& t, void* out, DType out_dtype) {
  const Loops& table = loops(how.isa.c_str());
  FoundByThread found(how.threads, t);
  over_pieces(how.threads, t.numel, [&](int thread, int64_t begin, int64_t end) {
    table.elementwise(f, t, how.wide, begin, end, out, out_dtype, found.of(thread));
  });
  return found.all();
}

Found unify(const How& how, const Unify& u, const Tile& t) {
  const Loops& table = loops(how.isa.c_str());
  FoundByThread found(how.threads, t);
  over_pieces(how.threads, t.numel, [&](int thread, int64_t begin, int64_t end) {
    table.unify(u, t, how.wide, begin, end, found.of(thread));
  });
  return found.all();
}

std::vector<int64_t> overlaps(const How& how, const Tile& t, double epsilon) {
  const Loops& table = loops(how.isa.c_str());
  const size_t n = 2 * static_cast<size_t>(t.count);
  std::vector<int64_t> by_thread(n * how.threads, 0), counts(n, 0);
  over_pieces(how.threads, t.numel, [&](int thread, int64_t begin, int64_t end) {
    table.overlaps(t, how.wide, epsilon, begin, end, &by_thread[n * thread]);
  });
  for (size_t i = 0; i < by_thread.size(); ++i) counts[i % n] += by_thread[i];
  return counts;
}

Found speculate(const How& how, const FusedOp& op, const Tile& t, const Margin* margins, void* out,
                DType out_dtype, int64_t* kept, uint8_t* open) {
  const Loops& table = loops(how.isa.c_str());
  const size_t counts = 4 * static_cast<size_t>(t.count);
  FoundByThread found(how.threads, t);
  std::vector<int64_t> kept_by_thread(counts * how.threads, 0);
  over_pieces(how.threads, t.numel, [&](int thread, int64_t begin, int64_t end) {
    table.speculate(op, t, margins, how.wide, begin, end, out, out_dtype, found.of(thread),
                    &kept_by_thread[counts * thread], open);
  });
  for (size_t i = 0; i < kept_by_thread.size(); ++i) kept[i % counts] += kept_by_thread[i];
  return found.all();
}

std::vector<int64_t> count(const How& how, const Tile& t, const std::vector<Bracket>& brackets,
                           const std::vector<int64_t*>& tallies,
                           const std::vector<int64_t*>& chunks) {
  const Loops& table = loops(how.isa.c_str());
  const size_t n = brackets.size();
  std::vector<Counter> counters(n * how.threads);
  for (int thread = 0; thread < how.threads; ++thread) {
    for (size_t q = 0; q < n; ++q) {
      counters[thread * n + q] = Counter{0, tallies[q] + thread * brackets[q].bins, chunks[q]};
    }
  }
  over_pieces(how.threads, t.numel, [&](int thread, int64_t begin, int64_t end) {
    table.count(t, how.wide, begin, end, brackets.data(), static_cast<int>(n),
                &counters[thread * n]);
  });
  std::vector<int64_t> above(n, 0);
  for (size_t i = 0; i < counters.size(); ++i) above[i % n] += counters[i].above;
  return above;
}

void masked_sums(const How& how, const FusedOp& op, const Tile& t, double* out,
                 const std::vector<uint8_t*>& masks) {
  const Loops& table = loops(how.isa.c_str());
  over_pieces(how.threads, t.numel, [&](int, int64_t begin, int64_t end) {
    table.masked_sums(op, t, how.wide, begin, end, out, masks.data());
  });
}

void energies(const How& how, const FusedOp& op, const Tile& t, double* out,
              const std::vector<uint8_t*>& masks) {
  const Loops& table = loops(how.isa.c_str());
  over_pieces(how.threads, t.numel, [&](int, int64_t begin, int64_t end) {
    table.energies(op, t, how.wide, begin, end, out, masks.data());
  });
}

void prune(const How& how, const Pruning& rows, const std::vector<Odds>& odds, const Tile& t,
           const std::vector<uint8_t*>& masks) {
  const Loops& table = loops(how.isa.c_str());
  const int64_t panel = rows.panel(), bytes = 8 / std::gcd(panel, int64_t{8});
  const int64_t piece = std::max(int64_t{1}, kChunk / (panel * bytes)) * bytes * panel;
  parallel_for(how.threads, (t.numel + piece - 1) / piece, [&](int, int64_t index) {
    const int64_t begin = index * piece, end = begin + piece;
    table.prune(rows, odds.data(), t, how.wide, begin, end < t.numel ? end : t.numel, masks.data());
  });
}

void gram(const How& how, const Tile& t, double* out) {
  const Loops& table = loops(how.isa.c_str());
  over_pieces(how.threads, t.numel,
              [&](int, int64_t begin, int64_t end) { table.gram(t, how.wide, begin, end, out); });
}

void magnitudes(const How& how, const Tile& t, int expert, int64_t* out) {
  const Loops& table = loops(how.isa.c_str());
  over_pieces(how.threads, t.numel, [&](int, int64_t begin, int64_t end) {
    table.magnitudes(t, how.wide, begin, end, expert, out);
  });
}

bool all_finite(int threads, const void* data, DType dtype, int64_t numel) {
  const Loops& table = loops("");
  std::atomic<bool> all{true};
  over_pieces(threads, numel, [&](int, int64_t begin, int64_t end) {
    if (!table.all_finite(data, dtype, begin, end)) all = false;
  });
  return all;
}

}  // namespace mergekern
