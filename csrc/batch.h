// One op over many tiles in one call: models of many small tensors need no call for each.
#pragma once
#include <vector>

#include "cpu/loops.h"

namespace mergekern {

// What differs from tile to tile, in columns; K experts each.
struct Batch {
  int64_t count;
  const uint64_t* inputs;     // [count, 1 + K]: addresses, the base first
  const uint64_t* outs;       // [count]
  const int64_t* offset;      // [count]: index of the first element within its tensor
  const int64_t* numel;       // [count]
  const uint32_t* name_hash;  // [count]
  int64_t* windows;           // [count, K, 4]: lo, lo_last, hi, hi_last; null: those of the experts
  const int64_t* ranks;       // [count, K, 2]: the windows are found by these first; may be null
  bool by_index;              // see cpu/rank.h
};

struct TileFindings {
  int64_t tile;
  std::vector<uint8_t> non_finite;  // [1 + K]
  bool overflow;
};

// `experts` and `op` give what the tiles have in common. Returns what was found, by tile.
std::vector<TileFindings> fuse_batch(const Loops& table, int threads, bool wide, const FusedOp& op,
                                     const std::vector<Expert>& experts, DType base_dtype,
                                     DType out_dtype, const Batch& batch);

}  // namespace mergekern
