#include "batch.h"

#include <algorithm>
#include <mutex>

#include "cpu/pool.h"

namespace mergekern {
namespace {

// A chunk of one large tile, or several whole tiles of about a chunk together.
struct Piece {
  int64_t first, last;  // tiles
  int64_t begin, end;   // elements, where it is one tile
};

std::vector<Piece> cut(const Batch& batch) {
  std::vector<Piece> pieces;
  int64_t first = 0, gathered = 0;
  const auto flush = [&](int64_t last) {
    if (first < last) pieces.push_back({first, last, 0, -1});
    gathered = 0;
  };
  for (int64_t tile = 0; tile < batch.count; ++tile) {
    const int64_t numel = batch.numel[tile];
    if (gathered + numel > kChunk) {
      flush(tile);
      first = tile;
    }
    gathered += numel;
    if (numel <= kChunk) continue;
    for (int64_t at = 0; at < numel; at += kChunk) {
      pieces.push_back({tile, tile + 1, at, std::min(at + kChunk, numel)});
    }
    first = tile + 1;
    gathered = 0;
  }
  flush(batch.count);
  return pieces;
}

// Experts and op as those of one tile after the other.
class Cursor {
 public:
  Cursor(const Loops& table, bool wide, const FusedOp& op, const std::vector<Expert>& experts,
         DType base_dtype, const Batch& batch)
      : table_(table),
        wide_(wide),
        op_(op),
        experts_(experts),
        base_dtype_(base_dtype),
        batch_(batch) {}

  Tile move_to(int64_t tile) {
    const int64_t count = static_cast<int64_t>(experts_.size());
    const uint64_t* inputs = batch_.inputs + tile * (1 + count);
    for (int64_t k = 0; k < count; ++k) {
      experts_[k].data = reinterpret_cast<const void*>(inputs[1 + k]);
    }
    op_.name_hash = batch_.name_hash[tile];
    const Tile here{reinterpret_cast<const void*>(inputs[0]),
                    base_dtype_,
                    experts_.data(),
                    static_cast<int32_t>(count),
                    batch_.offset[tile],
                    batch_.numel[tile],
                    false};
    if (batch_.windows) trim(tile, here);
    return here;
  }

  const FusedOp& op() const { return op_; }

 private:
  void trim(int64_t tile, const Tile& here) {
    const int64_t count = static_cast<int64_t>(experts_.size());
    int64_t* cuts = batch_.windows + tile * count * 4;
    if (batch_.ranks) {
      table_.rank(here, wide_, batch_.ranks + tile * count * 2, batch_.by_index, cuts);
    }
    for (Expert& e : experts_) {
      e.window =
          Window{static_cast<uint64_t>(cuts[0]), static_cast<uint64_t>(cuts[2]), cuts[1], cuts[3]};
      e.trim = trims(e.window);
      cuts += 4;
    }
  }

  const Loops& table_;
  bool wide_;
  FusedOp op_;
  std::vector<Expert> experts_;
  DType base_dtype_;
  const Batch& batch_;
};

// One entry per tile, in their order, from entries per piece.
std::vector<TileFindings> by_tile(std::vector<TileFindings> found) {
  std::sort(found.begin(), found.end(),
            [](const TileFindings& a, const TileFindings& b) { return a.tile < b.tile; });
  std::vector<TileFindings> merged;
  for (TileFindings& one : found) {
    if (merged.empty() || merged.back().tile != one.tile) {
      merged.push_back(std::move(one));
      continue;
    }
    merged.back().overflow |= one.overflow;
    for (size_t i = 0; i < one.non_finite.size(); ++i) {
      merged.back().non_finite[i] |= one.non_finite[i];
    }
  }
  return merged;
}

}  // namespace

std::vector<TileFindings> fuse_batch(const Loops& table, int threads, bool wide, const FusedOp& op,
                                     const std::vector<Expert>& experts, DType base_dtype,
                                     DType out_dtype, const Batch& batch) {
  const std::vector<Piece> pieces = cut(batch);
  std::vector<TileFindings> found;
  std::mutex mutex;
  parallel_for(threads, static_cast<int64_t>(pieces.size()), [&](int, int64_t index) {
    const Piece& piece = pieces[index];
    Cursor cursor(table, wide, op, experts, base_dtype, batch);
    std::vector<uint8_t> bad(1 + experts.size(), 0);
    for (int64_t tile = piece.first; tile < piece.last; ++tile) {
      const Tile here = cursor.move_to(tile);
      Findings seen{bad.data(), false};
      table.fuse(cursor.op(), here, wide, piece.begin, piece.end < 0 ? here.numel : piece.end,
                 reinterpret_cast<void*>(batch.outs[tile]), out_dtype, &seen);
      if (!seen.overflow && std::find(bad.begin(), bad.end(), 1) == bad.end()) continue;
      std::lock_guard<std::mutex> lock(mutex);
      found.push_back({tile, bad, seen.overflow});
      std::fill(bad.begin(), bad.end(), 0);
    }
  });
  return by_tile(std::move(found));
}

}  // namespace mergekern
